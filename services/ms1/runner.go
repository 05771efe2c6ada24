package ms1

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// runner runs one session and keeps its figures afterwards. The engine's mutex
// guards it, except the channels.
type runner struct {
	engine   *engine
	row      Session
	interval time.Duration
	began    time.Time     // by the monotonic clock
	total    time.Duration // 0 while it runs
	state    State
	recorded bool         // the row is that of the database
	fault    error        // why the row is not recorded, or that rows are missing
	logged   atomic.Int64 // lost messages in the log
	ledger   *ledger      // nil if another process ran the session

	unwritable error     // of a commit, although the store was ready
	refusedAt  time.Time // when that was last

	stop  chan EndReason
	asked bool          // by GET /stop
	ended chan struct{} // closed when the figures are final, recorded or not
}

// end asks the session to stop. Only the first reason counts.
func (s *runner) end(reason EndReason) {
	select {
	case s.stop <- reason:
	default:
	}
}

// run runs the session to its end.
func (s *runner) run() {
	s.engine.log.Info().Int64("session_id", s.row.ID).Int("interval_seconds", s.row.IntervalSeconds).Int("in_flight", s.row.InFlight).Msg("session begins")
	reason := s.generate()
	s.drain(reason)
	s.record(reason)
}

// generate generates messages until the interval has elapsed or the session is
// stopped.
func (s *runner) generate() EndReason {
	defer s.ledger.complete()
	interval := time.NewTimer(time.Until(s.began.Add(s.interval)))
	defer interval.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for s.advance(); ; {
		select {
		case reason := <-s.stop:
			return reason
		case <-interval.C:
			return IntervalElapsed
		case <-sweep.C:
			s.sweep(false)
			s.advance() // if messages were given up
		}
	}
}

// advance generates messages while slots are free, and has them sent.
func (s *runner) advance() {
	added := false
	for {
		now := time.Now()
		// The end precedes another message.
		if len(s.stop) > 0 || now.Sub(s.began) >= s.interval || !s.ledger.add(message.StampOf(s.engine.now()), now) {
			break
		}
		added = true
	}
	switch {
	case !added:
	case s.row.InFlight <= maxDirect:
		s.engine.sender.flush()
	default:
		notify(s.engine.sender.filled)
	}
}

// sweep checks the deadlines.
func (s *runner) sweep(last bool) {
	s.logLost(s.ledger.sweep(time.Now(), last)...)
}

// steadyTime is how long every commit must succeed after one that failed until the
// database takes rows again: it may refuse some rows only.
const steadyTime = time.Second

// written notes the outcome of a commit. A disk that is full, a lock or a table
// that is missing leave the store ready, and yet no row can be committed.
func (s *runner) written(err error) {
	e := s.engine
	if err != nil && (e.stopping() || e.store.Ready(e.running) != nil) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch before := s.unwritable; {
	case err != nil:
		if before == nil {
			e.log.Warn().Err(err).Msg("database takes no rows")
		}
		s.unwritable, s.refusedAt = err, time.Now()
	case before != nil && time.Since(s.refusedAt) >= steadyTime:
		e.log.Info().Msg("database takes rows again")
		s.unwritable = nil
	}
}

// maxLogged is the number of lost messages of a session that are logged at level
// warn; the others are logged at debug.
const maxLogged = 100

// logLost logs messages that were given up.
func (s *runner) logLost(gone ...*entry) {
	for _, e := range gone {
		if e != nil {
			level := zerolog.WarnLevel
			if s.logged.Add(1) > maxLogged {
				level = zerolog.DebugLevel
			}
			s.engine.log.WithLevel(level).Stringer("trace_id", telemetry.TraceID(e.span, e.message.Key())).Stringer("key", e.message.Key()).
				Str("reason", e.reason).Msg("message given up")
		}
	}
}

// drain waits until every message has returned or is given up. After the
// interval each message has its full time; a stop gives all up after the drain
// time.
func (s *runner) drain(reason EndReason) {
	e := s.engine
	e.mu.Lock()
	s.state = Draining
	e.mu.Unlock()
	drainTime := time.Duration(e.config.DrainSeconds) * time.Second
	var deadline time.Time
	if reason != IntervalElapsed {
		deadline = time.Now().Add(drainTime)
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for s.ledger.account().busy > 0 && (deadline.IsZero() || time.Now().Before(deadline)) {
		select {
		case <-s.ledger.changed:
		case <-s.stop:
			if deadline.IsZero() {
				deadline = time.Now().Add(drainTime)
			}
		case <-sweep.C:
			s.sweep(false)
		}
	}
	s.sweep(true)
}

// record writes the final figures of a drained session into its row and logs
// them; then the next session may begin. While the database is unavailable it
// retries until the program stops.
func (s *runner) record(reason EndReason) {
	e := s.engine
	settled := time.NewTimer(settleTimeout)
	defer settled.Stop()
	for waiting := true; waiting && s.ledger.account().commits > 0; {
		select {
		case <-s.ledger.changed:
		case <-settled.C:
			waiting = false // End waits for them or makes them fail
		}
	}

	account := s.ledger.account()
	e.mu.Lock()
	s.total = time.Since(s.began)
	closing := Closing{
		EndedAt: max(message.StampOf(e.now()), account.newest), Generated: account.generated,
		Resent: account.resent, Duplicates: account.duplicates, Reason: reason, Lost: s.ledger.lostMessages(),
	}
	s.row.EndedAt, s.row.EndReason = closing.EndedAt, &closing.Reason
	e.mu.Unlock()

	for first, timeout := true, recordTimeout; ; first, timeout = false, min(2*timeout, longestRecord) {
		ctx, cancel := recordContext(e, timeout)
		row, err := e.store.End(ctx, s.row.ID, closing)
		cancel()
		if err == nil && row.Generated == nil {
			err = ErrSessionEnded // as interrupted, by another program
		}
		// A row that another program deleted or closed stays so.
		over := err == nil || errors.Is(err, ErrNoSession) || errors.Is(err, ErrSessionEnded) || e.stopping()

		e.mu.Lock()
		s.fault = err
		if err == nil {
			s.row, s.recorded = row, true
			if acknowledged := s.ledger.account().stored; *row.Stored < acknowledged {
				s.fault = &missingRowsError{acknowledged: acknowledged, rows: *row.Stored}
			}
		}
		if over && s.fault != nil {
			e.fault = fmt.Errorf("session %d: %w", s.row.ID, s.fault)
		}
		summary := s.summary()
		e.mu.Unlock()
		if first || over {
			logSummary(e.log, summary, err)
		}
		if over {
			e.mu.Lock()
			s.state = Idle
			e.mu.Unlock()
		}
		if first {
			close(s.ended)
		}
		if over {
			return
		}
		retry.Pause(e.running, recordRetry)
	}
}

// recordContext returns a context that ends after the timeout. When the program
// stops, it ends with the time for that, but not within half a second.
func recordContext(e *engine, timeout time.Duration) (context.Context, context.CancelFunc) {
	grace := shutdownTimeout
	if e.stopping() {
		grace = max(time.Until(e.quitAt.Add(grace)), settleTimeout/2)
	}
	work, end := lifecycle.Grace(e.running, grace)
	ctx, cancel := context.WithTimeout(work, timeout)
	context.AfterFunc(ctx, end)
	return ctx, cancel
}

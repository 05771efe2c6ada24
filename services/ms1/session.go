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
)

// session is a session under way, or what is left of the last one. The
// engine's mutex guards it but for the channels.
type session struct {
	engine   *engine
	row      Session
	interval time.Duration
	began    time.Time     // by the monotonic clock
	total    time.Duration // 0 while under way
	state    State
	recorded bool         // the figures of the row are the database's
	notYet   error        // why they are not recorded
	fault    error        // notYet, or that rows are missing
	said     atomic.Int64 // lost messages that were logged
	ledger   *ledger      // nil if another process ran it

	stop  chan EndReason
	asked bool          // by GET /stop
	ended chan struct{} // closed when the last figures stand, recorded or not
}

// end asks the session to stop. Only the first reason counts.
func (s *session) end(reason EndReason) {
	select {
	case s.stop <- reason:
	default:
	}
}

// hasEnded says whether the last figures stand, recorded or not.
func (s *session) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// interact is the life of a session.
func (s *session) interact() {
	s.engine.log.Info().Int64("session_id", s.row.ID).Msgf("session %d begins: %s, %d in flight", s.row.ID, s.interval, s.row.InFlight)
	reason := s.generate()
	s.drain(reason)
	s.record(reason)
}

// generate makes messages while slots are free, until the interval is over or
// the session is stopped.
func (s *session) generate() EndReason {
	interval := time.NewTimer(time.Until(s.began.Add(s.interval)))
	defer interval.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		// The end goes before another message.
		select {
		case reason := <-s.stop:
			return reason
		case <-interval.C:
			return IntervalElapsed
		case <-sweep.C:
			s.sweep(false)
		default:
		}
		if s.ledger.add(message.StampOf(s.engine.now()), time.Now()) {
			continue
		}
		select {
		case reason := <-s.stop:
			return reason
		case <-interval.C:
			return IntervalElapsed
		case <-sweep.C:
			s.sweep(false)
		case <-s.ledger.changed:
		}
	}
}

// sweep has the deadlines looked at.
func (s *session) sweep(last bool) {
	s.sayLost(s.ledger.sweep(time.Now(), last)...)
}

// maxSaid lost messages of a session are logged at level warn, the others at
// debug.
const maxSaid = 100

// sayLost logs messages that were given up.
func (s *session) sayLost(gone ...*entry) {
	for _, e := range gone {
		if e != nil {
			level := zerolog.WarnLevel
			if s.said.Add(1) > maxSaid {
				level = zerolog.DebugLevel
			}
			s.engine.log.WithLevel(level).Stringer("trace_id", e.span.SpanContext().TraceID()).Stringer("key", e.message.Key()).
				Str("reason", e.reason).Msg("message given up")
		}
	}
}

// drain waits until every message came back or was given up. When the
// interval is over each message has its full time; a stop ends all of them
// after the drain time.
func (s *session) drain(reason EndReason) {
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
	for s.ledger.account().underWay > 0 && (deadline.IsZero() || time.Now().Before(deadline)) {
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

// record writes the last figures of a drained session into its row, says them
// and makes way for the next session. If the database is away it says so and
// tries again until it is back or the program stops.
func (s *session) record(reason EndReason) {
	e := s.engine
	settled := time.NewTimer(settleTimeout)
	defer settled.Stop()
	for waiting := true; waiting && s.ledger.account().commits > 0; {
		select {
		case <-s.ledger.changed:
		case <-settled.C:
			waiting = false // End waits for them, or shuts them out
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

	for try, timeout := 1, recordTimeout; ; try, timeout = try+1, min(2*timeout, longestRecord) {
		ctx, cancel := recordContext(e, timeout)
		row, err := e.store.End(ctx, s.row.ID, closing)
		cancel()
		if err == nil && row.Generated == nil {
			err = ErrSessionEnded // as interrupted, by another program
		}
		// A row that somebody deleted or closed does not come back.
		over := err == nil || errors.Is(err, ErrNoSession) || errors.Is(err, ErrSessionEnded) || e.stopping()

		e.mu.Lock()
		s.notYet, s.fault = err, err
		if err == nil {
			s.row, s.recorded = row, true
			if acknowledged := s.ledger.account().stored; *row.Stored < acknowledged {
				s.fault = &MissingRowsError{Acknowledged: acknowledged, Rows: *row.Stored}
			}
		}
		if over && s.fault != nil {
			e.fault = fmt.Errorf("session %d: %w", s.row.ID, s.fault)
		}
		summary := s.summary()
		e.mu.Unlock()
		if try == 1 || over {
			say(e.log, summary, err)
		}
		if over {
			e.mu.Lock()
			s.state = Idle
			e.mu.Unlock()
		}
		if try == 1 {
			close(s.ended)
		}
		if over {
			return
		}
		retry.Pause(e.running, recordRetry)
	}
}

// recordContext ends after the timeout. While the program runs, asking it to
// stop leaves what is left of the time for that, and half a second at least.
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

package ms1

import (
	"context"
	"errors"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// session is a session under way, or what is left of the last one. The
// engine's mutex guards it but for the channels.
type session struct {
	row      Session
	interval time.Duration
	began    time.Time     // by the monotonic clock
	total    time.Duration // 0 while under way
	state    State
	drained  bool  // nothing is under way any more, but for commits
	recorded bool  // the figures of the row are the database's
	notYet   error // why they are not recorded
	hops     *hopMeter

	last       message.Stamp // of the newest key
	rounds     map[message.Stamp]*round
	givenUp    map[message.Stamp]struct{}
	committing int // rounds in the committer
	generated  int64
	stored     int64
	resent     int64
	duplicates int64

	slots chan struct{} // a token for each message that may yet be under way
	stop  chan EndReason
	poke  chan struct{} // a commit has its outcome
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
func (e *engine) interact(s *session) {
	e.log.Info().Int64("session_id", s.row.ID).Msgf("session %d begins: %s, %d in flight", s.row.ID, s.interval, s.row.InFlight)
	reason := e.generate(s)
	e.drain(s, reason)
	e.record(s, reason)
}

// generate makes messages while slots are free, until the interval is over or
// the session is stopped.
func (e *engine) generate(s *session) EndReason {
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
		default:
		}
		select {
		case reason := <-s.stop:
			return reason
		case <-interval.C:
			return IntervalElapsed
		case <-sweep.C:
			e.sweep(s, false)
		case <-s.slots:
			e.makeRound(s)
		}
	}
}

// drain waits until every message came back or was given up. When the
// interval is over each message has its full time; a stop ends all of them
// after the drain time.
func (e *engine) drain(s *session, reason EndReason) {
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
	// Every slot is free again when as many tokens as there are were taken.
	for back := 0; back < s.row.InFlight && (deadline.IsZero() || time.Now().Before(deadline)); {
		select {
		case <-s.slots:
			back++
		case <-s.stop:
			if deadline.IsZero() {
				deadline = time.Now().Add(drainTime)
			}
		case <-sweep.C:
			e.sweep(s, false)
		}
	}
	e.sweep(s, true)
	e.mu.Lock()
	s.drained = true
	e.mu.Unlock()
}

// record writes the last figures of a drained session into its row, says them
// and makes way for the next session. If the database is away it says so and
// tries again until it is back or the program stops.
func (e *engine) record(s *session, reason EndReason) {
	settled := time.NewTimer(settleTimeout)
	defer settled.Stop()
	for waiting := true; waiting; {
		e.mu.Lock()
		waiting = s.committing > 0
		e.mu.Unlock()
		if waiting {
			select {
			case <-s.poke:
			case <-settled.C:
				waiting = false // End waits for them, or shuts them out
			}
		}
	}

	e.mu.Lock()
	s.total = time.Since(s.began)
	closing := Closing{
		EndedAt: max(message.StampOf(e.now()), s.last), Generated: s.generated,
		Resent: s.resent, Duplicates: s.duplicates, Reason: reason,
	}
	s.row.EndedAt, s.row.EndReason = closing.EndedAt, &closing.Reason
	e.mu.Unlock()

	for try, timeout := 1, recordTimeout; ; try, timeout = try+1, min(2*timeout, longestRecord) {
		ctx, cancel := e.recordContext(timeout)
		row, err := e.store.End(ctx, s.row.ID, closing)
		cancel()
		if err == nil && row.Generated == nil {
			err = ErrSessionEnded // as interrupted, by another program
		}
		// A row that somebody deleted or closed does not come back.
		over := err == nil || errors.Is(err, ErrNoSession) || errors.Is(err, ErrSessionEnded) || e.stopping()

		e.mu.Lock()
		s.notYet = err
		if err == nil {
			s.row, s.recorded = row, true
		}
		summary := s.summary()
		e.mu.Unlock()
		if try == 1 || over {
			e.say(summary, err)
		}
		if over {
			e.finish(s)
		}
		if try == 1 {
			close(s.ended)
		}
		if over {
			return
		}
		select {
		case <-time.After(recordRetry):
		case <-e.quit:
		}
	}
}

// recordContext ends after the timeout. While the program runs, asking it to
// stop leaves what is left of the time for that, and half a second at least.
func (e *engine) recordContext(timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	go func() {
		select {
		case <-e.quit:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(max(time.Until(e.quitAt.Add(shutdownTimeout)), settleTimeout/2)):
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// finish forgets the messages of a session and makes way for the next.
func (e *engine) finish(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.state = Idle
	s.rounds, s.givenUp = nil, nil
}

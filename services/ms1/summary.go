package ms1

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

// statusTimeout bounds the read of the last session's row, which late messages
// may have changed.
const statusTimeout = time.Second

// Summary is a session with the figures that only its process has.
type Summary struct {
	Session
	TotalSeconds *float64 `json:"total_seconds"`   // by the monotonic clock, drain included; nil if another process ran it
	Hops         *Hops    `json:"hops"`            // nil until a message is stored, or if another process ran it
	Error        string   `json:"-"`               // why the figures are not recorded, or that rows are missing
	Problem      string   `json:"error,omitempty"` // the same for everybody, without addresses and accounts
	inFlight     int      // at the moment of the other figures
}

// Status is the answer to GET /status.
type Status struct {
	State    State    `json:"state"`
	Session  *Summary `json:"session"`            // the current or the last one; nil before the first
	InFlight int      `json:"messages_in_flight"` // generated, and neither stored nor given up
}

// summary returns the current figures. The caller holds the engine's mutex.
func (s *runner) summary() Summary {
	sum := Summary{Session: s.row}
	if s.ledger == nil {
		return sum
	}
	account := s.ledger.account()
	sum.Hops, sum.inFlight = s.ledger.hopsUntilNow().hops(), account.busy
	total := s.total
	if total == 0 {
		total = time.Since(s.began)
	}
	sum.TotalSeconds = new(total.Seconds())
	if s.fault != nil {
		sum.Error, sum.Problem = s.fault.Error(), problem(s.fault)
	}
	if !s.recorded {
		sum.Generated, sum.Stored, sum.Lost = new(account.generated), new(account.stored), new(account.generated-account.stored)
		sum.Resent, sum.Duplicates = new(account.resent), new(account.duplicates)
	}
	return sum
}

// status returns the current or the last session.
func (e *engine) status(ctx context.Context) Status {
	e.mu.Lock()
	s := e.current
	if s == nil {
		e.mu.Unlock()
		return Status{State: Idle}
	}
	state, sum, recorded := s.state, s.summary(), s.recorded
	e.mu.Unlock()
	if recorded {
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		if row, err := e.store.Session(ctx, sum.ID); err == nil {
			sum.Session = row // lost messages may have returned since
		}
	}
	return Status{State: state, Session: &sum, InFlight: sum.inFlight}
}

// sessionRow returns the columns of a session, for the current one with its
// current figures. Its errors are ErrNoSession and the store's.
func (e *engine) sessionRow(ctx context.Context, id int64) (Session, error) {
	e.mu.Lock()
	if s := e.current; s != nil && s.row.ID == id && !s.recorded {
		defer e.mu.Unlock()
		return s.summary().Session, nil
	}
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	return e.store.Session(ctx, id)
}

// logSummary logs the end of a session at every level.
func logSummary(log zerolog.Logger, s Summary, notRecorded error) {
	line := func() *zerolog.Event { return log.Log().Int64("session_id", s.ID) }
	reason := string(*s.EndReason)
	if notRecorded != nil {
		reason += "; NOT RECORDED in the database: " + notRecorded.Error()
	}
	if notRecorded == nil && s.Error != "" {
		reason += "; ERROR: " + s.Error
	}
	line().Interface("session", s).Msgf("session %d ended (%s)", s.ID, reason)
	line().Msgf("session %d: total time of the interaction: %.3f s", s.ID, *s.TotalSeconds)
	line().Msgf("session %d: messages generated: %d", s.ID, *s.Generated)
	line().Msgf("session %d: stored %d, resent %d, duplicates %d, lost %d", s.ID, *s.Stored, *s.Resent, *s.Duplicates, *s.Lost)
	if h := s.Hops; h != nil {
		line().Msgf("session %d: ms1 to ms2: %s", s.ID, h.ToMS2)
		line().Msgf("session %d: ms2 to ms3: %s", s.ID, h.ToMS3)
		line().Msgf("session %d: ms3 to ms1: %s", s.ID, h.ToMS1)
		line().Msgf("session %d: whole round: %s", s.ID, h.Round)
		if h.Commit != nil {
			line().Msgf("session %d: commit: %s", s.ID, h.Commit)
		}
	}
}

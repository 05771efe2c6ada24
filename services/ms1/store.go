package ms1

import (
	"context"
	"errors"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// Session is one interaction: a row of the table sessions. Its JSON members
// are the columns.
type Session struct {
	ID              int64         `json:"id"`
	StartedAt       message.Stamp `json:"started_at"`
	EndedAt         message.Stamp `json:"ended_at"` // 0 while it is open
	IntervalSeconds int           `json:"interval_seconds"`
	InFlight        int           `json:"in_flight"`
	Generated       *int64        `json:"generated"`  // keys made; nil if unknown
	Stored          *int64        `json:"stored"`     // rows
	Resent          *int64        `json:"resent"`     // sends of a message beyond its first
	Duplicates      *int64        `json:"duplicates"` // answers 200 of /store that added no row
	Lost            *int64        `json:"lost"`       // generated - stored
	EndReason       *EndReason    `json:"end_reason"` // nil while it is open
}

// EndReason is the reason for the end of a session.
type EndReason string

// The reasons for the end of a session.
const (
	IntervalElapsed EndReason = "interval elapsed"
	Stopped         EndReason = "stopped"     // GET /stop
	Shutdown        EndReason = "shutdown"    // the program was stopped
	Interrupted     EndReason = "interrupted" // the program died, or another one closed or deleted the row
)

// Opening is the row of a session that begins.
type Opening struct {
	StartedAt       message.Stamp
	IntervalSeconds int
	InFlight        int
}

// Closing is the figures that a session's end adds to its row. Stored and lost
// follow from the rows of messages.
type Closing struct {
	EndedAt    message.Stamp
	Generated  int64
	Resent     int64
	Duplicates int64
	Reason     EndReason
	Lost       []LostMessage // the newest
}

// LostMessage is a row of the table lost_messages.
type LostMessage struct {
	Service1 message.Stamp `json:"service1_timestamp"`
	Reason   string        `json:"reason"`
}

// Finish ends the session with the figures of c and the number of its rows.
// The end is never before the start, whatever the clock did between them. The
// figures of an [Interrupted] session are unknown, except its rows.
func (s *Session) Finish(c Closing, rows int64) {
	s.EndedAt = max(c.EndedAt, s.StartedAt)
	s.Stored = &rows
	s.EndReason = &c.Reason
	if c.Reason != Interrupted {
		s.Generated, s.Resent, s.Duplicates, s.Lost = &c.Generated, &c.Resent, &c.Duplicates, new(c.Generated-rows)
	}
}

// maxSkew is how far clocks may differ: those of the three services, and MS1's
// before and after it was set.
const maxSkew = 24 * time.Hour

// Outcome is the result of storing a returned message.
type Outcome string

// The outcomes of a message on /store.
const (
	OutcomeStored  Outcome = "stored"  // it has a row now
	OutcomeRepeat  Outcome = "repeat"  // it had a row before
	OutcomeUnknown Outcome = "unknown" // no session has sent it, or none waits for it
)

// late decides on a message that no running session waits for, by the row of its
// session and whether it has one itself. If the message is to be stored, late
// counts it in the session's row.
//
// A session that has ended with lost messages takes a first stamp that lies
// within it, both ends included, and counts one lost message less. How many an
// interrupted one lost is unknown: it takes a first stamp from its start until
// its interval or it was over, and [maxSkew] more. No other session takes any.
//
// The second and third stamp must not be before the first or after the end,
// which MS1 has just set, by more than maxSkew.
func late(row *Session, exists bool, m message.Message) Outcome {
	const skew = message.Stamp(maxSkew / time.Microsecond)
	interval := message.Stamp(row.IntervalSeconds) * 1e6
	switch {
	case exists:
		return OutcomeRepeat
	case row.EndReason == nil || row.Stored == nil || m.Service1 < row.StartedAt,
		min(m.Service2, m.Service3) < m.Service1-skew,
		max(m.Service1, m.Service2, m.Service3) > m.End+skew:
		return OutcomeUnknown
	case row.Lost == nil:
		if m.Service1 > min(row.EndedAt, row.StartedAt+interval)+skew {
			return OutcomeUnknown
		}
	case m.Service1 > row.EndedAt || *row.Lost <= 0:
		return OutcomeUnknown
	default:
		row.Lost = new(*row.Lost - 1)
	}
	row.Stored = new(*row.Stored + 1)
	return OutcomeStored
}

// StoreLate decides on a message that no running session waits for, and stores
// it if it should. Repeats and unknown messages cost one read without a lock, and
// no transaction.
func StoreLate(ctx context.Context, s Store, m message.Message) (Outcome, error) {
	row, exists, err := s.Look(ctx, m.Key())
	outcome := OutcomeUnknown
	if err == nil {
		outcome = late(&row, exists, m)
	}
	if err == nil && outcome == OutcomeStored {
		err = s.Amend(ctx, m, func(row *Session, exists bool) bool {
			outcome = late(row, exists, m)
			return outcome == OutcomeStored
		})
	}
	switch {
	case errors.Is(err, ErrNoSession):
		return OutcomeUnknown, nil
	case err != nil:
		return "", err
	}
	return outcome, nil
}

// ErrSessionEnded is the error of [Store.Insert] for a session that is not open.
var ErrSessionEnded = errors.New("session is not open in the database")

// ErrNoSession is the error of [Store.Session] for an unknown number.
var ErrNoSession = errors.New("no such session")

// Store stores sessions and messages. Run ensures that one program at a time uses
// a store.
//
// A method that returns no error has committed its changes. All but Run retry
// after transient errors (a dead connection, a deadlock, a commit with an unknown
// outcome) until ctx ends, and then return the last error instead of ctx's.
// Calling one again after an error is safe: the first row of a key wins, and
// nothing is counted twice.
type Store interface {
	// System returns OpenTelemetry's db.system.name.
	System() string

	// Run connects, locks the store for this program, migrates its schema and
	// keeps the lock until ctx is cancelled, when it closes the store. It returns
	// early only with a permanent error: another program holds the lock, or the
	// schema is newer than this program.
	Run(ctx context.Context) error

	// Ready returns nil if a row could be committed now, else the reason.
	Ready(ctx context.Context) error

	// CloseInterrupted ends every open session as interrupted at the given
	// time, but not before its start. Stored is the number of its rows;
	// generated, resent, duplicates and lost stay unknown. It returns the
	// sessions that it has closed.
	CloseInterrupted(ctx context.Context, at message.Stamp) ([]Session, error)

	// Begin opens a session and returns its number, which is new.
	Begin(ctx context.Context, o Opening) (id int64, err error)

	// Insert stores messages of one session, with all four stamps, in one
	// commit. It does not change existing rows. After nil every message of the
	// batch has a row. In a session that is not open it adds nothing, so a
	// delayed statement cannot add a row after End has counted; it returns
	// ErrSessionEnded unless every message has a row.
	Insert(ctx context.Context, sessionID int64, batch []message.Message) error

	// End counts the rows of the session and writes its final figures and its
	// lost messages, except those that have a row, in one transaction that waits
	// for a running Insert. It does not change a session that has ended. It
	// returns the row, or ErrNoSession.
	End(ctx context.Context, sessionID int64, c Closing) (Session, error)

	// Look returns the row of a message's session and whether the message has
	// a row, in one read without a lock, or ErrNoSession.
	Look(ctx context.Context, key message.Key) (row Session, exists bool, err error)

	// Stored reports whether every message of the batch, which is not empty and of
	// one session, has a row, in one read without a lock.
	Stored(ctx context.Context, sessionID int64, batch []message.Message) (bool, error)

	// Amend calls decide in a transaction that locks the row of the message's
	// session, with that row and whether the message has one. If decide returns
	// true, Amend inserts the message, deletes it from the lost ones and writes
	// the session's row as decide has left it. A retried transaction calls decide
	// again. Without such a session it returns ErrNoSession.
	Amend(ctx context.Context, m message.Message, decide func(row *Session, exists bool) (add bool)) error

	// Session returns the row of a session, or ErrNoSession.
	Session(ctx context.Context, id int64) (Session, error)

	// LostMessages returns the first lost messages of a session in the order of
	// their keys, at most limit.
	LostMessages(ctx context.Context, id int64, limit int) ([]LostMessage, error)

	// Sessions returns the sessions with the highest numbers below before, or of
	// all if that is 0: the newest first, at most limit.
	Sessions(ctx context.Context, before int64, limit int) ([]Session, error)

	// Messages returns messages of a session, none if there is no such session.
	// It does not delay commits.
	Messages(ctx context.Context, sessionID int64, s Selection) ([]message.Message, error)
}

// Selection selects messages of a session.
type Selection struct {
	Slowest bool          // those with the longest round, the longest first; else in the order of their keys
	After   message.Stamp // those with a later first stamp, unless Slowest is set
	Limit   int           // at most as many
}

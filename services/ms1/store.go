package ms1

import (
	"context"
	"errors"

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

// EndReason says why a session ended.
type EndReason string

// The reasons for the end of a session.
const (
	IntervalElapsed EndReason = "interval elapsed"
	Stopped         EndReason = "stopped"     // GET /stop
	Shutdown        EndReason = "shutdown"    // the program was asked to stop
	Interrupted     EndReason = "interrupted" // the program died; closed by its next start
)

// Opening is what is known of a session when it begins.
type Opening struct {
	StartedAt       message.Stamp
	IntervalSeconds int
	InFlight        int
}

// Closing is what a session's end adds to its row. Stored and lost are not
// here: they follow from the rows.
type Closing struct {
	EndedAt    message.Stamp
	Generated  int64
	Resent     int64
	Duplicates int64
	Reason     EndReason
}

// Finish ends the session with the figures of c and the number of its rows.
// The end is never before the start, whatever the clock did between them. The
// figures of an [Interrupted] session are unknown, except its rows.
func (s *Session) Finish(c Closing, rows int64) {
	s.EndedAt = max(c.EndedAt, s.StartedAt)
	s.Stored = &rows
	s.EndReason = &c.Reason
	if c.Reason != Interrupted {
		lost := c.Generated - rows
		s.Generated, s.Resent, s.Duplicates, s.Lost = &c.Generated, &c.Resent, &c.Duplicates, &lost
	}
}

// AddLate counts one more row if the rules of [Store.StoreLate] let the
// session have a message with this first stamp, and says whether they do.
func (s *Session) AddLate(service1 message.Stamp) bool {
	switch {
	case s.EndReason == nil || s.Stored == nil || service1 < s.StartedAt:
		return false
	case s.Lost == nil: // interrupted: its last sends may be later than any time known here
	case service1 > s.EndedAt || *s.Lost <= 0:
		return false
	default:
		*s.Lost--
	}
	*s.Stored++
	return true
}

// Late is what became of a message that no session under way waits for.
type Late int

// The outcomes of [Store.StoreLate].
const (
	Unknown  Late = iota // never sent, as far as the store can tell; nothing was stored
	Repeated             // its row exists; nothing was changed
	Added                // its row was added
)

// ErrSessionEnded is the error of [Store.Insert] for a session that is not open.
var ErrSessionEnded = errors.New("the session is not open in the database")

// ErrNoSession is the error of [Store.Session] for a number never given.
var ErrNoSession = errors.New("no such session")

// Store keeps sessions and messages. One program at a time uses a store; the
// adapters see to that in Run.
//
// Every method that returns without error has committed what it did. All but
// Run repeat what can be repeated (a connection that died, a deadlock, a
// commit whose outcome is unknown) until ctx ends, and then return the last
// error, not ctx's. Calling one again after an error is always safe: the first
// row of a key wins, and nothing is counted twice.
type Store interface {
	// System names what the store is in: db.system.name of OpenTelemetry.
	System() string

	// Run connects, takes the store for this program alone, brings its schema
	// up to date and keeps both so until ctx is cancelled, when it closes the
	// store. It returns early, with an error, only for what repeating cannot
	// mend: another program holds the store, or its schema is newer than
	// this program.
	Run(ctx context.Context) error

	// Ready returns nil if the store can be used now, else what is missing.
	Ready(ctx context.Context) error

	// CloseInterrupted ends every session that is still open as interrupted at
	// the given time (never before its own start): stored is the count of its
	// rows; generated, resent, duplicates and lost stay unknown. It returns
	// the sessions it closed.
	CloseInterrupted(ctx context.Context, at message.Stamp) ([]Session, error)

	// Begin opens a session and returns its number, which was never used before.
	Begin(ctx context.Context, o Opening) (id int64, err error)

	// Insert stores the messages, which all belong to the session and have all
	// four stamps, in one commit. A message whose key has a row already
	// changes nothing. On nil every message of the batch has a row. If the
	// session is not open it adds nothing, so no statement that was delayed
	// on its way can add a row behind the figures of End; it fails then with
	// ErrSessionEnded, unless every message has its row already.
	Insert(ctx context.Context, sessionID int64, batch []message.Message) error

	// End counts the rows of the session and writes its last figures, in one
	// transaction that waits for an Insert under way. For a session that has
	// ended already it changes nothing. It returns the row, or ErrNoSession.
	End(ctx context.Context, sessionID int64, c Closing) (Session, error)

	// StoreLate decides, in one transaction, on a message that no session
	// under way waits for. Its row exists: Repeated. Its session has ended
	// with lost > 0 and its first stamp lies within the session (both ends
	// included): it is stored and moves one from lost to stored. Its session
	// was interrupted and its first stamp is not before the session's start:
	// it is stored and counted in stored. Anything else: Unknown.
	StoreLate(ctx context.Context, m message.Message) (Late, error)

	// Session returns the row of a session, or ErrNoSession.
	Session(ctx context.Context, id int64) (Session, error)

	// LastSession returns the row with the highest number, or ErrNoSession.
	LastSession(ctx context.Context) (Session, error)
}

package ms1

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// notReadyError is the error of a start while something is missing.
type notReadyError struct{ missing map[string]error }

func (e *notReadyError) Error() string {
	parts := make([]string, 0, len(e.missing))
	for _, name := range slices.Sorted(maps.Keys(e.missing)) {
		parts = append(parts, fmt.Sprintf("%s: %v", name, e.missing[name]))
	}
	return "not ready: " + strings.Join(parts, "; ")
}

// busyError is the error of a start while another session starts, runs or
// drains.
type busyError struct {
	sessionID int64 // 0 if it has no number yet
	state     State
}

func (e *busyError) Error() string {
	if e.sessionID == 0 {
		return "a session is starting"
	}
	return fmt.Sprintf("session %d is %s", e.sessionID, e.state)
}

// errIdle is the error of a stop when no session is running or draining.
var errIdle = errors.New("no session is running")

// problem returns what every client may read of a session's fault. Only the log
// has causes, which contain addresses and accounts of the database.
func problem(fault error) string {
	if errors.Is(fault, ErrNoSession) || errors.Is(fault, ErrSessionEnded) || errors.As(fault, new(*missingRowsError)) {
		return fault.Error()
	}
	return "figures not recorded: database not ready"
}

// missingRowsError is the error of a session with fewer rows than messages
// whose storing was acknowledged.
type missingRowsError struct{ acknowledged, rows int64 }

func (e *missingRowsError) Error() string {
	return fmt.Sprintf("count rows: must be at least %d acknowledged, got %d", e.acknowledged, e.rows)
}

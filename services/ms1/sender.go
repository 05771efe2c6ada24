package ms1

import (
	"context"
	"time"
)

// send writes what is in the outbox of the session under way to the link.
func send(ctx context.Context, e *engine) {
	var broken uint64 // the connection that failed last
	for {
		e.mu.Lock()
		s := e.session
		e.mu.Unlock()
		var m *entry
		var using uint64
		if s != nil && s.ledger != nil {
			m, using = s.ledger.next(broken)
		}
		if m == nil {
			select {
			case <-e.outboxed:
				continue
			case <-ctx.Done():
				return
			}
		}
		connection, err := e.link.Send(m.message.Encode())
		if err != nil {
			broken = using
		}
		s.ledger.written(m, connection, err, time.Now())
	}
}

package ms1

import (
	"context"
	"time"
)

// send writes the outbox of the current session to the transport.
func send(ctx context.Context, e *engine) {
	var broken uint64 // the connection that failed last
	for {
		e.mu.Lock()
		s := e.current
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
		connection, err := e.transport.Send(m.message.Encode())
		if err != nil {
			broken = using
		}
		s.ledger.written(m, connection, err, time.Now())
	}
}

package ms1

import (
	"context"
	"time"
)

const (
	// maxFrames is the number of messages in a write to the transport.
	maxFrames = 64
	// maxDirect is the number of messages in flight up to which the end of a
	// commit sends the next ones itself. Their frames fit into the buffers of any
	// connection, so a peer that does not read delays no commit.
	maxDirect = 16
)

// send writes the outbox of the current session to the transport whenever there
// is something in it.
func send(ctx context.Context, e *engine) {
	for {
		e.flush()
		select {
		case <-e.outboxed:
		case <-ctx.Done():
			return
		}
	}
}

// flush writes the outbox of the current session, unless another goroutine does.
func (e *engine) flush() {
	for e.writing.TryLock() {
		for e.write() {
		}
		e.writing.Unlock()
		// Others leave to this goroutine the messages that they add meanwhile.
		if s := e.session(); s == nil || !s.ledger.waits(e.broken.Load()) {
			return
		}
	}
}

// write writes the messages that wait together and reports whether there were
// any. The caller holds the lock.
func (e *engine) write() bool {
	s := e.session()
	if s == nil {
		return false
	}
	var using uint64
	if e.batch, using = s.ledger.next(e.broken.Load(), e.batch[:0]); len(e.batch) == 0 {
		return false
	}
	e.frames, e.encoded = e.frames[:0], e.encoded[:0]
	for _, m := range e.batch {
		begin := len(e.encoded)
		e.encoded = m.message.Append(e.encoded)
		e.frames = append(e.frames, e.encoded[begin:])
	}
	connection, err := e.transport.Send(e.frames...)
	if err != nil {
		e.broken.Store(using)
	}
	s.ledger.written(e.batch, connection, err, time.Now())
	clear(e.batch)
	return true
}

// session returns the current session if it has messages to send.
func (e *engine) session() *runner {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.current; s != nil && s.ledger != nil {
		return s
	}
	return nil
}

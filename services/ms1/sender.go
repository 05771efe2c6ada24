package ms1

import (
	"context"
	"sync"
	"sync/atomic"
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

// sender writes the outbox of the current session to the transport.
type sender struct {
	engine *engine
	filled chan struct{} // something to send, or a connection to send it on
	unsent atomic.Bool   // the same, since a goroutine last began to write

	writing sync.Mutex // held by the goroutine that writes; guards the rest
	broken  uint64     // the connection that failed last
	batch   []*entry   // being written
	frames  [][]byte   // their encoding
	encoded []byte     // the memory of frames
}

// run writes whenever there is something in the outbox, until ctx ends.
func (s *sender) run(ctx context.Context) {
	for {
		s.flush()
		select {
		case <-s.filled:
		case <-ctx.Done():
			return
		}
	}
}

// flush writes the outbox, or leaves it to the goroutine that does already.
func (s *sender) flush() {
	s.unsent.Store(true)
	for s.unsent.Load() && s.writing.TryLock() {
		s.unsent.Store(false)
		for s.write() {
		}
		s.writing.Unlock()
	}
}

// write writes the messages that wait together and reports whether there were
// any. The caller holds the lock.
func (s *sender) write() bool {
	l := s.engine.ledger()
	if l == nil {
		return false
	}
	var using uint64
	if s.batch, using = l.next(s.broken, s.batch[:0]); len(s.batch) == 0 {
		return false
	}
	s.frames, s.encoded = s.frames[:0], s.encoded[:0]
	for _, m := range s.batch {
		begin := len(s.encoded)
		s.encoded = m.message.Append(s.encoded)
		s.frames = append(s.frames, s.encoded[begin:])
	}
	connection, err := s.engine.transport.Send(s.frames...)
	if err != nil {
		s.broken = using
	}
	l.written(s.batch, connection, err, time.Now())
	clear(s.batch)
	return true
}

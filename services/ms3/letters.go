package ms3

import (
	"context"
	"sync"

	"github.com/segmentio/kafka-go"
)

// Bounds of a request that writes dead letters. A larger letter goes alone.
const (
	maxLetters     = 256
	maxLetterBytes = 256 << 10
)

// letters writes dead letters. Those that arrive while a request is in flight
// share the next one. Thus a flood of refused records does not delay the
// messages among them.
type letters struct {
	produce func(ctx context.Context, batch ...kafka.Message) error

	mu      sync.Mutex
	queue   []letter
	writing bool
}

type letter struct {
	message kafka.Message
	done    chan<- error
}

// write returns when the letter is written or refused.
func (l *letters) write(ctx context.Context, m kafka.Message) error {
	done := make(chan error, 1)
	l.mu.Lock()
	l.queue = append(l.queue, letter{m, done})
	first := !l.writing
	l.writing = true
	l.mu.Unlock()
	if first {
		go l.run(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run writes until the queue is empty.
func (l *letters) run(ctx context.Context) {
	for batch := l.next(); len(batch) > 0; batch = l.next() {
		messages := make([]kafka.Message, len(batch))
		for i, m := range batch {
			messages[i] = m.message
		}
		err := l.produce(ctx, messages...)
		alone := len(batch) > 1 && isPermanent(err) // one letter may be the cause
		for _, m := range batch {
			if alone {
				err = l.produce(ctx, m.message)
			}
			m.done <- err
		}
	}
}

// next takes a batch out of the queue. An empty batch ends the run.
func (l *letters) next() []letter {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, bytes := 0, 0
	for n < min(len(l.queue), maxLetters) {
		if bytes += size(l.queue[n].message); n > 0 && bytes > maxLetterBytes {
			break
		}
		n++
	}
	batch := l.queue[:n:n]
	if l.queue = l.queue[n:]; n == 0 {
		l.queue, l.writing = nil, false
	}
	return batch
}

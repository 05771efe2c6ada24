package ms1

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
)

const (
	// commitTimeout bounds the attempts of an INSERT and the wait of /store.
	commitTimeout = 3 * time.Second
	// maxBatch is the number of rows in a commit. More do not help and lock the
	// session's row longer.
	maxBatch = 64
)

var errStopping = errors.New("service is stopping")

// committer stores messages, one commit at a time. Messages that arrive during a
// commit go together into the next one; a message that arrives alone does not
// wait.
type committer struct {
	store   Store
	queue   chan insert
	stopped chan struct{}
}

// insert is a message on its way into the store.
type insert struct {
	message message.Message
	span    trace.Span
	settle  func(error) // called once with the outcome
}

func newCommitter(store Store) *committer {
	return &committer{store: store, queue: make(chan insert, MaxInFlight), stopped: make(chan struct{})}
}

// add hands in a message. It waits while thousands wait already.
func (c *committer) add(in insert) {
	select {
	case c.queue <- in:
		select {
		case <-c.stopped:
			c.refuse() // it may have come after run's last look
		default:
		}
	case <-c.stopped:
		c.settle(in, 0, errStopping)
	}
}

// run commits until ctx is cancelled; what waits then fails.
func (c *committer) run(ctx context.Context) {
	defer c.refuse()
	defer close(c.stopped)
	var batch []insert
	var held *insert // of another session than the batch before it
	for {
		batch = batch[:0]
		if held != nil {
			batch, held = append(batch, *held), nil
		} else {
			select {
			case in := <-c.queue:
				batch = append(batch, in)
			case <-ctx.Done():
				return
			}
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case in := <-c.queue:
				if in.message.SessionID != batch[0].message.SessionID {
					held, more = &in, false
					continue
				}
				batch = append(batch, in)
			default:
				more = false
			}
		}
		c.commit(ctx, batch)
	}
}

func (c *committer) commit(ctx context.Context, batch []insert) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	rows := make([]message.Message, len(batch))
	for i, in := range batch {
		rows[i] = in.message
	}
	err := c.store.Insert(ctx, rows[0].SessionID, rows)
	for _, in := range batch {
		c.settle(in, len(batch), err)
	}
}

func (c *committer) settle(in insert, batchSize int, err error) {
	if batchSize > 1 {
		in.span.SetAttributes(semconv.DBOperationBatchSize(batchSize))
	}
	if err != nil {
		in.span.SetStatus(codes.Error, err.Error())
		in.span.SetAttributes(attribute.String(string(semconv.ErrorTypeKey), "commit_failed"))
	}
	in.span.End()
	in.settle(err)
}

// refuse fails what waits in the queue.
func (c *committer) refuse() {
	for {
		select {
		case in := <-c.queue:
			c.settle(in, 0, errStopping)
		default:
			return
		}
	}
}

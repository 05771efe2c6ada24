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
	// maxBatch is the number of rows that complete a commit. More do not help and
	// lock the session's row longer. The rows of a request stay together, so a
	// commit has less than maxBatch + maxLines.
	maxBatch = 64
)

var errStopping = errors.New("service is stopping")

// committer stores messages, one commit at a time. Messages that arrive during a
// commit go together into the next one; a message that arrives alone does not
// wait.
type committer struct {
	store   Store
	queue   chan []insert // each of one session
	stopped chan struct{}
}

// insert is a message on its way into the store.
type insert struct {
	message message.Message
	span    trace.Span
	settle  func(error) // called once with the outcome
}

func newCommitter(store Store) *committer {
	return &committer{store: store, queue: make(chan []insert, MaxInFlight), stopped: make(chan struct{})}
}

// add queues messages of one session, which are committed together. It blocks
// while thousands wait.
func (c *committer) add(ins []insert) {
	if len(ins) == 0 {
		return
	}
	select {
	case c.queue <- ins:
		select {
		case <-c.stopped:
			c.refuse() // it may have come after run's last look
		default:
		}
	case <-c.stopped:
		c.settle(ins, errStopping)
	}
}

// run commits until ctx is cancelled; what waits then fails.
func (c *committer) run(ctx context.Context) {
	defer c.refuse()
	defer close(c.stopped)
	var batch, held []insert // held: of another session than the batch before it
	for {
		if batch, held = append(batch[:0], held...), nil; len(batch) == 0 {
			select {
			case ins := <-c.queue:
				batch = append(batch, ins...)
			case <-ctx.Done():
				return
			}
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case ins := <-c.queue:
				if ins[0].message.SessionID != batch[0].message.SessionID {
					held, more = ins, false
					continue
				}
				batch = append(batch, ins...)
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
	c.settle(batch, c.store.Insert(ctx, rows[0].SessionID, rows))
}

func (c *committer) settle(batch []insert, err error) {
	for _, in := range batch {
		if len(batch) > 1 {
			in.span.SetAttributes(semconv.DBOperationBatchSize(len(batch)))
		}
		if err != nil {
			in.span.SetStatus(codes.Error, err.Error())
			in.span.SetAttributes(attribute.String(string(semconv.ErrorTypeKey), "commit_failed"))
		}
		in.span.End()
		in.settle(err)
	}
}

// refuse fails what waits in the queue.
func (c *committer) refuse() {
	for {
		select {
		case ins := <-c.queue:
			c.settle(ins, errStopping)
		default:
			return
		}
	}
}

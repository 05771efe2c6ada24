package ms1

import (
	"context"
	"errors"
	"sync"
	"time"

	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
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

// committer stores messages, one commit at a time. A request that finds it idle
// commits its messages in its own goroutine. Messages that arrive during a commit
// go together into the next one.
type committer struct {
	store   Store
	settled func(batch []insert, err error) // called once for each message
	context context.Context                 // of the commits
	cancel  func()

	mu      sync.Mutex
	queue   [][]insert // each of one session; empty unless busy
	busy    bool       // a goroutine commits
	stopped bool
	commits sync.WaitGroup // that goroutine
}

// insert is a message on its way into the store.
type insert struct {
	message message.Message
	span    trace.Span
	session *runner
	entry   *entry
}

func newCommitter(store Store, settled func(batch []insert, err error)) *committer {
	c := &committer{store: store, settled: settled}
	c.context, c.cancel = context.WithCancel(context.Background())
	return c
}

// add adds messages of one session, which are committed together. If no commit is
// running, it returns when these messages have their outcome.
func (c *committer) add(ins []insert) {
	if len(ins) == 0 {
		return
	}
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		c.settle(ins, errStopping)
		return
	}
	if c.busy {
		c.queue = append(c.queue, ins)
		c.mu.Unlock()
		return
	}
	c.busy = true
	c.commits.Add(1)
	c.mu.Unlock()
	c.commit(ins)
	// The caller has its outcome. It does not work for the others.
	if batch := c.next(); batch != nil {
		go func() {
			for ; batch != nil; batch = c.next() {
				c.commit(batch)
			}
		}()
	}
}

// next takes the messages of the next commit out of the queue. Without any, the
// committer is idle.
func (c *committer) next() (batch []insert) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		c.queue, c.busy = nil, false
		c.commits.Done()
		return nil
	}
	batch, c.queue[0] = c.queue[0], nil
	n := 1
	for ; n < len(c.queue) && len(batch) < maxBatch && c.queue[n][0].message.SessionID == batch[0].message.SessionID; n++ {
		batch, c.queue[n] = append(batch, c.queue[n]...), nil
	}
	c.queue = c.queue[n:]
	return batch
}

// run waits until ctx is cancelled. Messages that still wait then fail.
func (c *committer) run(ctx context.Context) {
	<-ctx.Done()
	c.mu.Lock()
	c.stopped = true
	left := c.queue
	c.queue = nil
	c.mu.Unlock()
	c.cancel()
	for _, ins := range left {
		c.settle(ins, errStopping)
	}
	c.commits.Wait()
}

func (c *committer) commit(batch []insert) {
	ctx, cancel := context.WithTimeout(c.context, commitTimeout)
	defer cancel()
	rows := make([]message.Message, len(batch))
	for i, in := range batch {
		rows[i] = in.message
	}
	c.settle(batch, c.store.Insert(ctx, rows[0].SessionID, rows))
}

func (c *committer) settle(batch []insert, err error) {
	for _, in := range batch {
		if !in.span.IsRecording() {
			continue
		}
		if len(batch) > 1 {
			in.span.SetAttributes(semconv.DBOperationBatchSize(len(batch)))
		}
		if err != nil {
			telemetry.Fail(in.span, "commit_failed", err.Error())
		}
		in.span.End()
	}
	c.settled(batch, err)
}

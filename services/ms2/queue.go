package ms2

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	queueLength = 4096 // messages; the largest in_flight of MS1
	batchLength = 100  // messages in a request
	stallTime   = 10 * time.Second
	refusedTime = 2 * time.Second  // of failing requests until MS2 is not ready, and without any until it is ready
	adaptTime   = 30 * time.Second // until a lane returns to its partition, or tries larger requests
)

// entry is a message to be written to Kafka. Its span ends when Kafka has
// acknowledged it.
type entry struct {
	key    message.Key
	record kafka.Message
	span   trace.Span
}

// queue holds the messages that were read and are not yet acknowledged by
// Kafka. Each partition has its own lane. As soon as its last request is
// answered, a lane sends everything it holds, up to a hundred messages: no
// message waits for a full batch. If its partition fails, it sends to the next
// one; the order of messages does not matter.
type queue struct {
	cluster *topic.Cluster
	topic   string
	metrics *metrics
	log     zerolog.Logger
	errors  zerolog.Logger // at most one event a second
	stalled func()         // called before the queue is dropped for lack of progress
	stall   time.Duration  // time without progress after which it is dropped

	slots   chan struct{}   // holds a token for each message in the queue
	open    context.Context // of the lanes
	stop    context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	lanes    []*lane // by partition
	numbers  []int   // 0, 1, 2, …: the partitions, for the balancer
	round    context.Context
	drop     context.CancelFunc // makes the lanes drop what they hold
	progress time.Time          // when Kafka last accepted a request, or the queue was empty

	failing   time.Time // since when every request fails, although the cluster is ready; zero if one succeeded
	refusal   error     // of the last request, if Kafka accepts no messages
	refusedAt time.Time
}

// lane is the messages of one partition.
type lane struct {
	number  int
	waiting []entry       // guarded by the queue's mutex
	wake    chan struct{} // holds a token while entries may be waiting

	// Used by its goroutine only.
	most      int       // messages in a request
	shift     int       // offset from the lane's own partition to the one it writes to
	shrunk    time.Time // when most was changed
	shiftedAt time.Time
}

func newQueue(cluster *topic.Cluster, name string, m *metrics, log zerolog.Logger, stalled func()) *queue {
	q := &queue{
		cluster: cluster, topic: name, metrics: m, log: log, stalled: stalled, stall: stallTime, progress: time.Now(),
		errors: logging.Limit(log),
		slots:  make(chan struct{}, queueLength),
	}
	q.open, q.stop = context.WithCancel(context.Background())
	q.round, q.drop = context.WithCancel(q.open)
	return q
}

// put adds a message to the queue. While the queue is full, it waits; if ctx
// ends first, it returns the cause.
func (q *queue) put(ctx context.Context, e entry) error {
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		e.fail("not_queued", "connection closed while the queue was full")
		return context.Cause(ctx)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := len(q.lanes); i < max(1, q.cluster.Partitions()); i++ {
		l := &lane{number: i, wake: make(chan struct{}, 1), most: batchLength}
		q.lanes, q.numbers = append(q.lanes, l), append(q.numbers, i)
		q.running.Go(func() { q.runLane(l) })
	}
	// The partitioner of Kafka's own clients: tools look for a key where it
	// puts the record.
	l := q.lanes[kafka.Murmur2Balancer{}.Balance(e.record, q.numbers...)]
	l.waiting = append(l.waiting, e)
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// run checks that Kafka accepts the messages. When ctx ends, it waits until all
// are written or drain ends, drops the rest and stops the lanes.
func (q *queue) run(ctx, drain context.Context) {
	for retry.Pause(ctx, q.stall/20) {
		q.watch()
	}
	for range cap(q.slots) { // the queue is empty when all can be taken
		select {
		case q.slots <- struct{}{}:
		case <-drain.Done():
		}
	}
	q.stop()
	q.running.Wait()
	q.dropAll()
}

func (q *queue) watch() {
	q.mu.Lock()
	if len(q.slots) == 0 {
		q.progress = time.Now()
	}
	stalled := time.Since(q.progress) > q.stall
	q.mu.Unlock()
	if !stalled {
		return
	}
	q.log.Warn().Int("messages", len(q.slots)).Stringer("without_progress", q.stall).Msg("kafka accepts nothing, queue dropped")
	q.stalled()
	q.dropAll()
}

// dropAll empties the lanes and cancels their requests.
func (q *queue) dropAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop()
	q.round, q.drop = context.WithCancel(q.open)
	q.progress = time.Now()
	for _, l := range q.lanes {
		for _, e := range l.waiting {
			q.dropped(e)
		}
		l.waiting = nil
	}
}

func (q *queue) dropped(e entry) {
	e.fail("dropped", "kafka did not accept the message")
	q.metrics.dropped.Inc()
	<-q.slots
}

// runLane sends the entries of the lane.
func (q *queue) runLane(l *lane) {
	var batch []entry
	for {
		select {
		case <-l.wake:
		case <-q.open.Done():
			return
		}
		if time.Since(l.shiftedAt) > adaptTime {
			l.shift = 0
		}
		if l.most < batchLength && time.Since(l.shrunk) > adaptTime {
			l.most, l.shrunk = min(2*l.most, batchLength), time.Now()
		}
		q.mu.Lock()
		round := q.round
		batch, l.waiting = l.waiting, batch[:0]
		q.mu.Unlock()
		q.send(round, l, batch)
		clear(batch)
	}
}

// send writes the batch to Kafka. It splits batches that are too large and
// retries until ctx ends, when it drops the rest.
func (q *queue) send(ctx context.Context, l *lane, batch []entry) {
	pause := retry.Backoff{First: 50 * time.Millisecond, Most: 500 * time.Millisecond}
	for len(batch) > 0 {
		part := batch[:min(len(batch), l.most)]
		records := make([]kafka.Message, len(part))
		for i, e := range part {
			records[i] = e.record
		}
		partition := q.cluster.Route(l.number + l.shift)
		offset, err := q.cluster.Produce(ctx, q.topic, partition, records...)
		if err == nil {
			q.produced(part, partition, offset)
			batch = batch[len(part):]
			pause.Reset()
			continue
		}
		if ctx.Err() == nil {
			q.metrics.retries.Inc()
			for _, e := range part {
				e.span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(topic.ErrorType(err))))
			}
			tooLarge := topic.TooLarge(err)
			if len(part) > 1 && (tooLarge || topic.Torn(err)) {
				l.most, l.shrunk = (len(part)+1)/2, time.Now()
				if tooLarge {
					q.log.Debug().Err(err).Int("messages", len(part)).Msg("batch split")
					continue
				}
			}
			if tooLarge {
				q.refused(fmt.Errorf("topic %s: max.message.bytes: must be at least %d: %w", q.topic, topic.MessageBytes, err), true)
			} else {
				l.shift, l.shiftedAt = l.shift+1, time.Now()
				q.refused(err, false)
			}
			q.errors.Warn().Err(err).Int("messages", len(part)).Int("partition", partition).Msg("produce request failed, retrying")
		}
		if pause.Wait(ctx) != nil {
			for _, e := range batch {
				q.dropped(e)
			}
			return
		}
	}
}

// produced records that Kafka has acknowledged entries.
func (q *queue) produced(entries []entry, partition int, offset int64) {
	q.mu.Lock()
	q.progress, q.failing, q.refusal = time.Now(), time.Time{}, nil
	q.mu.Unlock()
	q.metrics.produced.Add(float64(len(entries)))
	for i, e := range entries {
		if e.span.IsRecording() {
			e.span.SetAttributes(
				semconv.MessagingDestinationPartitionID(strconv.Itoa(partition)),
				semconv.MessagingKafkaOffset(int(offset)+i))
		}
		e.span.End()
		if event := q.log.Debug(); event.Enabled() {
			event.Bytes("key", e.record.Key).Stringer("trace_id", telemetry.TraceID(e.span, e.key)).
				Int("partition", partition).Int64("offset", offset+int64(i)).Msg("produced")
		}
		<-q.slots
	}
}

// refused notes an error of Kafka. If it is not known to concern every message,
// it must last for a while: a partition may be moving.
func (q *queue) refused(err error, all bool) {
	away := q.cluster.Ready(context.Background()) != nil
	q.mu.Lock()
	defer q.mu.Unlock()
	switch now := time.Now(); {
	case all, !away && !q.failing.IsZero() && now.Sub(q.failing) > refusedTime:
		q.refusal, q.refusedAt = err, now
	case away:
		q.failing = time.Time{}
	case q.failing.IsZero():
		q.failing = now
	}
}

// ready returns the error with which Kafka refuses every message, or nil. It
// forgets the error after a while without messages: only another message can
// show whether Kafka accepts it.
func (q *queue) ready() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.refusedAt) > refusedTime {
		return nil
	}
	return q.refusal
}

func (e entry) fail(kind, text string) {
	telemetry.Fail(e.span, kind, text)
	e.span.End()
}

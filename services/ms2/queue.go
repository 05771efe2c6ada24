package ms2

import (
	"context"
	"fmt"
	"math"
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
	tornLength  = 10   // messages; no broker closes the connection because so few are too large
	stallTime   = 10 * time.Second
	refusedTime = 2 * time.Second      // of failing requests until MS2 is not ready, and without any until it is ready
	failedTime  = 30 * time.Second     // until a failed partition has its turn again
	shrunkTime  = 10 * time.Second     // of smaller requests, after one that was too large
	lateTime    = 5 * time.Millisecond // of a request, after which no message waits for it
)

// entry is a message to be written to Kafka. Its span ends when Kafka has
// acknowledged it.
type entry struct {
	key    message.Key
	record kafka.Message
	span   trace.Span
}

// queue holds the messages that were read and are not yet acknowledged by
// Kafka. A message that finds no request in flight is sent at once. Those that
// arrive meanwhile form the next request, to the next partition: a few large
// requests cost Kafka and MS3 least. They do not wait for a request that fails or
// is late, nor when they fill one. The order of messages does not matter.
type queue struct {
	cluster  *topic.Cluster
	topic    string
	metrics  *metrics
	log      zerolog.Logger
	errors   zerolog.Logger // at most one event a second
	stalled  func()         // called before the queue is dropped for lack of progress
	stall    time.Duration  // time without progress after which it is dropped
	lateTime time.Duration

	slots   chan struct{}  // holds a token for each message in the queue
	running sync.WaitGroup // the senders

	mu      sync.Mutex
	waiting []entry
	senders int               // that have requests in flight; at most one for each partition
	started int               // senders so far; the number of the last
	awaited int               // sender whose request the waiting messages wait for, or 0
	turn    int               // partition of the next request, if it works and has none
	busy    map[int]int       // requests in flight by partition
	failed  map[int]time.Time // the last failure by partition
	most    int               // messages in a request
	shrunk  time.Time         // when most was reduced

	round    context.Context
	drop     context.CancelFunc // makes the senders drop what they hold
	progress time.Time          // when Kafka last accepted a request, or the queue was empty

	failing   time.Time // since when every request fails, although the cluster is ready; zero if one succeeded
	refusal   error     // of the last request, if Kafka accepts no messages
	refusedAt time.Time
}

func newQueue(cluster *topic.Cluster, name string, m *metrics, log zerolog.Logger, stalled func()) *queue {
	q := &queue{
		cluster: cluster, topic: name, metrics: m, log: log, stalled: stalled, stall: stallTime, lateTime: lateTime, progress: time.Now(),
		errors: logging.Limit(log),
		slots:  make(chan struct{}, queueLength),
		busy:   map[int]int{}, failed: map[int]time.Time{}, most: batchLength,
	}
	q.round, q.drop = context.WithCancel(context.Background())
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
	q.waiting = append(q.waiting, e)
	q.start()
	return nil
}

// start starts a sender if the waiting messages wait for no request, and one for
// each request that they fill.
func (q *queue) start() {
	for n := len(q.waiting); n > 0 && q.senders < max(1, q.cluster.Partitions()) && (q.awaited == 0 || n >= q.most); n -= q.most {
		q.senders++
		q.started++
		number := q.started
		q.awaited = number
		q.running.Go(func() { q.serve(number) })
	}
}

// run checks that Kafka accepts the messages. When ctx ends, it waits until all
// are written or drain ends, drops the rest and stops the senders.
func (q *queue) run(ctx, drain context.Context) {
	for retry.Pause(ctx, q.stall/20) {
		q.watch()
	}
	for len(q.slots) > 0 && retry.Pause(drain, 50*time.Millisecond) { // no more messages arrive
	}
	q.dropAll()
	q.running.Wait()
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

// dropAll drops all messages and cancels the requests.
func (q *queue) dropAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop()
	q.round, q.drop = context.WithCancel(context.Background())
	q.progress = time.Now()
	for _, e := range q.waiting {
		q.dropped(e)
	}
	q.waiting = nil
}

func (q *queue) dropped(e entry) {
	e.fail("dropped", "kafka did not accept the message")
	q.metrics.dropped.Inc()
	<-q.slots
}

// serve makes one request after another while messages wait.
func (q *queue) serve(sender int) {
	for round, batch := q.next(sender); len(batch) > 0; round, batch = q.next(sender) {
		q.send(round, sender, batch)
		clear(batch)
	}
}

// next returns the messages of the sender's next request and a context that ends
// when they are dropped. If there are none, or those that wait do so for another
// request, the sender ends.
func (q *queue) next(sender int) (context.Context, []entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.shrunk) > shrunkTime {
		q.most = batchLength
	}
	if q.awaited == sender {
		q.awaited = 0
	}
	n := min(len(q.waiting), q.most)
	if n == 0 || n < q.most && q.awaited != 0 {
		q.senders--
		return nil, nil
	}
	q.awaited = sender
	batch := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return q.round, batch
}

// send writes the batch to Kafka. It splits batches that are too large and
// retries until ctx ends, when it drops the rest.
func (q *queue) send(ctx context.Context, sender int, batch []entry) {
	pause := retry.Backoff{First: 50 * time.Millisecond, Most: 500 * time.Millisecond}
	for len(batch) > 0 {
		partition, most := q.begin()
		part := batch[:min(len(batch), most)]
		records := make([]kafka.Message, len(part))
		for i, e := range part {
			records[i] = e.record
		}
		late := time.AfterFunc(q.lateTime, func() { q.release(sender) })
		offset, err := q.cluster.Produce(ctx, q.topic, partition, records...)
		late.Stop()
		q.end(partition, err)
		if err == nil {
			q.produced(part, partition, offset)
			batch = batch[len(part):]
			pause.Reset()
			continue
		}
		q.release(sender)
		if ctx.Err() == nil {
			q.metrics.retries.Inc()
			for _, e := range part {
				e.span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(topic.ErrorType(err))))
			}
			tooLarge := topic.TooLarge(err)
			if len(part) > 1 && tooLarge || len(part) > tornLength && topic.Torn(err) {
				q.mu.Lock()
				q.most, q.shrunk = (len(part)+1)/2, time.Now()
				q.mu.Unlock()
				if tooLarge {
					q.log.Debug().Err(err).Int("messages", len(part)).Msg("batch split")
					continue
				}
			}
			if tooLarge {
				err = fmt.Errorf("topic %s: max.message.bytes: must be at least %d: %w", q.topic, topic.MessageBytes, err)
			}
			q.refused(err, tooLarge)
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

// begin returns the partition of a request and how many messages it may have. The
// partitions have turns, but those with another request only if all have one. One
// that failed lately may work again, and counts as if it had two.
func (q *queue) begin() (number, most int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := max(1, q.cluster.Partitions())
	least := math.MaxInt
	for i := 0; i < n && least > 0; i++ {
		p := (q.turn + i) % n
		trouble := q.busy[p]
		if !q.cluster.Reachable(p) {
			trouble += queueLength
		} else if time.Since(q.failed[p]) < failedTime {
			trouble += 2
		}
		if trouble < least {
			number, least = p, trouble
		}
	}
	q.busy[number]++
	q.turn = number + 1
	return number, q.most
}

// end notes that a request to a partition is answered.
func (q *queue) end(number int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy[number]--
	if err != nil && !topic.TooLarge(err) { // every partition refuses such a batch
		q.failed[number] = time.Now()
	}
}

// release lets no message wait for the request of a sender.
func (q *queue) release(sender int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.awaited == sender {
		q.awaited = 0
		q.start()
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

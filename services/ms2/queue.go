package ms2

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	queueLength = 4096 // messages; the largest in_flight of MS1
	batchLength = 100  // messages in a request
	stallTime   = 10 * time.Second
	adaptTime   = 30 * time.Second // after which a lane returns to its partition, or tries larger requests
)

// entry is a message on its way to Kafka, with the span that ends when Kafka
// has it.
type entry struct {
	record kafka.Message
	span   trace.Span
}

// queue holds the messages that were read and are not yet acknowledged by
// Kafka. Each partition has a lane of its own, which sends whatever waits for
// it, up to a hundred messages, as soon as its last request is answered: no
// message waits for company. A lane whose partition fails sends to the next
// one; the order of messages means nothing.
type queue struct {
	link    *topic.Link
	topic   string
	metrics *metrics
	log     zerolog.Logger
	errors  zerolog.Logger // logs at most once a second
	stalled func()         // told when the queue was dropped for lack of progress
	stall   time.Duration  // without progress, after which that happens

	slots   chan struct{} // one taken by each message in the queue
	stop    chan struct{} // closed when the lanes are to end
	running sync.WaitGroup

	mu       sync.Mutex
	lanes    []*lane // by partition
	numbers  []int   // 0, 1, 2, …: the partitions, for the balancer
	round    context.Context
	drop     context.CancelFunc // makes the lanes give up what they hold
	progress time.Time          // of the last request that Kafka took, or when nothing waited
	misfit   error              // of a message that alone was too large for the topic
	misfitAt time.Time
}

// lane is the messages of one partition.
type lane struct {
	number  int
	entries chan entry // could hold the whole queue, so only slots ever block

	// Only of its goroutine.
	most      int       // messages in a request: what the topic took last
	shift     int       // partitions between the lane's own and the one that is written to
	shrunk    time.Time // when most was changed
	shiftedAt time.Time
}

func newQueue(link *topic.Link, name string, m *metrics, log zerolog.Logger, stalled func()) *queue {
	q := &queue{
		link: link, topic: name, metrics: m, log: log, stalled: stalled, stall: stallTime,
		errors: log.Sample(&zerolog.BurstSampler{Burst: 1, Period: time.Second}),
		slots:  make(chan struct{}, queueLength), stop: make(chan struct{}),
	}
	q.round, q.drop = context.WithCancel(context.Background())
	return q
}

// put takes a message into the queue. While the queue is full it waits; if ctx
// ends first it returns the cause.
func (q *queue) put(ctx context.Context, e entry) error {
	select {
	case q.slots <- struct{}{}:
	case <-ctx.Done():
		e.fail("not_queued", "the connection was closed while the queue was full")
		return context.Cause(ctx)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := len(q.lanes); i < max(1, q.link.Partitions()); i++ {
		l := &lane{number: i, entries: make(chan entry, queueLength), most: batchLength}
		q.lanes, q.numbers = append(q.lanes, l), append(q.numbers, i)
		q.running.Go(func() { q.runLane(l) })
	}
	// The partitioner of Kafka's own clients, so that any tool finds a record
	// where it looks for its key.
	q.lanes[kafka.Murmur2Balancer{}.Balance(e.record, q.numbers...)].entries <- e
	return nil
}

// run watches that Kafka takes what waits. When ctx ends it waits until
// everything is written, or until drain ends, drops the rest and stops the
// lanes.
func (q *queue) run(ctx, drain context.Context) {
	q.progressed()
	tick := time.NewTicker(q.stall / 20)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			q.watch()
		case <-ctx.Done():
		}
	}
	for range cap(q.slots) { // all are free when all can be taken
		select {
		case q.slots <- struct{}{}:
			continue
		case <-drain.Done():
		}
		break
	}
	close(q.stop)
	q.dropAll()
	q.mu.Lock()
	q.drop() // for good
	q.mu.Unlock()
	q.running.Wait()
	q.dropAll()
}

func (q *queue) progressed() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.progress = time.Now()
}

func (q *queue) watch() {
	if len(q.slots) == 0 {
		q.progressed()
		return
	}
	q.mu.Lock()
	stalled := time.Since(q.progress) > q.stall
	q.mu.Unlock()
	if !stalled {
		return
	}
	q.log.Warn().Int("messages", len(q.slots)).Stringer("without_progress", q.stall).
		Msg("kafka takes nothing: the queue is dropped and the connections are closed; MS1 sends everything again")
	q.stalled()
	q.dropAll()
	q.progressed()
}

// dropAll empties the lanes and makes them give up what they try to send.
func (q *queue) dropAll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop()
	q.round, q.drop = context.WithCancel(context.Background())
	for _, l := range q.lanes {
		for empty := false; !empty; {
			select {
			case e := <-l.entries:
				q.dropped(e)
			default:
				empty = true
			}
		}
	}
}

func (q *queue) dropped(e entry) {
	e.fail("dropped", "kafka did not take the message")
	q.metrics.dropped.Inc()
	<-q.slots
}

// runLane sends what comes through the lane.
func (q *queue) runLane(l *lane) {
	batch := make([]entry, 0, batchLength)
	for {
		batch = batch[:0]
		select {
		case e := <-l.entries:
			batch = append(batch, e)
		case <-q.stop:
			return
		}
		for more := true; more && len(batch) < cap(batch); {
			select {
			case e := <-l.entries:
				batch = append(batch, e)
			default:
				more = false
			}
		}
		if time.Since(l.shiftedAt) > adaptTime {
			l.shift = 0
		}
		if l.most < batchLength && time.Since(l.shrunk) > adaptTime {
			l.most, l.shrunk = min(2*l.most, batchLength), time.Now()
		}
		q.mu.Lock()
		round := q.round
		q.mu.Unlock()
		q.send(round, l, batch)
	}
}

// send writes the batch to Kafka, in as many requests and as often as it takes
// until ctx ends, and then drops the rest.
func (q *queue) send(ctx context.Context, l *lane, batch []entry) {
	pause := retry.Backoff{First: 50 * time.Millisecond, Most: 500 * time.Millisecond}
	for len(batch) > 0 {
		part := batch[:min(len(batch), l.most)]
		records := make([]kafka.Message, len(part))
		for i, e := range part {
			records[i] = e.record
		}
		partition := q.link.Route(l.number + l.shift)
		offset, err := q.link.Produce(ctx, q.topic, partition, records...)
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
				q.refused(fmt.Errorf("topic %s: max.message.bytes: must be at least %d, one message is larger: %w", q.topic, topic.MessageBytes, err))
			} else {
				l.shift, l.shiftedAt = l.shift+1, time.Now()
			}
			q.errors.Warn().Err(err).Int("messages", len(part)).Int("partition", partition).
				Msg("kafka did not take messages; they are sent again until it does")
		}
		if pause.Wait(ctx) != nil {
			for _, e := range batch {
				q.dropped(e)
			}
			return
		}
	}
}

// produced accounts for messages that Kafka has.
func (q *queue) produced(entries []entry, partition int, offset int64) {
	q.progressed()
	q.refused(nil)
	q.metrics.produced.Add(float64(len(entries)))
	for i, e := range entries {
		e.span.SetAttributes(
			semconv.MessagingDestinationPartitionID(strconv.Itoa(partition)),
			semconv.MessagingKafkaOffset(int(offset)+i))
		e.span.End()
		q.log.Debug().Bytes("key", e.record.Key).Stringer("trace_id", e.span.SpanContext().TraceID()).
			Int("partition", partition).Int64("offset", offset+int64(i)).Msg("produced")
		<-q.slots
	}
}

// refused notes why the topic takes no message at all, nil if it took one.
func (q *queue) refused(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.misfit, q.misfitAt = err, time.Now()
}

// ready returns nil if the topic takes messages, however small the requests
// have to be, else the setting that excludes them. It forgets that after the
// stall time: only another message can tell whether the setting was mended.
func (q *queue) ready() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.misfitAt) > q.stall {
		return nil
	}
	return q.misfit
}

func (e entry) fail(kind, text string) {
	e.span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	e.span.SetStatus(codes.Error, text)
	e.span.End()
}

package ms2

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	queueLength = 4096 // messages; the largest in_flight of MS1
	batchLength = 100  // messages in a request
	retryFirst  = 50 * time.Millisecond
	retryMost   = time.Second
	stallTime   = 10 * time.Second
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
// message waits for company.
type queue struct {
	link    *topic.Link
	topic   string
	metrics *metrics
	log     zerolog.Logger
	stalled func()        // told when the queue was dropped for lack of progress
	stall   time.Duration // without progress, after which that happens

	slots   chan struct{} // one taken by each message in the queue
	stop    chan struct{} // closed when the lanes are to end
	running sync.WaitGroup

	mu       sync.Mutex
	lanes    []chan entry // by partition; each could hold the whole queue, so only slots ever block
	numbers  []int        // 0, 1, 2, …: the partitions, for the balancer
	round    context.Context
	drop     context.CancelFunc // makes the lanes give up what they hold
	progress time.Time          // of the last request that Kafka took, or when nothing waited
}

func newQueue(link *topic.Link, name string, m *metrics, log zerolog.Logger, stalled func()) *queue {
	q := &queue{
		link: link, topic: name, metrics: m, log: log, stalled: stalled, stall: stallTime,
		slots: make(chan struct{}, queueLength), stop: make(chan struct{}),
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
		lane := make(chan entry, queueLength)
		q.lanes, q.numbers = append(q.lanes, lane), append(q.numbers, i)
		q.running.Go(func() { q.runLane(i, lane) })
	}
	// The partitioner of Kafka's own clients, so that any tool finds a record
	// where it looks for its key.
	q.lanes[kafka.Murmur2Balancer{}.Balance(e.record, q.numbers...)] <- e
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
	for _, lane := range q.lanes {
		for empty := false; !empty; {
			select {
			case e := <-lane:
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

// runLane sends what comes through the lane to its partition.
func (q *queue) runLane(number int, lane <-chan entry) {
	batch := make([]entry, 0, batchLength)
	for {
		batch = batch[:0]
		select {
		case e := <-lane:
			batch = append(batch, e)
		case <-q.stop:
			return
		}
		for more := true; more && len(batch) < cap(batch); {
			select {
			case e := <-lane:
				batch = append(batch, e)
			default:
				more = false
			}
		}
		q.mu.Lock()
		round := q.round
		q.mu.Unlock()
		q.send(round, number, batch)
	}
}

// send writes the batch to Kafka, as often as it takes until ctx ends, and
// then drops it.
func (q *queue) send(ctx context.Context, number int, batch []entry) {
	records := make([]kafka.Message, len(batch))
	for i, e := range batch {
		records[i] = e.record
	}
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		// A topic that was deleted and made again may have fewer partitions.
		partition := number % max(1, q.link.Partitions())
		offset, err := q.link.Produce(ctx, q.topic, partition, records...)
		if err == nil {
			q.progressed()
			q.metrics.produced.Add(float64(len(batch)))
			for i, e := range batch {
				e.span.SetAttributes(
					semconv.MessagingDestinationPartitionID(strconv.Itoa(partition)),
					semconv.MessagingKafkaOffset(int(offset)+i))
				e.span.End()
				q.log.Debug().Bytes("key", e.record.Key).Stringer("trace_id", e.span.SpanContext().TraceID()).
					Int("partition", partition).Int64("offset", offset+int64(i)).Msg("produced")
				<-q.slots
			}
			return
		}
		if ctx.Err() == nil {
			q.metrics.retries.Inc()
			if wait == retryFirst {
				q.log.Warn().Err(err).Int("messages", len(batch)).Msg("kafka did not take messages; they are sent again until it does")
			}
			for _, e := range batch {
				e.span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(topic.ErrorType(err))))
			}
		}
		if !topic.Pause(ctx, wait) {
			for _, e := range batch {
				q.dropped(e)
			}
			return
		}
	}
}

func (e entry) fail(kind, text string) {
	e.span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	e.span.SetStatus(codes.Error, text)
	e.span.End()
}

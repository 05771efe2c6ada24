package ms3

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// delivery is a record of the topic whose message is not yet stored.
type delivery struct {
	kafka.Message
	fetched *fetched
	key     message.Key
	body    []byte          // the message for MS1
	ctx     context.Context // has the span
	span    trace.Span
	pause   retry.Backoff
	alone   bool // posted in a request of its own
}

const (
	lateTime = 5 * time.Millisecond // of a request, after which no message waits for it
	// maxPausing is the number of refused requests that wait to be repeated, beside
	// which messages wait for a complete batch. More requests would feed an overload.
	maxPausing = 4
)

// poster posts the messages of records to MS1 until the answers are final. A
// message that finds no request in flight is posted at once. Those that arrive
// meanwhile go into the next request, which begins when the one in flight has
// returned or is late, or when they complete a batch.
type poster struct {
	consumer *consumer
	ctx      context.Context // no message is posted again after it
	work     context.Context // of the requests
	lateTime time.Duration

	pausing atomic.Int32  // refused requests that wait to be repeated
	wake    chan struct{} // takes a token for each goroutine that need no longer wait

	mu       sync.Mutex
	queue    []*delivery
	requests int // in flight
	late     int // of these
	waiting  int // goroutines that make requests and have none
}

func newPoster(ctx, work context.Context, c *consumer) *poster {
	return &poster{consumer: c, ctx: ctx, work: work, lateTime: lateTime, wake: make(chan struct{}, c.config.Workers)}
}

// add queues records and starts as many requests as they are worth.
func (p *poster) add(rs ...*delivery) {
	batch, workers := p.consumer.config.MS1.BatchMessages, p.consumer.config.Workers
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, rs...)
	if p.ctx.Err() != nil {
		p.abandon()
		return
	}
	for rest := len(p.queue); rest > 0 && p.requests < workers && (p.requests == p.late && p.pausing.Load() < maxPausing || rest >= batch); rest -= batch {
		p.requests++
		if p.waiting == 0 {
			go p.run()
			continue
		}
		p.waiting--
		p.wake <- struct{}{}
	}
}

func (p *poster) abandon() {
	p.consumer.abandon(p.queue)
	p.queue = nil
}

// run makes requests, one after the other, until ctx ends. Without records it
// waits: the stack of a new goroutine would have to grow in each request.
func (p *poster) run() {
	for p.ctx.Err() == nil {
		for batch := p.next(); len(batch) > 0; batch = p.next() {
			p.post(batch)
		}
		select {
		case <-p.wake:
		case <-p.ctx.Done():
		}
	}
	p.next() // abandons what is left
}

// next takes a batch out of the queue. After an empty batch the caller waits: there
// are no messages, or they wait for another request.
func (p *poster) next() []*delivery {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		p.abandon()
	}
	n := 0
	for n < min(len(p.queue), p.consumer.config.MS1.BatchMessages) && (n == 0 || !p.queue[0].alone && !p.queue[n].alone) {
		n++
	}
	if complete := n > 0 && p.queue[0].alone || n == p.consumer.config.MS1.BatchMessages; !complete && p.requests-1 > p.late {
		n = 0
	}
	batch := p.queue[:n:n]
	if p.queue = p.queue[n:]; n == 0 {
		p.requests--
		p.waiting++
	}
	return batch
}

// post posts a batch once and settles each record or queues it again.
func (p *poster) post(batch []*delivery) {
	c, ctx := p.consumer, p.work
	if len(batch) == 1 {
		ctx = batch[0].ctx
	}
	bodies := make([][]byte, len(batch))
	for i, r := range batch {
		bodies[i] = r.body
	}
	begin := time.Now()
	late := time.AfterFunc(p.lateTime, func() { p.delayed(1) })
	answers, err := c.client.post(ctx, bodies...)
	if !late.Stop() {
		p.delayed(-1)
	}
	c.metrics.storeSeconds.Observe(time.Since(begin).Seconds())

	var again []*delivery
	pause := retryMost
	for i, r := range batch {
		if err == nil && answers[i].final() {
			c.settle(p, r, answers[i])
			continue
		}
		kind := topic.ErrorType(err)
		if err == nil {
			r.alone, kind = answers[i].wrong(), strconv.Itoa(answers[i].status)
		}
		if len(again) == 0 {
			p.log(err, answers, i)
		}
		again = append(again, r)
		pause = min(pause, r.pause.Next())
		r.span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(kind)))
	}
	if len(again) == 0 {
		return
	}
	held := int32(1)
	if again[0].alone { // a refusal of another server delays no other message
		held = 0
	}
	p.pausing.Add(held)
	go func() {
		if retry.Pause(p.ctx, pause) {
			c.metrics.retries.Inc()
		}
		p.pausing.Add(-held)
		p.add(again...) // which abandons them after the end of ctx
	}()
}

// delayed adds n to the late requests.
func (p *poster) delayed(n int) {
	p.mu.Lock()
	p.late += n
	p.mu.Unlock()
	p.add()
}

// log logs why the message i of a request is posted again.
func (p *poster) log(err error, answers []answer, i int) {
	c := p.consumer
	switch {
	case err != nil && p.work.Err() == nil:
		c.ms1Log.Warn().Err(err).Msg("MS1 does not answer")
	case err != nil:
	case answers[i].status == http.StatusUnauthorized:
		c.configLog.Warn().Err(c.client.unauthorized()).Msg("MS1 refuses the token")
	case answers[i].wrong():
		c.configLog.Warn().Int("status", answers[i].status).Str("detail", answers[i].detail).Str("url", c.config.MS1.URL).
			Msg("answer at ms1.url not from MS1")
	default:
		c.ms1Log.Warn().Int("status", answers[i].status).Str("detail", answers[i].detail).Msg("MS1 does not take messages")
	}
}

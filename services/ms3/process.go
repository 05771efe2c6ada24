package ms3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	retryFirst = 50 * time.Millisecond
	retryMost  = 2 * time.Second

	permanentTries = 10 // of a dead letter that its topic refuses; some ten seconds
)

// permanent are the errors of the dead-letter topic that waiting does not cure.
var permanent = []error{
	kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidTopic, kafka.PolicyViolation, kafka.UnknownTopicOrPartition,
	kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.UnsupportedForMessageFormat,
	kafka.InvalidTimestamp, kafka.InvalidRecord, // by the producer's clock; a compacted topic admits no record without a key
	protocol.ErrNoPartition, // of kafka-go: no such topic, or a secret one
}

func isPermanent(err error) bool {
	return slices.ContainsFunc(permanent, func(p error) bool { return errors.Is(err, p) })
}

var processes = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer)}

// process begins to handle a record that was fetched at the time now.
func (c *consumer) process(p *poster, m kafka.Message, f *fetched, now message.Stamp) {
	msg, malformed := message.Decode(m.Value, message.AtMS3)
	parent := p.work
	if len(m.Headers) > 0 { // without tracing they are passed on
		headers := topic.Headers(m.Headers)
		parent = telemetry.Propagator.Extract(parent, &headers)
	}
	if !trace.SpanContextFromContext(parent).IsValid() && malformed == nil {
		parent = c.telemetry.Message(p.work, msg.Key())
	}
	r := &delivery{Message: m, fetched: f, key: msg.Key(), pause: retry.Backoff{First: retryFirst, Most: retryMost}}
	if r.ctx, r.span = c.telemetry.Start(parent, c.spanName, processes...); malformed != nil && c.telemetry.Off() {
		r.ctx, r.span = c.telemetry.Tracer.Start(parent, c.spanName) // only for the id in the log
	}
	if r.span.IsRecording() {
		r.span.SetAttributes(
			semconv.MessagingSystemKafka,
			semconv.MessagingOperationTypeProcess,
			semconv.MessagingOperationName("process"),
			semconv.MessagingDestinationName(m.Topic),
			semconv.MessagingDestinationPartitionID(strconv.Itoa(m.Partition)),
			semconv.MessagingConsumerGroupName(c.config.GroupID),
			semconv.MessagingKafkaOffset(int(m.Offset)),
			// One invalid string would fail the export of all spans.
			semconv.MessagingKafkaMessageKey(strings.ToValidUTF8(string(m.Key[:min(len(m.Key), 256)]), "\uFFFD")),
			semconv.MessagingMessageBodySize(len(m.Value)),
			semconv.HTTPRequestMethodPost,
			semconv.URLFull(c.config.MS1.URL),
		)
	}
	c.work.Add(1)
	if bytes.Equal(m.Value, unreadable) {
		c.log.Error().Int("partition", m.Partition).Int64("offset", m.Offset).Int("limit_bytes", maxDecompressed).Msg("batch not decompressed")
		malformed = fmt.Errorf("batch: must be at most %d bytes when decompressed", maxDecompressed)
	}
	if malformed != nil {
		go c.bury(p, r, "malformed", malformed.Error(), 0)
		return
	}
	msg.Service3 = now
	r.body = msg.Encode()
	p.add(r)
}

// settle ends a record by a final answer.
func (c *consumer) settle(p *poster, r *delivery, a answer) {
	if r.span.IsRecording() {
		r.span.SetAttributes(semconv.HTTPResponseStatusCode(a.status))
	}
	if !a.stored {
		go c.bury(p, r, "refused", fmt.Sprintf("MS1 answered %d: %s", a.status, a.detail), a.status)
		return
	}
	c.metrics.stored.Inc()
	if event := c.log.Debug(); event.Enabled() {
		event.Stringer("key", r.key).Stringer("trace_id", telemetry.TraceID(r.span, r.key)).
			Int("partition", r.Partition).Int64("offset", r.Offset).Msg("stored")
	}
	c.end(r, true)
}

// end ends the work on a record.
func (c *consumer) end(r *delivery, done bool) {
	if done {
		c.offsets.done(r.fetched)
	} else {
		c.offsets.abandon(r.fetched)
	}
	r.span.End()
	c.work.Done()
}

// abandon ends records that are not done. They will be fetched again.
func (c *consumer) abandon(rs []*delivery) {
	for _, r := range rs {
		telemetry.Fail(r.span, "abandoned", "shutdown before MS1 stored the message")
		c.end(r, false)
	}
}

// bury ends a record that can never be stored by a dead letter.
func (c *consumer) bury(p *poster, r *delivery, kind, reason string, status int) {
	telemetry.Fail(r.span, kind, reason)
	c.end(r, c.writeLetter(p.ctx, r, kind, reason, status))
}

// writeLetter writes a record to the dead-letter topic and reports whether the
// record is done. It retries until it succeeds, or until the topic has refused
// the record permanentTries times in a row: then it logs and drops the record,
// which would block its partition indefinitely.
func (c *consumer) writeLetter(ctx context.Context, m *delivery, kind, reason string, status int) bool {
	own := topic.Headers{
		{Key: topic.HeaderReason, Value: []byte(reason)},
		{Key: topic.HeaderTopic, Value: []byte(m.Topic)},
		{Key: topic.HeaderPartition, Value: strconv.AppendInt(nil, int64(m.Partition), 10)},
		{Key: topic.HeaderOffset, Value: strconv.AppendInt(nil, m.Offset, 10)},
	}
	if status != 0 {
		own.Set(topic.HeaderStatus, strconv.Itoa(status))
	}
	// A dead letter may have been put into the topic again.
	theirs := slices.DeleteFunc(slices.Clone(m.Headers), func(h kafka.Header) bool { return strings.HasPrefix(h.Key, "tricycle-") })
	copied := kafka.Message{Key: m.Key, Value: m.Value, Headers: append(own, theirs...)}
	away := retry.Backoff{First: retryFirst, Most: retryMost}
	refused := c.refused
	defer c.unwritten.Store(new(error))
	for {
		err := c.letters.write(m.ctx, copied)
		if err == nil {
			break
		}
		if errors.Is(err, kafka.MessageSizeTooLarge) { // by our headers; then without its value
			copied = kafka.Message{Headers: own}
		}
		if m.ctx.Err() == nil {
			c.kafkaLog.Warn().Err(err).Msg("dead letter not written")
		}
		m.span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(topic.ErrorType(err)),
			attribute.String("messaging.destination.name", c.config.Kafka.DeadLetterTopic)))
		pause := &refused
		if !isPermanent(err) {
			c.unwritten.Store(&err)
			refused.Reset() // only errors in a row count
			pause = &away
		}
		switch end := pause.Wait(ctx); {
		case errors.Is(end, retry.ErrExhausted):
			c.metrics.dropped.Inc()
			c.log.Error().Err(err).Str("reason", reason).Str("topic", m.Topic).Int("partition", m.Partition).Int64("offset", m.Offset).
				Stringer("trace_id", telemetry.TraceID(m.span, m.key)).Msg("dead letter dropped")
			return true
		case end != nil:
			return false
		}
	}
	c.metrics.dead.WithLabelValues(kind).Inc()
	c.lettersLog.Warn().Str("reason", reason).Int("partition", m.Partition).Int64("offset", m.Offset).
		Stringer("trace_id", telemetry.TraceID(m.span, m.key)).Msg("dead letter written")
	return true
}

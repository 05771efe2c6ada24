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
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
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
var permanent = []kafka.Error{
	kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidTopic, kafka.PolicyViolation, kafka.UnknownTopicOrPartition,
	kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.UnsupportedForMessageFormat,
}

func isPermanent(err error) bool {
	return slices.ContainsFunc(permanent, func(p kafka.Error) bool { return errors.Is(err, p) })
}

// process handles a record that was fetched at the time now and reports whether
// it is done. When ctx ends it retries no more; when work ends it aborts.
func (c *consumer) process(ctx, work context.Context, m kafka.Message, now message.Stamp) bool {
	msg, malformed := message.Decode(m.Value, message.AtMS3)
	headers := topic.Headers(m.Headers)
	parent := telemetry.Propagator.Extract(work, &headers)
	if !trace.SpanContextFromContext(parent).IsValid() && malformed == nil {
		parent = c.telemetry.Message(work, msg.Key())
	}
	work, span := c.telemetry.Tracer.Start(parent, "process "+m.Topic,
		trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
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
		))
	defer span.End()

	if bytes.Equal(m.Value, unreadable) {
		c.log.Error().Int("partition", m.Partition).Int64("offset", m.Offset).Int("limit_bytes", maxDecompressed).Msg("batch not decompressed")
		malformed = fmt.Errorf("batch: must be at most %d bytes when decompressed", maxDecompressed)
	}
	if malformed != nil {
		return c.bury(ctx, work, m, "malformed", malformed.Error(), 0)
	}
	msg.Service3 = now
	a, ok := c.post(ctx, work, msg.Encode())
	switch {
	case !ok:
		fail(span, "abandoned", "shutdown before MS1 stored the message")
		return false
	case a.stored:
		c.metrics.stored.Inc()
		c.log.Debug().Stringer("key", msg.Key()).Stringer("trace_id", span.SpanContext().TraceID()).
			Int("partition", m.Partition).Int64("offset", m.Offset).Msg("stored")
		return true
	}
	return c.bury(ctx, work, m, "refused", fmt.Sprintf("MS1 answered %d: %s", a.status, a.detail), a.status)
}

// post sends a message to MS1 until the answer is final.
func (c *consumer) post(ctx, work context.Context, body []byte) (answer, bool) {
	span := trace.SpanFromContext(work)
	for pause := (retry.Backoff{First: retryFirst, Most: retryMost}); ; {
		select {
		case c.posting <- struct{}{}:
		case <-ctx.Done():
			return answer{}, false
		}
		begin := time.Now()
		a, err := c.client.post(work, body)
		c.metrics.storeSeconds.Observe(time.Since(begin).Seconds())
		<-c.posting

		kind := semconv.ErrorTypeKey.String(strconv.Itoa(a.status))
		switch {
		case err != nil:
			kind = semconv.ErrorTypeKey.String(errorType(err))
			if work.Err() == nil {
				c.ms1Log.Warn().Err(err).Msg("MS1 does not answer")
			}
		case a.final():
			span.SetAttributes(semconv.HTTPResponseStatusCode(a.status))
			return a, true
		case a.wrong():
			c.configLog.Warn().Int("status", a.status).Str("detail", a.detail).Str("url", c.config.MS1.URL).
				Msg("answer at ms1.url not from MS1")
		default:
			c.ms1Log.Warn().Int("status", a.status).Str("detail", a.detail).Msg("MS1 does not take messages")
		}
		if pause.Wait(ctx) != nil {
			return a, false
		}
		c.metrics.retries.Inc()
		span.AddEvent("retry", trace.WithAttributes(kind))
	}
}

// bury writes a record that can never be stored to the dead-letter topic and
// reports whether the record is done. It retries until it succeeds, or until
// the topic has refused the record permanentTries times in a row: then it logs
// and drops the record, which would block its partition indefinitely.
func (c *consumer) bury(ctx, work context.Context, m kafka.Message, kind, reason string, status int) bool {
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
	span := trace.SpanFromContext(work)
	fail(span, kind, reason)
	away := retry.Backoff{First: retryFirst, Most: retryMost}
	refused := retry.Backoff{First: retryFirst, Most: retryMost, Attempts: permanentTries}
	for {
		err := c.letters.write(work, copied)
		if err == nil {
			break
		}
		if errors.Is(err, kafka.MessageSizeTooLarge) { // by our headers; then without its value
			copied = kafka.Message{Headers: own}
		}
		if work.Err() == nil {
			c.kafkaLog.Warn().Err(err).Msg("dead letter not written")
		}
		span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(topic.ErrorType(err)),
			attribute.String("messaging.destination.name", c.config.Kafka.DeadLetterTopic)))
		pause := &refused
		if !isPermanent(err) {
			refused.Reset() // only errors in a row count
			pause = &away
		}
		switch end := pause.Wait(ctx); {
		case errors.Is(end, retry.ErrExhausted):
			c.metrics.dropped.Inc()
			c.log.Error().Err(err).Str("reason", reason).Str("topic", m.Topic).Int("partition", m.Partition).Int64("offset", m.Offset).
				Stringer("trace_id", span.SpanContext().TraceID()).Msg("dead letter dropped")
			return true
		case end != nil:
			return false
		}
	}
	c.metrics.dead.WithLabelValues(kind).Inc()
	c.lettersLog.Warn().Str("reason", reason).Int("partition", m.Partition).Int64("offset", m.Offset).
		Stringer("trace_id", span.SpanContext().TraceID()).Msg("dead letter written")
	return true
}

func fail(span trace.Span, kind, text string) {
	span.SetAttributes(semconv.ErrorTypeKey.String(kind))
	span.SetStatus(codes.Error, text)
}

package ms2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/segmentio/kafka-go"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	pingInterval = 2 * time.Second
	lostPings    = 3           // without a frame, after which the link is dead
	closeTimeout = time.Second // for the peer to answer a close frame
	maxReason    = 123         // bytes; RFC 6455, 5.5
)

// closure is the reason why MS2 closes a connection: a status code (RFC 6455,
// 7.4) and a text for the peer.
type closure struct {
	code int
	text string
}

func (c closure) Error() string { return fmt.Sprintf("closed with %d: %s", c.code, c.text) }

// servePeer reads messages from a connection until it fails or the context of
// its seat ends, with a closure as the cause. It returns the reason.
func (s *Service) servePeer(place *seat, ws *websocket.Conn) error {
	ctx, cancel := place.ctx, place.cancel
	interrupted := make(chan struct{})
	reading := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = ws.NetConn().SetReadDeadline(time.Now())
	})

	pinging := make(chan struct{})
	go func() {
		defer close(pinging)
		for retry.Pause(ctx, s.ping) {
			if err := ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(s.ping)); err != nil {
				cancel(fmt.Errorf("send ping: %w", err))
			}
		}
	}()
	ended := s.read(place, ws)
	if !reading() {
		<-interrupted // it would cut off the close frame
	}
	cancel(ended)
	<-pinging

	err := context.Cause(ctx)
	if reason, ok := errors.AsType[closure](err); ok {
		frame := websocket.FormatCloseMessage(reason.code, cut(reason.text))
		_ = ws.WriteControl(websocket.CloseMessage, frame, time.Now().Add(closeTimeout))
		// Closing a socket with unread bytes resets it, and the peer may lose
		// the close frame. Wait for the peer's close frame (RFC 6455, 7.1.1)
		// or, in the middle of a frame, for the end of the connection.
		_ = ws.NetConn().SetReadDeadline(time.Now().Add(closeTimeout))
		ws.SetPongHandler(nil) // which would set a later one
		for ended = nil; ended == nil; {
			_, _, ended = ws.NextReader()
		}
		if !errors.As(ended, new(*websocket.CloseError)) {
			_, _ = io.Copy(io.Discard, ws.NetConn())
		}
	}
	_ = ws.Close()
	return err
}

// read puts the messages of the connection into the queue.
func (s *Service) read(place *seat, ws *websocket.Conn) error {
	ctx := place.ctx
	// Set the deadline before checking ctx: its end sets a deadline in the past,
	// which must not be overwritten.
	alive := func(string) error {
		_ = ws.SetReadDeadline(time.Now().Add(lostPings * s.ping))
		return context.Cause(ctx)
	}
	ws.SetReadLimit(message.MaxBytes)
	ws.SetPongHandler(alive)
	var frame bytes.Buffer // of the last message
	for {
		// Only when the queue has accepted the last message: while it is full,
		// nothing is read, and no pong can arrive.
		if err := alive(""); err != nil {
			return err
		}
		kind, reader, err := ws.NextReader()
		if frame.Reset(); err == nil {
			_, err = frame.ReadFrom(reader)
		}
		now := message.StampOf(time.Now())
		switch {
		case errors.Is(err, websocket.ErrReadLimit): // closed with 1009 by the reader
			return s.reject(ctx, "too_large", closure{websocket.CloseMessageTooBig, fmt.Sprintf("expected at most %d bytes", message.MaxBytes)})
		case err != nil:
			return fmt.Errorf("read frame: %w", err)
		case kind != websocket.TextMessage:
			return s.reject(ctx, "binary", closure{websocket.CloseUnsupportedData, "expected a text frame, found binary"})
		}
		m, err := message.Decode(frame.Bytes(), message.AtMS2)
		if err != nil {
			return s.reject(ctx, "malformed", closure{websocket.ClosePolicyViolation, err.Error()})
		}
		m.Service2 = now
		place.sent.Store(true)
		if err := s.take(ctx, m); err != nil {
			return err
		}
	}
}

// take puts a message into the queue, and waits while that is full.
func (s *Service) take(ctx context.Context, m message.Message) error {
	s.metrics.received.Inc()
	key, value := []byte(m.Key().String()), m.Encode()
	tracing, span := s.telemetry.Start(s.telemetry.Message(ctx, m.Key()), s.spanName, consumer...)
	var headers topic.Headers
	if !s.telemetry.Off() {
		telemetry.Propagator.Inject(tracing, &headers)
	}
	if span.IsRecording() {
		s.describe(span, semconv.MessagingKafkaMessageKey(string(key)), semconv.MessagingMessageBodySize(len(value)))
	}
	return s.queue.put(ctx, entry{m.Key(), kafka.Message{Key: key, Value: value, Headers: headers}, span})
}

var consumer = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer)}

// describe sets the attributes of a span of this service.
func (s *Service) describe(span trace.Span, attributes ...attribute.KeyValue) {
	span.SetAttributes(append(attributes,
		semconv.MessagingSystemKafka,
		semconv.MessagingOperationTypeReceive,
		semconv.MessagingOperationName("receive"),
		semconv.MessagingDestinationName(s.topic))...)
}

// reject counts, logs and traces a frame that is no message, and returns c.
func (s *Service) reject(ctx context.Context, reason string, c closure) error {
	s.metrics.rejected.WithLabelValues(reason).Inc()
	_, span := s.telemetry.Tracer.Start(ctx, s.spanName, consumer...)
	s.describe(span)
	telemetry.Fail(span, reason, c.text)
	span.End()
	s.rejected.Warn().Str("reason", reason).Str("detail", cut(c.text)).Stringer("trace_id", span.SpanContext().TraceID()).Msg("frame rejected")
	return c
}

// cut shortens the text of a close frame to what it can hold.
func cut(text string) string {
	if text = strings.ToValidUTF8(text, "\uFFFD"); len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason-len("…")], "") + "…"
	}
	return text
}

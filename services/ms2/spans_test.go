package ms2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestOneSpanForEachCopy(t *testing.T) {
	t.Parallel()
	collector, spans := telemetrytest.Collector(t)
	k := topictest.Config(t)
	r := start(t, k, func(c *Config) { c.Tracing.Endpoint = collector }).ready()
	m := messages(1)[0]
	ws := r.dial(t)
	ws.send(t, m, m) // a repeat
	records := topictest.Read(t, k, k.Topic, 2)
	r.produced(t, 2)
	_ = ws.WriteMessage(websocket.TextMessage, []byte("{}"))
	ws.closed(t)
	r.Stop()

	all := spans()
	if len(all) != 3 {
		t.Fatalf("got %d spans, want two copies and a rejected frame", len(all))
	}
	traceID, rootID := telemetry.IDs(m.Key())
	parents, ids := map[string]bool{}, map[string]bool{}
	for _, record := range records {
		headers := topic.Headers(record.Headers)
		parents[headers.Get("traceparent")] = true
	}
	for _, s := range all {
		if s.Kind != otlp.Span_SPAN_KIND_CONSUMER || s.Name != "receive "+k.Topic {
			t.Errorf("got span %q of kind %s", s.Name, s.Kind)
		}
		if telemetrytest.Attribute(s, "error.type") == "malformed" {
			if s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || bytes.Equal(s.TraceId, traceID[:]) {
				t.Errorf("got %v for the rejected frame", s)
			}
			continue
		}
		ids[string(s.SpanId)] = true
		if !bytes.Equal(s.TraceId, traceID[:]) || !bytes.Equal(s.ParentSpanId, rootID[:]) {
			t.Errorf("got trace %x, parent %x, want %s, %s", s.TraceId, s.ParentSpanId, traceID, rootID)
		}
		if !parents[fmt.Sprintf("00-%x-%x-01", s.TraceId, s.SpanId)] {
			t.Errorf("no record carries span %x: %v", s.SpanId, parents)
		}
		for name, want := range map[string]string{
			"messaging.system": "kafka", "messaging.operation.type": "receive", "messaging.operation.name": "receive",
			"messaging.destination.name": k.Topic, "messaging.kafka.message.key": m.Key().String(),
			"messaging.destination.partition.id": fmt.Sprint(records[0].Partition),
		} {
			if got := telemetrytest.Attribute(s, name); got != want {
				t.Errorf("got %s = %q, want %q", name, got, want)
			}
		}
	}
	if len(ids) != 2 {
		t.Errorf("got span ids %v, want a fresh one for each copy", ids)
	}
}

func TestSampledOutMessagesMakeNoSpan(t *testing.T) {
	t.Parallel()
	collector, spans := telemetrytest.Collector(t)
	k := topictest.Config(t)
	r := start(t, k, func(c *Config) { c.Tracing.Endpoint, c.Tracing.SampleRatio = collector, 0 }).ready()
	r.dial(t).send(t, messages(5)...)
	for _, record := range topictest.Read(t, k, k.Topic, 5) {
		headers := topic.Headers(record.Headers)
		if got := headers.Get("traceparent"); !strings.HasSuffix(got, "-00") {
			t.Errorf("got traceparent %q, want one not sampled", got)
		}
	}
	r.Stop()
	if got := spans(); len(got) != 0 {
		t.Errorf("got %d spans", len(got))
	}
}

package ms3

import (
	"fmt"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestOneSpanForEachRecord(t *testing.T) {
	t.Parallel()
	collector, spans := telemetrytest.Collector(t)
	k, store, source := neighbours(t, topictest.Config(t))
	r := start(t, k, store.URL, func(c *Config) { c.Tracing.Endpoint, c.MS1.BatchMessages = collector, 1 })
	ms, records := messages(2)
	const parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	records[0].Headers = []kafka.Header{{Key: "traceparent", Value: []byte(parent)}}
	junk := kafka.Message{Key: []byte("junk\xff"), Value: []byte("junk"), Headers: records[0].Headers}
	source.produce(1, records[0], records[1], junk)
	source.commits(3)
	r.Stop()

	all := map[string]*otlp.Span{}
	for _, s := range spans() {
		all[telemetrytest.Attribute(s, "messaging.kafka.message.key")] = s
	}
	if len(all) != 3 || len(spans()) != 3 {
		t.Fatalf("got %d spans, want one for each of three records", len(spans()))
	}
	derived, root := telemetry.IDs(ms[1].Key())
	for key, want := range map[string][2]string{
		ms[0].Key().String(): {"0123456789abcdef0123456789abcdef", "0123456789abcdef"},
		ms[1].Key().String(): {derived.String(), root.String()}, // without a header, from the key
		"junk\uFFFD":         {"0123456789abcdef0123456789abcdef", "0123456789abcdef"},
	} {
		s := all[key]
		if got := [2]string{fmt.Sprintf("%x", s.TraceId), fmt.Sprintf("%x", s.ParentSpanId)}; got != want {
			t.Errorf("%s: got trace and parent %v, want %v", key, got, want)
		}
		if s.Kind != otlp.Span_SPAN_KIND_CONSUMER || s.Name != "process "+k.Topic {
			t.Errorf("found span %q of kind %s", s.Name, s.Kind)
		}
		for name, want := range map[string]string{
			"messaging.system": "kafka", "messaging.operation.type": "process", "messaging.operation.name": "process",
			"messaging.destination.name": k.Topic, "messaging.destination.partition.id": "1", "messaging.consumer.group.name": "group." + k.Topic,
		} {
			if got := telemetrytest.Attribute(s, name); got != want {
				t.Errorf("%s: got %s = %q, want %q", key, name, got, want)
			}
		}
	}
	if got := telemetrytest.Attribute(all[ms[1].Key().String()], "messaging.kafka.offset"); got != "int_value:1" {
		t.Errorf("found offset %q", got)
	}
	for _, m := range ms { // MS1's span is a child of ours
		s := all[m.Key().String()]
		want := fmt.Sprintf("00-%x-%x-01", s.TraceId, s.SpanId)
		if store.mu.Lock(); !strings.Contains(strings.Join(store.trace, " "), want) {
			t.Errorf("got traceparents %v, want %s", store.trace, want)
		}
		store.mu.Unlock()
	}
	if s := all["junk\uFFFD"]; s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || telemetrytest.Attribute(s, "error.type") != "malformed" {
		t.Errorf("found %v for the malformed record", s)
	}
}

package ms1

import (
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
)

// waiting returns the number of requests that wait for the next commit, -1 if no
// commit is running.
func (c *committer) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busy {
		return -1
	}
	return len(c.queue)
}

// TestSpansOfARound is about MS1's three spans of a message.
func TestSpansOfARound(t *testing.T) {
	t.Parallel()
	collector, spans := telemetrytest.Collector(t)
	a := newAPI(t, func(c *Config) { c.Tracing.Endpoint = collector })
	release := a.store.block()
	a.want(a.do("GET", "/start?interval=60&in_flight=3", ""), 202)
	ms := []message.Message{a.sent(1), a.sent(2), a.sent(3)}
	// The first is in a commit of its own, the other two wait for it and go together.
	var posts sync.WaitGroup
	for i, m := range ms {
		trace, _ := telemetry.IDs(m.Key())
		posts.Go(func() {
			a.want(a.do("POST", "/store", back(m), "traceparent", fmt.Sprintf("00-%s-%016x-01", trace, i+1)), 200) // as MS3 has it
		})
		servicetest.Eventually(t, 10*time.Second, "it waits", func() bool {
			return a.engine.ledger().account().commits == i+1 && a.engine.committer.waiting() == i
		})
	}
	posts.Go(func() { a.want(a.do("GET", "/stop", ""), 200) }) // so that no more are sent
	servicetest.Eventually(t, 10*time.Second, "it drains", func() bool { return a.engine.status(t.Context()).State == Draining })
	release()
	posts.Wait()
	servicetest.NoError(t, a.stop())

	for i, m := range ms {
		trace, root := telemetry.IDs(m.Key())
		of := map[string]*otlp.Span{}
		for _, span := range spans() {
			if hex.EncodeToString(span.TraceId) == trace.String() {
				of[span.Name] = span
			}
		}
		round, post, insert := of["round"], of["POST /store"], of["INSERT messages"]
		if round == nil || post == nil || insert == nil || len(of) != 3 {
			t.Fatalf("message %d: found %v, want three spans", i, of)
		}
		if hex.EncodeToString(round.SpanId) != root.String() || len(round.ParentSpanId) != 0 || round.Kind != otlp.Span_SPAN_KIND_PRODUCER {
			t.Errorf("message %d: found the root %v", i, round)
		}
		if hex.EncodeToString(post.ParentSpanId) != fmt.Sprintf("%016x", i+1) || post.Kind != otlp.Span_SPAN_KIND_SERVER {
			t.Errorf("message %d: found %v, want a child of MS3's span", i, post)
		}
		if string(insert.ParentSpanId) != string(post.SpanId) || insert.Kind != otlp.Span_SPAN_KIND_CLIENT {
			t.Errorf("message %d: found %v, want a child of POST /store", i, insert)
		}
		batch := "int_value:2"
		if i == 0 {
			batch = "" // it was alone
		}
		for _, want := range []struct {
			span        *otlp.Span
			name, value string
		}{
			{round, "tricycle.service1_timestamp", m.Service1.String()},
			{post, "http.route", "/store"}, {post, "http.request.method", "POST"}, {post, "http.response.status_code", "int_value:200"},
			{insert, "db.system.name", "memory"}, {insert, "db.operation.name", "INSERT"}, {insert, "db.collection.name", "messages"},
			{insert, "db.operation.batch.size", batch},
		} {
			if got := telemetrytest.Attribute(want.span, want.name); got != want.value {
				t.Errorf("message %d, %s: found %s = %q, want %q", i, want.span.Name, want.name, got, want.value)
			}
		}
	}
}

// A request of several messages has a trace of its own, which links to theirs.
func TestSpansOfARequestOfSeveral(t *testing.T) {
	t.Parallel()
	collector, spans := telemetrytest.Collector(t)
	a := newAPI(t, func(c *Config) { c.Tracing.Endpoint = collector })
	a.want(a.do("GET", "/start?in_flight=2", ""), 202)
	ms := []message.Message{a.sent(1), a.sent(2)}
	a.want(a.do("POST", "/store", back(ms[0])+"\n"+back(ms[1])+"\n", "Content-Type", httpserver.LinesType), 200)
	servicetest.NoError(t, a.stop())
	all := map[string][]*otlp.Span{}
	for _, s := range spans() {
		all[s.Name] = append(all[s.Name], s)
	}
	if len(all["POST /store"]) != 1 || len(all["INSERT messages"]) != 2 {
		t.Fatalf("got %d spans of the request and %d of rows, want 1 and 2", len(all["POST /store"]), len(all["INSERT messages"]))
	}
	post := all["POST /store"][0]
	if len(post.ParentSpanId) != 0 || len(post.Links) != 2 {
		t.Fatalf("got %v, want a root with two links", post)
	}
	for i, m := range ms {
		trace, root := telemetry.IDs(m.Key())
		if l := post.Links[i]; hex.EncodeToString(l.TraceId) != trace.String() || hex.EncodeToString(l.SpanId) != root.String() {
			t.Errorf("message %d: got link %v, want its root", i, l)
		}
		if !slices.ContainsFunc(all["INSERT messages"], func(s *otlp.Span) bool {
			return hex.EncodeToString(s.TraceId) == trace.String() && hex.EncodeToString(s.ParentSpanId) == root.String() &&
				telemetrytest.Attribute(s, "db.operation.batch.size") == "int_value:2"
		}) {
			t.Errorf("message %d: got %v, want a child of its root", i, all["INSERT messages"])
		}
	}
}

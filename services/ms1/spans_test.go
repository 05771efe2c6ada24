package ms1

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
)

// TestSpansOfARound is about MS1's three spans of a message.
func TestSpansOfARound(t *testing.T) {
	collector, spans := telemetrytest.Collector(t)
	tracing := telemetry.Defaults()
	tracing.Endpoint = collector
	tel, err := telemetry.New(t.Context(), tracing, "ms1", "test", zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	config, store, link := Defaults(), newMemoryStore(), &fakeTransport{}
	config.Listen = "127.0.0.1:0"
	s, err := New(config, store, link, zerolog.Nop(), tel)
	if err != nil {
		t.Fatal(err)
	}
	link.connected = s.engine.connected
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	link.connect(1)
	servicetest.Eventually(t, 10*time.Second, "ready", func() bool { return s.engine.databaseReady(ctx) == nil })

	store.hold = make(chan struct{})
	if _, err := s.engine.start(t.Context(), 60, 3, func() {}); err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, 10*time.Second, "three messages were sent", func() bool { return len(link.frames()) == 3 })
	// The first is in a commit of its own, the other two wait for it and go together.
	var posts sync.WaitGroup
	ms := link.frames()
	for i, m := range ms {
		m.Service2, m.Service3 = m.Service1+1, m.Service1+2
		trace, _ := telemetry.IDs(m.Key())
		posts.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.Address()+"/store", strings.NewReader(string(m.Encode())))
			req.Header.Set("traceparent", fmt.Sprintf("00-%s-%016x-01", trace, i+1)) // as MS3 has it
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		})
		servicetest.Eventually(t, 10*time.Second, "it waits", func() bool {
			s.engine.mu.Lock()
			defer s.engine.mu.Unlock()
			return s.engine.current.ledger.account().commits == i+1 && s.engine.committer.waiting() == i
		})
	}
	s.engine.mu.Lock()
	s.engine.current.end(Stopped) // so that no more are sent
	s.engine.mu.Unlock()
	servicetest.Eventually(t, 10*time.Second, "it drains", func() bool { return s.Status(ctx).State == Draining })
	close(store.hold)
	posts.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}

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

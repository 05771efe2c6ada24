package telemetry_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// BenchmarkSpan is a root span with its derived ids, from start to end.
func BenchmarkSpan(b *testing.B) {
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer collector.Close()
	for name, c := range map[string]telemetry.Config{
		"sampled":     {Endpoint: collector.URL, SampleRatio: 1, QueueSpans: 8192},
		"not sampled": {Endpoint: collector.URL, SampleRatio: 0, QueueSpans: 8192},
		"off":         telemetry.Defaults(),
	} {
		b.Run(name, func(b *testing.B) {
			tel, err := telemetry.New(context.Background(), c, "ms9", "1.2.3", zerolog.Nop())
			if err != nil {
				b.Fatal(err)
			}
			key := message.Key{SessionID: 1, Service1: 1_795_428_930_123_456}
			b.ReportAllocs()
			for b.Loop() {
				_, span := tel.StartRoot(context.Background(), key, "round", trace.WithSpanKind(trace.SpanKindProducer))
				span.End()
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := tel.Shutdown(ctx); err != nil {
				b.Error(err)
			}
		})
	}
}

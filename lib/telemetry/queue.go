package telemetry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	sdk "go.opentelemetry.io/otel/sdk/trace"
)

const (
	exportTimeout = 5 * time.Second
	exportRetry   = 200 * time.Millisecond
	exportDelay   = 500 * time.Millisecond // a span waits at most this long for others
	// exportSpans is the number of spans in a request, about a megabyte. Collectors
	// accept 20. A quarter of the queue at most: others end during an export.
	exportSpans = 2048
)

// Results of an export.
const (
	accepted int32 = iota
	partly         // the collector warns, or has rejected some of the spans
	failed
)

// spanQueue counts the spans that the SDK's batch processor would drop silently.
// It passes no more spans to the processor than its queue holds. Each sampled
// span that ends is counted once, as exported or dropped.
type spanQueue struct {
	sdk.SpanProcessor // the SDK's batch processor

	exporter sdk.SpanExporter
	result   atomic.Int32 // of the last export
	log      zerolog.Logger

	mu      sync.Mutex
	most    int
	waiting int  // spans in the processor, none of them counted
	closed  bool // the waiting ones are counted as dropped

	// closing ends a running export when the shutdown time is over.
	closing context.Context
	cancel  context.CancelFunc

	exported     prometheus.Counter
	queueFull    prometheus.Counter
	exportFailed prometheus.Counter
}

func newSpanQueue(exporter sdk.SpanExporter, most int, registry prometheus.Registerer, log zerolog.Logger) *spanQueue {
	dropped := Counters(registry, "tricycle_spans_dropped_total", "Spans that the collector did not accept, by reason: queue_full or export_failed.", "reason")
	q := &spanQueue{
		exporter: exporter, most: most, log: log,
		exported:     Counter(registry, "tricycle_spans_exported_total", "Spans that the collector accepted."),
		queueFull:    dropped.WithLabelValues("queue_full"),
		exportFailed: dropped.WithLabelValues("export_failed"),
	}
	q.closing, q.cancel = context.WithCancel(context.Background())
	options := []sdk.BatchSpanProcessorOption{sdk.WithMaxQueueSize(most)}
	if os.Getenv("OTEL_BSP_SCHEDULE_DELAY") == "" {
		options = append(options, sdk.WithBatchTimeout(exportDelay))
	}
	if os.Getenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") == "" {
		options = append(options, sdk.WithMaxExportBatchSize(min(max(sdk.DefaultMaxExportBatchSize, min(exportSpans, most/4)), most)))
	}
	if os.Getenv("OTEL_BSP_EXPORT_TIMEOUT") == "" {
		options = append(options, sdk.WithExportTimeout(2*exportTimeout))
	}
	q.SpanProcessor = sdk.NewBatchSpanProcessor(countingExporter{q}, options...)
	return q
}

// OnEnd queues a span, or counts it as dropped if the queue is full.
func (q *spanQueue) OnEnd(s sdk.ReadOnlySpan) {
	if q.enter() {
		q.SpanProcessor.OnEnd(s)
	}
}

// enter reserves room for a span, or counts it as dropped.
func (q *spanQueue) enter() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		q.exportFailed.Inc()
		return false
	case q.waiting == q.most:
		q.queueFull.Inc()
		return false
	}
	q.waiting++
	return true
}

// leave counts spans that left the processor, unless close has counted them.
func (q *spanQueue) leave(spans int, as prometheus.Counter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.waiting -= spans
		as.Add(float64(spans))
	}
}

// close counts the spans that were not exported, and adds their number to err.
func (q *spanQueue) close(err error) error {
	// Last: an export that this cuts off is counted here.
	defer q.cancel()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return err
	}
	q.closed = true
	if left := q.waiting; left > 0 {
		q.exportFailed.Add(float64(left))
		return errors.Join(fmt.Errorf("%d spans dropped at shutdown", left), err)
	}
	return err
}

// countingExporter is the exporter of the processor.
type countingExporter struct{ q *spanQueue }

func (e countingExporter) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	q := e.q
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(q.closing, cancel)()

	err := q.exporter.ExportSpans(ctx, spans)
	lost, result := 0, accepted
	if err != nil {
		lost, result = len(spans), failed
		if n := partial.FindStringSubmatch(err.Error()); n != nil {
			lost, _ = strconv.Atoi(n[1])
			lost, result = min(lost, len(spans)), partly
		}
	}
	q.leave(lost, q.exportFailed)
	q.leave(len(spans)-lost, q.exported)
	switch before := q.result.Swap(result); {
	case result == before:
	case result == accepted:
		q.log.Info().Msg("trace collector available again")
	case q.closing.Err() != nil: // the caller of close reports the export that the shutdown cuts off
	case result == partly:
		q.log.Warn().Err(err).Msg("trace collector warns or rejects spans")
	default:
		q.log.Warn().Err(err).Msg("trace collector unavailable, dropping spans")
	}
	return nil // the SDK would log it again, globally
}

// partial matches the error of a partial success, whose type is internal to the
// exporter. The collector has accepted the other spans, perhaps all of them.
var partial = regexp.MustCompile(`(?s)^traces export: OTLP partial success: .*\((\d+) spans rejected\)`)

func (e countingExporter) Shutdown(ctx context.Context) error { return e.q.exporter.Shutdown(ctx) }

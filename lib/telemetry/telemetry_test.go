package telemetry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver is an OTLP/HTTP collector that keeps what it takes.
type receiver struct {
	*httptest.Server
	answer func(w http.ResponseWriter, r *http.Request) bool // false: the request is not taken

	mu       sync.Mutex
	path     string
	resource map[string]string
	spans    []*otlp.Span
}

func newReceiver(t *testing.T, answer func(http.ResponseWriter, *http.Request) bool) *receiver {
	t.Helper()
	r := &receiver{answer: answer, resource: map[string]string{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var export collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &export)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.answer != nil && !r.answer(w, req) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.path = req.URL.Path
	for _, rs := range export.ResourceSpans {
		for _, a := range rs.Resource.Attributes {
			r.resource[a.Key] = a.Value.GetStringValue()
		}
		for _, ss := range rs.ScopeSpans {
			r.spans = append(r.spans, ss.Spans...)
		}
	}
}

func (r *receiver) got() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.spans)
}

func answering(status int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		return false
	}
}

// partly takes the spans of a request but the given number.
func partly(rejected int64) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/x-protobuf")
		body, _ := proto.Marshal(&collector.ExportTraceServiceResponse{PartialSuccess: &collector.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: "too\nold"}})
		_, _ = w.Write(body)
		return true
	}
}

// page answers as Jaeger's user interface does.
func page(w http.ResponseWriter, _ *http.Request) bool {
	_, _ = w.Write([]byte("<!doctype html>"))
	return false
}

// swallow never answers a request.
func swallow(_ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return false
}

// clean makes the test independent of the environment it runs in.
func clean(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG",
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
		"OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
		"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
		"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_SCHEDULE_DELAY",
		"OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "HTTP_PROXY", "http_proxy",
	} {
		t.Setenv(name, "")
	}
}

func start(t *testing.T, c telemetry.Config, log zerolog.Logger) *telemetry.Telemetry {
	t.Helper()
	tel, err := telemetry.New(t.Context(), c, "ms9", "1.2.3", log)
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

// shutdown gives the last spans the given time, and returns what was
// wrong and how long it took.
func shutdown(t *testing.T, tel *telemetry.Telemetry, within time.Duration) (time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	began := time.Now()
	err := tel.Shutdown(ctx)
	return time.Since(began), err
}

// export sends the last spans, all of which the collector takes.
func export(t *testing.T, tel *telemetry.Telemetry) {
	t.Helper()
	if _, err := shutdown(t, tel, 10*time.Second); err != nil {
		t.Error(err)
	}
}

// counts returns the counters of spans: "exported", and the drops by
// their reason.
func counts(t *testing.T, tel *telemetry.Telemetry) map[string]int {
	t.Helper()
	families, err := tel.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, f := range families {
		for _, m := range f.Metric {
			switch f.GetName() {
			case "tricycle_spans_exported_total":
				found["exported"] = int(m.GetCounter().GetValue())
			case "tricycle_spans_dropped_total":
				found[m.Label[0].GetValue()] = int(m.GetCounter().GetValue())
			}
		}
	}
	return found
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func end(tel *telemetry.Telemetry, spans int) {
	for range spans {
		_, span := tel.Tracer.Start(context.Background(), "work")
		span.End()
	}
}

// keys returns n keys, spread as those of a session are.
func keys(n int) []message.Key {
	all := make([]message.Key, n)
	for i := range all {
		all[i] = message.Key{SessionID: int64(i/100 + 1), Service1: message.Stamp(1_795_428_930_123_456 + int64(i)*997)}
	}
	return all
}

func TestIDs(t *testing.T) {
	// The sums were taken by sha256sum.
	for key, want := range map[message.Key]string{
		{SessionID: 7, Service1: message.StampOf(time.Date(2026, 11, 23, 10, 15, 30, 123456000, time.UTC))}: "9032527bdee35dbc19318cf3466aa2ef" + "88dc8e2b2e8e36e5",
		{SessionID: 1<<63 - 1, Service1: 253402300799999999}:                                                "8e080b9d47b907835dbbbe2cba42123d" + "522d7add5c7ad9f6",
		{SessionID: 1, Service1: 1}: "0151a852f0336ee23b8c4f97e295b279" + "cb53aa37421b6616",
	} {
		t.Run(key.String(), func(t *testing.T) {
			traceID, spanID := telemetry.IDs(key)
			if got := traceID.String() + spanID.String(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
	t.Run("by the formula for SQL", func(t *testing.T) {
		// LEFT(SHA2(CONCAT('tricycle/1/', id, '/', stamp), 256), 32)
		for _, key := range keys(1000) {
			sum := sha256.Sum256(fmt.Appendf(nil, "tricycle/1/%d/%s", key.SessionID, key.Service1.Time().Format("2006-01-02T15:04:05.000000Z")))
			if id, _ := telemetry.IDs(key); id.String() != hex.EncodeToString(sum[:])[:32] {
				t.Fatalf("%s: got %s, want %x", key, id, sum[:16])
			}
		}
	})
}

func TestValidate(t *testing.T) {
	if err := telemetry.Defaults().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for name, c := range map[string]struct {
		config telemetry.Config
		want   string
	}{
		"an endpoint without scheme": {telemetry.Config{Endpoint: "localhost:4318", QueueSpans: 512}, `tracing.endpoint: must be a URL such as http://host:port, got "localhost:4318"`},
		"a ratio above one":          {telemetry.Config{SampleRatio: 1.01, QueueSpans: 512}, "tracing.sample_ratio: must be between 0 and 1, got 1.01"},
		"a queue too short":          {telemetry.Config{QueueSpans: 511}, "tracing.queue_spans: must be between 512 and 1048576, got 511"},
		"everything at once":         {telemetry.Config{Endpoint: "x", SampleRatio: -1}, "tracing.endpoint: must be a URL such as http://host:port, got \"x\"\ntracing.sample_ratio: must be between 0 and 1, got -1\ntracing.queue_spans: must be between 512 and 1048576, got 0"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.config.Validate(); err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestRootSpan(t *testing.T) {
	clean(t)
	r := newReceiver(t, nil)
	c := telemetry.Defaults()
	c.Endpoint = r.URL
	tel := start(t, c, zerolog.Nop())
	key := keys(1)[0]
	traceID, spanID := telemetry.IDs(key)

	// MS1 starts the root during another trace: it is no child.
	outer, request := tel.Tracer.Start(t.Context(), "GET /start")
	ctx, root := tel.StartRoot(outer, key, "round", trace.WithSpanKind(trace.SpanKindProducer))
	if sc := root.SpanContext(); sc.TraceID() != traceID || sc.SpanID() != spanID || !sc.IsSampled() {
		t.Errorf("got %v, want trace %s, span %s, sampled", sc, traceID, spanID)
	}
	_, child := tel.Tracer.Start(ctx, "INSERT")
	// MS2 knows only the key.
	_, receive := tel.Tracer.Start(tel.Message(t.Context(), key), "receive")
	_, again := tel.Tracer.Start(tel.Message(t.Context(), key), "receive")
	for _, s := range []trace.Span{child, receive, again, root, request} {
		s.End()
	}
	if request.SpanContext().TraceID() == traceID {
		t.Error("the request shares the message's trace")
	}
	export(t, tel)
	ids := map[string]bool{}
	for _, s := range r.spans {
		ids[string(s.SpanId)] = true
		parent := ""
		switch s.Name {
		case "GET /start":
			continue
		case "INSERT", "receive":
			parent = string(spanID[:])
		}
		if string(s.TraceId) != string(traceID[:]) || string(s.ParentSpanId) != parent {
			t.Errorf("%s: got trace %x, parent %x, want %s, %x", s.Name, s.TraceId, s.ParentSpanId, traceID, parent)
		}
	}
	if len(r.spans) != 5 || len(ids) != 5 {
		t.Errorf("got %d spans with %d ids, want 5", len(r.spans), len(ids))
	}
	if r.path != "/v1/traces" || r.resource["service.name"] != "ms9" || r.resource["service.version"] != "1.2.3" || r.resource["telemetry.sdk.language"] != "go" {
		t.Errorf("got path %s, resource %v", r.path, r.resource)
	}
	if got := counts(t, tel); got["exported"] != 5 || sum(got) != 5 {
		t.Errorf("got %v, want 5 exported", got)
	}
}

func TestServicesSampleAlike(t *testing.T) {
	clean(t)
	r := newReceiver(t, nil)
	for _, ratio := range []float64{0, 0.3, 1} {
		t.Run(fmt.Sprint(ratio), func(t *testing.T) {
			c := telemetry.Config{Endpoint: r.URL, SampleRatio: ratio, QueueSpans: 8192}
			ms1, ms2 := start(t, c, zerolog.Nop()), start(t, c, zerolog.Nop())
			const all = 5000
			sampled := 0
			for _, key := range keys(all) {
				_, root := ms1.StartRoot(t.Context(), key, "round")
				ctx := ms2.Message(t.Context(), key)
				guess := trace.SpanContextFromContext(ctx)
				if guess.IsSampled() != root.SpanContext().IsSampled() || guess.TraceID() != root.SpanContext().TraceID() || guess.SpanID() != root.SpanContext().SpanID() {
					t.Fatalf("%s: got %v by its key, want what its root has: %v", key, guess, root.SpanContext())
				}
				if !guess.IsRemote() {
					t.Fatalf("%s: got a parent of this process, want a remote one", key)
				}
				_, receive := ms2.Tracer.Start(ctx, "receive")
				// MS3 gets it in a header.
				header := propagation.MapCarrier{}
				telemetry.Propagator.Inject(trace.ContextWithSpan(t.Context(), receive), header)
				remote := trace.SpanContextFromContext(telemetry.Propagator.Extract(t.Context(), header))
				if receive.SpanContext().IsSampled() != guess.IsSampled() || remote.IsSampled() != guess.IsSampled() || remote.TraceID() != guess.TraceID() {
					t.Fatalf("%s: got %v, then %v, want all to be sampled like %v", key, receive.SpanContext(), remote, guess)
				}
				if guess.IsSampled() {
					sampled++
				}
				receive.End()
				root.End()
			}
			if share := float64(sampled) / all; share < ratio-0.05 || share > ratio+0.05 {
				t.Errorf("got %.3f of the messages sampled, want about %.1f", share, ratio)
			}
			for _, tel := range []*telemetry.Telemetry{ms1, ms2} {
				export(t, tel)
				if got := counts(t, tel); sum(got) != sampled || got["exported"] != sampled {
					t.Errorf("got %v, want %d exported and no other", got, sampled)
				}
			}
		})
	}
}

// TestNoProxy exports in a process of its own: Go reads the proxy variables
// once.
func TestNoProxy(t *testing.T) {
	const child = "TRICYCLE_TEST_PROXY_CHILD"
	if os.Getenv(child) != "" {
		c := telemetry.Defaults()
		c.Endpoint = "http://collector.invalid:4318"
		tel := start(t, c, zerolog.Nop())
		_, root := tel.StartRoot(t.Context(), keys(1)[0], "round")
		root.End()
		_, _ = shutdown(t, tel, time.Second)
		return
	}
	clean(t)
	var requests atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	defer proxy.Close()
	again := exec.Command(os.Args[0], "-test.run=^TestNoProxy$")
	again.Env = append(os.Environ(), child+"=1", "HTTP_PROXY="+proxy.URL, "http_proxy="+proxy.URL)
	if out, err := again.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("got %d requests to the proxy, want none", n)
	}
}

func TestNoEndpoint(t *testing.T) {
	clean(t)
	tel := start(t, telemetry.Defaults(), zerolog.Nop())
	key := keys(1)[0]
	_, root := tel.StartRoot(t.Context(), key, "round")
	if id, _ := telemetry.IDs(key); telemetry.TraceID(root, key) != id || !tel.Off() {
		t.Errorf("got trace %s, want %s: a log line carries it all the same", telemetry.TraceID(root, key), id)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		_, root := tel.StartRoot(ctx, key, "round")
		_, span := tel.Start(tel.Message(ctx, key), "receive")
		span.End()
		root.End()
		telemetry.TraceID(root, key)
	}); n != 0 {
		t.Errorf("got %v allocations for the spans of a message, want none", n)
	}
	if root.IsRecording() || trace.SpanContextFromContext(tel.Message(t.Context(), key)).IsSampled() {
		t.Error("got a span that is sampled, want none")
	}
	root.End()
	export(t, tel)
	if got := counts(t, tel); len(got) != 0 {
		t.Errorf("got %v, want no counter", got)
	}
}

func TestMetrics(t *testing.T) {
	clean(t)
	tel := start(t, telemetry.Defaults(), zerolog.Nop())
	for _, name := range []string{"go_goroutines", "process_start_time_seconds"} {
		telemetrytest.Counted(t, tel.Metrics, name)
	}
}

func TestEverySpanIsCounted(t *testing.T) {
	absent := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return "http://" + l.Addr().String()
	}
	with := func(answer func(http.ResponseWriter, *http.Request) bool) func(t *testing.T) string {
		return func(t *testing.T) string { return newReceiver(t, answer).URL }
	}
	for name, c := range map[string]struct {
		url   func(t *testing.T) string
		spans int
		stop  time.Duration
		want  func(found map[string]int) bool
		late  bool // the end has to cut an export off
	}{
		"a collector that takes them":    {with(nil), 2000, 10 * time.Second, func(f map[string]int) bool { return f["exported"] == 2000 }, false},
		"a collector that is absent":     {absent, 2000, 10 * time.Second, func(f map[string]int) bool { return f["export_failed"] == 2000 }, false},
		"a collector that warns":         {with(partly(0)), 2000, 10 * time.Second, func(f map[string]int) bool { return f["exported"] == 2000 }, false},
		"a collector that rejects one":   {with(partly(1)), 200, 10 * time.Second, func(f map[string]int) bool { return f["exported"] > 100 && f["export_failed"] > 0 }, false},
		"a collector that rejects more":  {with(partly(1e6)), 200, 10 * time.Second, func(f map[string]int) bool { return f["export_failed"] == 200 }, false},
		"a collector that answers 400":   {with(answering(400)), 2000, 10 * time.Second, func(f map[string]int) bool { return f["export_failed"] == 2000 }, false},
		"a collector that answers 500":   {with(answering(500)), 2000, 10 * time.Second, func(f map[string]int) bool { return f["export_failed"] == 2000 }, false},
		"a collector that answers 503":   {with(answering(503)), 2000, 500 * time.Millisecond, func(f map[string]int) bool { return f["export_failed"] == 2000 }, true},
		"a page at the address":          {with(page), 2000, 10 * time.Second, func(f map[string]int) bool { return f["export_failed"] == 2000 }, false},
		"a collector that swallows them": {with(swallow), 2000, 300 * time.Millisecond, func(f map[string]int) bool { return f["export_failed"] == 2000 }, true},
		"more than the queue holds": {with(swallow), 6000, 300 * time.Millisecond, func(f map[string]int) bool {
			return f["export_failed"] == 4096 && f["queue_full"] == 6000-4096
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			var console servicetest.Console
			tel := start(t, telemetry.Config{Endpoint: c.url(t), SampleRatio: 1, QueueSpans: 4096}, zerolog.New(&console))
			end(tel, c.spans)
			took, err := shutdown(t, tel, c.stop)
			if (err != nil) != c.late {
				t.Errorf("got %v, want an error: %v", err, c.late)
			}
			if limit := c.stop + time.Second; took > limit {
				t.Errorf("the end took %s, want at most %s", took, limit)
			}
			found := counts(t, tel)
			if sum(found) != c.spans || !c.want(found) {
				t.Errorf("got %v for %d spans", found, c.spans)
			}
			if c.late && !strings.Contains(err.Error(), "spans dropped at shutdown") {
				t.Errorf("got %v, want the number of spans that were dropped", err)
			}
			// The export that was cut off comes to its end and is not counted
			// again: a second Shutdown has nothing more to report.
			servicetest.Eventually(t, time.Minute, "the end of the processor", func() bool {
				stacks := make([]byte, 1<<20)
				return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("batchSpanProcessor"))
			})
			if _, err := shutdown(t, tel, time.Second); err != nil {
				t.Errorf("a second end: %v", err)
			}
			end(tel, 10) // ended after the end: neither counted nor sent
			if again := counts(t, tel); fmt.Sprint(again) != fmt.Sprint(found) {
				t.Errorf("got %v later, want %v as before", again, found)
			}
			if n := strings.Count(console.String(), "dropping spans"); n > 1 {
				t.Errorf("got %d warnings, want one at most: %s", n, console.String())
			}
		})
	}
}

func TestTheCollectorComesBack(t *testing.T) {
	clean(t)
	var up atomic.Bool
	r := newReceiver(t, func(w http.ResponseWriter, _ *http.Request) bool {
		if !up.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
		return up.Load()
	})
	var console servicetest.Console
	tel := start(t, telemetry.Config{Endpoint: r.URL, SampleRatio: 1, QueueSpans: 4096}, zerolog.New(&console))
	end(tel, 2048) // two batches: one warning
	servicetest.Eventually(t, time.Minute, "two refusals", func() bool { return counts(t, tel)["export_failed"] == 2048 })
	up.Store(true)
	end(tel, 3)
	servicetest.Eventually(t, time.Minute, "the spans", func() bool { return counts(t, tel)["exported"] == 3 })
	export(t, tel)
	if n := strings.Count(console.String(), "dropping spans"); n != 1 {
		t.Errorf("got %d warnings, want one: %s", n, console.String())
	}
	if n := strings.Count(console.String(), "available again"); n != 1 {
		t.Errorf("got %d all-clears, want one: %s", n, console.String())
	}
	if got := counts(t, tel); got["export_failed"] != 2048 || got["exported"] != 3 || r.got() != 3 {
		t.Errorf("got %v and %d spans at the collector, want 2048 failed and 3", got, r.got())
	}
}

func TestEndsUnderLoad(t *testing.T) {
	// Spans that end during the shutdown are counted or come too late;
	// none is counted twice and none is in between.
	clean(t)
	r := newReceiver(t, swallow)
	tel := start(t, telemetry.Config{Endpoint: r.URL, SampleRatio: 1, QueueSpans: 512}, zerolog.Nop())
	stop, ended := make(chan struct{}), make([]int, 4)
	var wg sync.WaitGroup
	for i := range ended {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					end(tel, 1)
					ended[i]++
				}
			}
		})
	}
	servicetest.Eventually(t, time.Minute, "a full queue", func() bool { return counts(t, tel)["queue_full"] > 100 })
	if _, err := shutdown(t, tel, 100*time.Millisecond); err == nil {
		t.Error("got no error of the end, want one")
	}
	close(stop)
	wg.Wait()
	found, total := counts(t, tel), 0
	for _, n := range ended {
		total += n
	}
	if found["exported"] != 0 || found["export_failed"] < 512 || sum(found) > total {
		t.Errorf("got %v of %d spans", found, total)
	}
}

func TestEnvironment(t *testing.T) {
	for name, c := range map[string]struct {
		env   map[string]string // URL stands for the receiver's
		spans int               // of 1000 root spans, give or take
		path  string
	}{
		"the endpoint of all signals":         {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL"}, 1000, "/v1/traces"},
		"the endpoint of all signals, a path": {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL/otlp"}, 1000, "/otlp/v1/traces"},
		"the endpoint of traces":              {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "URL/mine"}, 1000, "/mine"},
		"traces before all signals":           {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "URL/mine", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, 1000, "/mine"},
		"disabled":                            {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_SDK_DISABLED": "true"}, 0, ""},
		"not disabled":                        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_SDK_DISABLED": "false"}, 1000, "/v1/traces"},
		"no exporter":                         {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_EXPORTER": "none"}, 0, ""},
		"the exporter there is":               {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_EXPORTER": "otlp"}, 1000, "/v1/traces"},
		"the protocol there is":               {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, 1000, "/v1/traces"},
		"always on":                           {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_SAMPLER": "always_on"}, 1000, "/v1/traces"},
		"always off":                          {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0, ""},
		"a ratio":                             {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5"}, 500, "/v1/traces"},
		"a ratio without number":              {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, 1000, "/v1/traces"},
		"time-outs":                           {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_EXPORTER_OTLP_TIMEOUT": "3000", "OTEL_BSP_EXPORT_TIMEOUT": "4000"}, 1000, "/v1/traces"},
		"another delay":                       {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "URL", "OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100"}, 1000, "/v1/traces"},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			r := newReceiver(t, nil)
			for k, v := range c.env {
				t.Setenv(k, strings.Replace(v, "URL", r.URL, 1))
			}
			config := telemetry.Defaults()
			if c.spans == 0 {
				config.Endpoint = r.URL // so that something could arrive
			}
			tel := start(t, config, zerolog.Nop())
			for _, key := range keys(1000) {
				_, root := tel.StartRoot(t.Context(), key, "round")
				if trace.SpanContextFromContext(tel.Message(t.Context(), key)).IsSampled() != root.SpanContext().IsSampled() {
					t.Fatalf("%s: two decisions", key)
				}
				root.End()
			}
			export(t, tel)
			if n := r.got(); n < c.spans*9/10 || n > c.spans*11/10 || r.path != c.path {
				t.Errorf("got %d spans at %q, want about %d at %q", n, r.path, c.spans, c.path)
			}
		})
	}
	t.Run("the file and the environment differ", func(t *testing.T) {
		clean(t)
		file, environment := newReceiver(t, nil), newReceiver(t, nil)
		t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", environment.URL)
		tel := start(t, telemetry.Config{Endpoint: file.URL, SampleRatio: 1, QueueSpans: 512}, zerolog.Nop())
		end(tel, 1)
		if export(t, tel); file.got() != 0 || environment.got() != 1 {
			t.Errorf("got %d and %d spans, want 0 and 1", file.got(), environment.got())
		}
	})
	t.Run("name and attributes of the service", func(t *testing.T) {
		clean(t)
		t.Setenv("OTEL_SERVICE_NAME", "mine")
		t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
		r := newReceiver(t, nil)
		tel := start(t, telemetry.Config{Endpoint: r.URL + "/", SampleRatio: 1, QueueSpans: 512}, zerolog.Nop())
		end(tel, 1)
		export(t, tel)
		if r.resource["service.name"] != "mine" || r.resource["service.version"] != "9" || r.resource["deployment.environment.name"] != "test" || r.path != "/v1/traces" {
			t.Errorf("got %v at %s, want the values of the environment", r.resource, r.path)
		}
	})
	t.Run("the length of the queue", func(t *testing.T) {
		clean(t)
		t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "5")
		r := newReceiver(t, swallow)
		tel := start(t, telemetry.Config{Endpoint: r.URL, SampleRatio: 1, QueueSpans: 512}, zerolog.Nop())
		end(tel, 8)
		if _, err := shutdown(t, tel, 50*time.Millisecond); err == nil {
			t.Error("got no error, want one about 5 spans")
		}
		if got := counts(t, tel); got["export_failed"] != 5 || got["queue_full"] != 3 {
			t.Errorf("got %v, want 5 and 3", got)
		}
	})
	t.Run("a delay longer than the test", func(t *testing.T) {
		clean(t)
		t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
		t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
		r := newReceiver(t, nil)
		tel := start(t, telemetry.Config{Endpoint: r.URL, SampleRatio: 1, QueueSpans: 512}, zerolog.Nop())
		end(tel, 3) // a full batch does not wait
		servicetest.Eventually(t, time.Minute, "the batch", func() bool { return r.got() == 3 })
		end(tel, 1)
		if export(t, tel); r.got() != 4 {
			t.Errorf("got %d spans, want 4", r.got())
		}
	})
}

func TestEnvironmentRefuses(t *testing.T) {
	for name, c := range map[string]struct{ variable, value, want string }{
		"an endpoint without scheme":   {"OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", `OTEL_EXPORTER_OTLP_ENDPOINT: must be a URL such as http://host:port, got "localhost:4318"`},
		"no endpoint at all":           {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://", `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: must be a URL such as http://host:port, got "http://"`},
		"another exporter":             {"OTEL_TRACES_EXPORTER", "zipkin", `OTEL_TRACES_EXPORTER: must be otlp or none, got "zipkin"`},
		"another protocol":             {"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", `OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf, got "grpc"`},
		"another protocol of traces":   {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: must be http/protobuf, got "http/json"`},
		"a queue of a word":            {"OTEL_BSP_MAX_QUEUE_SIZE", "many", `OTEL_BSP_MAX_QUEUE_SIZE: must be an integer between 1 and 1048576, got "many"`},
		"a queue of nothing":           {"OTEL_BSP_MAX_QUEUE_SIZE", "0", `OTEL_BSP_MAX_QUEUE_SIZE: must be an integer between 1 and 1048576, got "0"`},
		"a queue larger than memory":   {"OTEL_BSP_MAX_QUEUE_SIZE", "9000000000000", `OTEL_BSP_MAX_QUEUE_SIZE: must be an integer between 1 and 1048576, got "9000000000000"`},
		"a negative batch":             {"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1", `OTEL_BSP_MAX_EXPORT_BATCH_SIZE: must be an integer between 1 and 1048576, got "-1"`},
		"no delay, a busy loop":        {"OTEL_BSP_SCHEDULE_DELAY", "0", `OTEL_BSP_SCHEDULE_DELAY: must be an integer between 1 and 86400000, got "0"`},
		"a timeout of a word":          {"OTEL_EXPORTER_OTLP_TIMEOUT", "soon", `OTEL_EXPORTER_OTLP_TIMEOUT: must be an integer between 1 and 86400000, got "soon"`},
		"another sampler":              {"OTEL_TRACES_SAMPLER", "xray", `OTEL_TRACES_SAMPLER: must be always_on, always_off, traceidratio or one of these after parentbased_, got "xray"`},
		"a ratio that is a word":       {"OTEL_TRACES_SAMPLER_ARG", "half", `OTEL_TRACES_SAMPLER_ARG: must be a number between 0 and 1, got "half"`},
		"a ratio above one":            {"OTEL_TRACES_SAMPLER_ARG", "1.5", `OTEL_TRACES_SAMPLER_ARG: must be a number between 0 and 1, got "1.5"`},
		"a ratio that is not a number": {"OTEL_TRACES_SAMPLER_ARG", "NaN", `OTEL_TRACES_SAMPLER_ARG: must be a number between 0 and 1, got "NaN"`},
		"attributes that are no such":  {"OTEL_RESOURCE_ATTRIBUTES", "nonsense", "OTEL_RESOURCE_ATTRIBUTES: "},
	} {
		t.Run(name, func(t *testing.T) {
			clean(t)
			if c.variable == "OTEL_TRACES_SAMPLER_ARG" {
				t.Setenv("OTEL_TRACES_SAMPLER", "traceidratio")
			}
			t.Setenv(c.variable, c.value)
			_, err := telemetry.New(t.Context(), telemetry.Defaults(), "ms9", "1", zerolog.Nop())
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("the context has ended", func(t *testing.T) {
		clean(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := telemetry.New(ctx, telemetry.Config{Endpoint: "http://127.0.0.1:1", QueueSpans: 512}, "ms9", "1", zerolog.Nop())
		if err == nil {
			t.Error("got no error, want one")
		}
	})
}

// A collector behind TLS and a token needs only the standard variables.
func TestCollectorWithTLSAndToken(t *testing.T) {
	clean(t)
	ca := credentialstest.New(t)
	r := &receiver{resource: map[string]string{}, answer: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return false
		}
		return true
	}}
	r.Server = httptest.NewUnstartedServer(r)
	r.TLS = ca.Server("127.0.0.1")
	r.StartTLS()
	t.Cleanup(r.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20secret")
	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.File)
	c := telemetry.Defaults()
	c.Endpoint = r.URL
	tel := start(t, c, zerolog.Nop())
	end(tel, 3)
	export(t, tel)
	if got := r.got(); got != 3 {
		t.Errorf("got %d spans, want 3", got)
	}
}

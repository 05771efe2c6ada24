// Package telemetry provides the tracer and the metrics of a service.
//
// Every message has one trace. Neither the WebSocket nor the message has room for
// a trace id, so it is derived from the message's key:
//
//	h = SHA-256("tricycle/1/" + session_id + "/" + service1_timestamp as on the wire)
//
// The first 16 bytes of h are the trace id, the next 8 the id of the root span.
// MS1 and MS2 therefore compute the same trace without an exchange, and anyone can
// compute the trace of a database row. Whether a trace is sampled depends only on
// its id, so every service decides alike. Kafka and HTTP carry the W3C traceparent
// in headers as usual.
//
// Spans go to an OTLP collector over HTTP from a bounded queue. If the collector
// is unavailable or slow, spans are dropped and counted; no message is affected.
package telemetry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/message"
)

// Config is the section 'tracing' of a configuration. The OTEL_* variables of
// the OpenTelemetry specification override it.
type Config struct {
	Endpoint    string  `yaml:"endpoint"`     // URL of an OTLP/HTTP collector; empty: no spans
	SampleRatio float64 `yaml:"sample_ratio"` // share of the messages that are traced
	QueueSpans  int     `yaml:"queue_spans"`  // spans that may wait for the collector before others are dropped
	UIURL       string  `yaml:"ui_url"`       // URL of Jaeger's user interface, for links on MS1's page; empty: no links
}

// Defaults returns the default configuration.
func Defaults() Config { return Config{SampleRatio: 1, QueueSpans: 8192} }

// Validate returns an error for each key that is out of range.
func (c Config) Validate() error {
	var endpoint, ui error
	if c.UIURL != "" {
		ui = config.URL("tracing.ui_url", c.UIURL, "http://host:port")
	}
	if c.Endpoint != "" {
		endpoint = config.URL("tracing.endpoint", c.Endpoint, "http://host:port")
	}
	return errors.Join(endpoint, ui,
		config.InRange("tracing.sample_ratio", c.SampleRatio, 0, 1),
		config.InRange("tracing.queue_spans", c.QueueSpans, 512, mostSpans))
}

// mostSpans bounds the memory of a queue: a span takes about a kilobyte.
const mostSpans = 1 << 20

// Telemetry is the tracer and the metrics of one service.
type Telemetry struct {
	Tracer  trace.Tracer
	Metrics *prometheus.Registry

	sampler  sdk.Sampler
	provider *sdk.TracerProvider
	spans    *spanQueue // nil if spans go nowhere
}

// New returns the telemetry of the named service. It does not wait for the
// collector. Errors are those of the configuration and the environment.
func New(ctx context.Context, c Config, service, version string, log zerolog.Logger) (*Telemetry, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	c, err := fromEnvironment(c)
	if err != nil {
		return nil, err
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName(service), semconv.ServiceVersion(version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	t := &Telemetry{Metrics: registry, sampler: sdk.TraceIDRatioBased(c.SampleRatio)}
	all := sdk.ParentBased(t.sampler)
	if c.Endpoint == "" {
		all = sdk.NeverSample() // whatever the header of a caller requests
	}
	options := []sdk.TracerProviderOption{sdk.WithResource(res), sdk.WithIDGenerator(derivedIDs{}), sdk.WithSampler(all)}
	if c.Endpoint != "" {
		exporter, err := otlptracehttp.New(ctx, exporterOptions(c.Endpoint)...)
		if err != nil {
			return nil, fmt.Errorf("create trace exporter: %w", err)
		}
		t.spans = newSpanQueue(exporter, c.QueueSpans, registry, log)
		options = append(options, sdk.WithSpanProcessor(t.spans))
	}
	t.provider = sdk.NewTracerProvider(options...)
	t.Tracer = t.provider.Tracer("github.com/tricycle-relay/tricycle/services/"+service, trace.WithInstrumentationVersion(version))
	return t, nil
}

// Shutdown exports the spans in the queue until ctx ends. The rest are counted
// as dropped, and reported in the error.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	err := t.provider.Shutdown(ctx)
	if t.spans != nil {
		return t.spans.close(err)
	}
	return err
}

// Propagator carries the trace context in headers: W3C traceparent.
var Propagator propagation.TextMapPropagator = propagation.TraceContext{}

// IDs returns the trace id and the root span id of the message with this key. It
// does not allocate.
func IDs(key message.Key) (trace.TraceID, trace.SpanID) {
	var room [64]byte
	h := sha256.Sum256(key.Append(append(room[:0], "tricycle/1/"...)))
	return trace.TraceID(h[:16]), trace.SpanID(h[16:24])
}

// TraceID returns the trace id of a span of the message with this key, for a log
// line. It is the message's if tracing is off.
func TraceID(span trace.Span, key message.Key) trace.TraceID {
	if c := span.SpanContext(); c.IsValid() {
		return c.TraceID()
	}
	id, _ := IDs(key)
	return id
}

// Fail gives a span the status of an error, and its kind as error.type.
func Fail(span trace.Span, kind, text string) {
	span.SetStatus(codes.Error, text)
	span.SetAttributes(semconv.ErrorTypeKey.String(kind))
}

// Off reports whether no span goes anywhere, whatever a caller requests.
func (t *Telemetry) Off() bool { return t.spans == nil }

// Start starts a span of a message, as Tracer does. If tracing is off, it returns
// ctx and a span without ids, and does not allocate.
func (t *Telemetry) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	if t.Off() {
		return ctx, noop.Span{}
	}
	return t.Tracer.Start(ctx, name, options...)
}

// Message returns ctx with the root span of the message as remote parent. If
// tracing is off, it returns ctx.
func (t *Telemetry) Message(ctx context.Context, key message.Key) context.Context {
	if t.Off() {
		return ctx
	}
	traceID, spanID := IDs(key)
	var flags trace.TraceFlags
	if t.sampler.ShouldSample(sdk.SamplingParameters{TraceID: traceID}).Decision == sdk.RecordAndSample {
		flags = trace.FlagsSampled
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID, SpanID: spanID, TraceFlags: flags, Remote: true,
	}))
}

// StartRoot starts the root span of the message with this key. If tracing is off,
// it is as [Telemetry.Start].
func (t *Telemetry) StartRoot(ctx context.Context, key message.Key, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	if t.Off() {
		return ctx, noop.Span{}
	}
	ctx = context.WithValue(ctx, rootKey{}, key)
	return t.Tracer.Start(ctx, name, append(options, trace.WithNewRoot())...)
}

type rootKey struct{}

// derivedIDs generates the ids of a message's root span from its key, and random
// ids for other spans.
type derivedIDs struct{}

func (derivedIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if key, ok := ctx.Value(rootKey{}).(message.Key); ok {
		return IDs(key)
	}
	var id trace.TraceID
	binary.LittleEndian.PutUint64(id[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(id[8:], rand.Uint64())
	return id, derivedIDs{}.NewSpanID(ctx, id)
}

func (derivedIDs) NewSpanID(context.Context, trace.TraceID) trace.SpanID {
	var id trace.SpanID
	binary.LittleEndian.PutUint64(id[:], rand.Uint64())
	return id
}

// fromEnvironment applies the OTEL_* variables of the sampler and the exporter,
// which the SDK does not read when it is given its own.
func fromEnvironment(c Config) (Config, error) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		v := os.Getenv(name)
		if v == "" {
			continue
		}
		// For an invalid URL, the exporter would use localhost.
		if err := config.URL(name, v, "http://host:port"); err != nil {
			return c, err
		}
		c.Endpoint = v // the exporter reads it too, and prefers the second
	}
	if disabled, _ := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); disabled {
		c.Endpoint = ""
	}
	switch v := os.Getenv("OTEL_TRACES_EXPORTER"); v {
	case "", "otlp":
	case "none":
		c.Endpoint = ""
	default:
		return c, fmt.Errorf("OTEL_TRACES_EXPORTER: must be otlp or none, got %q", v)
	}
	protocol := "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	if os.Getenv(protocol) == "" {
		protocol = "OTEL_EXPORTER_OTLP_PROTOCOL"
	}
	if v := os.Getenv(protocol); v != "" && v != "http/protobuf" {
		return c, fmt.Errorf("%s: must be http/protobuf, got %q", protocol, v)
	}
	// With less the SDK panics or exports in a busy loop.
	for _, name := range []string{"OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT",
		"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_BSP_MAX_QUEUE_SIZE"} {
		v, most := os.Getenv(name), mostSpans
		if v == "" {
			continue
		}
		if !strings.HasSuffix(name, "_SIZE") {
			most = 24 * 60 * 60 * 1000 // milliseconds
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > most {
			return c, fmt.Errorf("%s: must be an integer between 1 and %d, got %q", name, most, v)
		}
		if name == "OTEL_BSP_MAX_QUEUE_SIZE" {
			c.QueueSpans = n
		}
	}
	switch v := os.Getenv("OTEL_TRACES_SAMPLER"); v {
	case "":
	case "always_on", "parentbased_always_on":
		c.SampleRatio = 1
	case "always_off", "parentbased_always_off":
		c.SampleRatio = 0
	case "traceidratio", "parentbased_traceidratio":
		arg := cmp.Or(os.Getenv("OTEL_TRACES_SAMPLER_ARG"), "1")
		ratio, err := strconv.ParseFloat(arg, 64)
		if err != nil || config.InRange("", ratio, 0, 1) != nil {
			return c, fmt.Errorf("OTEL_TRACES_SAMPLER_ARG: must be a number between 0 and 1, got %q", arg)
		}
		c.SampleRatio = ratio
	default:
		return c, fmt.Errorf("OTEL_TRACES_SAMPLER: must be always_on, always_off, traceidratio or one of these after parentbased_, got %q", v)
	}
	return c, nil
}

// exporterOptions returns the options that the environment does not set.
func exporterOptions(endpoint string) []otlptracehttp.Option {
	options := []otlptracehttp.Option{
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: exportRetry, MaxInterval: exportRetry * 5, MaxElapsedTime: exportTimeout,
		}),
		// No proxy, as for every other server: a Docker client can set its user's
		// proxy variables in each container.
		otlptracehttp.WithProxy(func(*http.Request) (*url.URL, error) { return nil, nil }),
	}
	timeout := exportTimeout
	if ms, err := strconv.Atoi(cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"), os.Getenv("OTEL_EXPORTER_OTLP_TIMEOUT"))); err == nil {
		timeout = time.Duration(ms) * time.Millisecond
	}
	options = append(options, otlptracehttp.WithTimeout(timeout))
	if cmp.Or(os.Getenv("OTEL_EXPORTER_OTLP_CERTIFICATE"), os.Getenv("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
		os.Getenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"), os.Getenv("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE")) == "" {
		// Only the exporter's own client reads these files.
		direct := http.DefaultTransport.(*http.Transport).Clone()
		direct.Proxy = nil
		options = append(options, otlptracehttp.WithHTTPClient(&http.Client{Transport: noPages{direct}, Timeout: timeout}))
	}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		if u, err := url.Parse(endpoint); err == nil && (u.Path == "" || u.Path == "/") {
			endpoint = u.JoinPath("/v1/traces").String() // the OTLP specification's path on a base URL
		}
		options = append(options, otlptracehttp.WithEndpointURL(endpoint))
	}
	return options
}

// noPages fails where a page answers a request. The exporter takes any 2xx for
// the answer of a collector, and Jaeger's user interface has one for every path.
type noPages struct{ http.RoundTripper }

func (t noPages) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(r)
	if err == nil && strings.HasPrefix(response.Header.Get("Content-Type"), "text/html") && response.StatusCode < 300 {
		response.Body.Close()
		return nil, errors.New("expected an answer of OTLP/HTTP, found a page")
	}
	return response, err
}

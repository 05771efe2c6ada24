package programtest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// Running is a service in the test's process.
type Running struct {
	openapitest.Service
	Log  *servicetest.Console
	Stop func() time.Duration // stops it, waits until it has ended, and returns how long that took

	t       testing.TB
	metrics http.Handler
}

// Start runs the service that create returns until the test ends.
func Start[S interface {
	Address() string
	Run(context.Context) error
}](t testing.TB, name string, tracing telemetry.Config, create func(zerolog.Logger, *telemetry.Telemetry) (S, error)) (S, *Running) {
	t.Helper()
	r := &Running{Log: &servicetest.Console{}, t: t}
	log := zerolog.New(r.Log)
	tel, err := telemetry.New(context.Background(), tracing, name, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	service, err := create(log, tel)
	if err != nil {
		t.Fatal(err)
	}
	r.Service = *openapitest.At(t, name, "http://"+service.Address())
	r.metrics = promhttp.HandlerFor(tel.Metrics, promhttp.HandlerOpts{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- service.Run(ctx) }()
	r.Stop = sync.OnceValue(func() time.Duration {
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", name, err)
		}
		took := time.Since(began)
		if err := tel.Shutdown(context.Background()); err != nil {
			t.Errorf("shut down telemetry: %v", err)
		}
		return took
	})
	t.Cleanup(func() {
		r.Stop()
		if t.Failed() {
			t.Log(r.Log.Tail())
		}
	})
	return service, r
}

// Metric returns the value of a metric as openapitest.Metric does, also after
// the end of the service.
func (r *Running) Metric(name string, label ...string) float64 {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.metrics.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return openapitest.Metric(r.t, w.Body.String(), name, label...)
}

// Change calls those of the changes that take a T.
func Change[T any](to *T, changes []any) {
	for _, change := range changes {
		if f, ok := change.(func(*T)); ok {
			f(to)
		}
	}
}

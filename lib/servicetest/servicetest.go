// Package servicetest runs services in tests: it starts them in the test's
// process or in their own, waits until they are ready, and reads their answers,
// metrics, spans and logs.
package servicetest

import (
	"context"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// Main runs the tests of a package and fails if goroutines are left. Tests that
// call t.Parallel run 16 at a time unless -parallel is given: those of
// services wait most of the time. The function ends the process with the exit
// status that it is given; nil stands for os.Exit.
func Main(m *testing.M, end func(status int)) {
	_ = flag.Set("test.parallel", "16") // before the command line is parsed
	var options []goleak.Option
	if end != nil {
		options = append(options, goleak.Cleanup(end))
	}
	goleak.VerifyTestMain(m, options...)
}

// Eventually polls until the condition holds, and fails the test if it does
// not within d.
func Eventually(t testing.TB, d time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", d, what)
		}
	}
}

// File writes a file for the test and returns its path. A path that is not
// absolute is that of a new directory.
func File(t testing.TB, path, text string) string {
	t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(t.TempDir(), path)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Service is a service that listens, as its clients see it.
type Service struct {
	Name string // of its description in docs/reference: ms1, ms2 or ms3
	URL  string // http://host:port
	t    testing.TB
}

// At returns the service at a URL.
func At(t testing.TB, name, url string) *Service { return &Service{name, url, t} }

// Get returns status and body of the answer to a GET request, 0 and the error
// if there is none. An answer that the service's description does not allow
// fails the test.
func (s *Service) Get(path string) (status int, body string) {
	s.t.Helper()
	return s.Do(http.MethodGet, path, nil)
}

// Do is [Service.Get] for any method and headers.
func (s *Service) Do(method, path string, header http.Header) (status int, body string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header = header
	resp, err := openapitest.Client(s.t, s.Name).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

// Ready waits until the service is ready.
func (s *Service) Ready() {
	s.t.Helper()
	var body string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var status int
		if status, body = s.Get("/readyz"); status == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is not ready: %s", s.Name, body)
		}
	}
}

// Metric returns the value of a metric as [Metric] does.
func (s *Service) Metric(name string, label ...string) float64 {
	s.t.Helper()
	_, text := s.Get("/metrics")
	return Metric(s.t, text, name, label...)
}

// Running is a service in the test's process.
type Running struct {
	Service
	Log  *Console
	Stop func() time.Duration // stops it, waits until it has ended, and returns how long that took

	metrics http.Handler
}

// Start runs the service that create returns until the test ends.
func Start[S interface {
	Address() string
	Run(context.Context) error
}](t testing.TB, name string, tracing telemetry.Config, create func(zerolog.Logger, *telemetry.Telemetry) (S, error)) (S, *Running) {
	t.Helper()
	r := &Running{Log: &Console{}}
	log := zerolog.New(r.Log)
	tel, err := telemetry.New(context.Background(), tracing, name, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	service, err := create(log, tel)
	if err != nil {
		t.Fatal(err)
	}
	r.Service = *At(t, name, "http://"+service.Address())
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

// Metric returns the value of a metric as [Metric] does, also after the end of
// the service.
func (r *Running) Metric(name string, label ...string) float64 {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.metrics.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return Metric(r.t, w.Body.String(), name, label...)
}

// Change calls those of the changes that take a T.
func Change[T any](to *T, changes []any) {
	for _, change := range changes {
		if f, ok := change.(func(*T)); ok {
			f(to)
		}
	}
}

// ReadOnlyPaths checks the answers to GET and HEAD of the paths that every
// service has.
func (s *Service) ReadOnlyPaths() {
	s.t.Helper()
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if status, body := s.Do(method, path, nil); status != http.StatusOK && path != "/readyz" { // that depends
				s.t.Errorf("%s %s: got %d %s, want 200", method, path, status, body)
			}
		}
	}
}

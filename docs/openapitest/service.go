package openapitest

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

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
	resp, err := Client(s.t, s.Name).Do(req)
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

// Metric returns the value of a metric in the text of /metrics, summed over its
// labels, or of the one label value that is named.
func Metric(t testing.TB, text, name string, label ...string) (sum float64) {
	t.Helper()
	found := false
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		base, labels, _ := strings.Cut(series, "{")
		if base != name || len(label) > 0 && !strings.Contains(labels, `="`+label[0]+`"`) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum, found = sum+v, true
	}
	if !found {
		t.Fatalf("there is no metric %s %v", name, label)
	}
	return sum
}

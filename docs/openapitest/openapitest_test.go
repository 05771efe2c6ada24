package openapitest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func TestClient(t *testing.T) {
	const (
		plain   = "application/json"
		problem = "application/problem+json"
		refusal = `{"type":"about:blank","title":"Bad Request","status":400,"detail":"expected b, found a"}`
	)
	good := `{"session_id":7,"service1_timestamp":"2026-11-23T10:15:30.123456Z","service2_timestamp":"2026-11-23T10:15:30.123456Z",` +
		`"service3_timestamp":"2026-11-23T10:15:30.123456Z","end_timestamp":null}`
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		header             map[string]string
		answer             string
		want               string // in the failure; empty: there must be none
	}{
		"as described":                    {"GET", "/start?interval=5", "", 202, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, `{"session_id":1}`, ""},
		"another status":                  {"GET", "/start", "", 200, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, `{"session_id":1}`, "status is not supported"},
		"a member more":                   {"GET", "/start", "", 202, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, `{"session_id":1,"x":1}`, `"x"`},
		"a member missing":                {"GET", "/start", "", 202, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, `{}`, "session_id"},
		"a member of another type":        {"GET", "/start", "", 202, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, `{"session_id":"1"}`, "session_id"},
		"a header missing":                {"GET", "/start", "", 202, map[string]string{"Content-Type": plain}, `{"session_id":1}`, "Cache-Control"},
		"a header of another value":       {"GET", "/start", "", 202, map[string]string{"Content-Type": plain, "Cache-Control": "no-cache"}, `{"session_id":1}`, "Cache-Control"},
		"another media type":              {"GET", "/start", "", 202, map[string]string{"Content-Type": "text/plain", "Cache-Control": "no-store"}, `{"session_id":1}`, "Content-Type"},
		"a wrong parameter refused":       {"GET", "/start?interval=0", "", 400, map[string]string{"Content-Type": problem, "Cache-Control": "no-store"}, refusal, ""},
		"a wrong parameter taken":         {"GET", "/start?interval=0", "", 202, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, `{"session_id":1}`, "does not allow the request"},
		"a wrong body taken":              {"POST", "/store", "{}", 200, map[string]string{"Content-Type": plain}, `{"outcome":"stored"}`, "does not allow the request"},
		"a right body":                    {"POST", "/store", good, 200, map[string]string{"Content-Type": plain}, `{"outcome":"stored"}`, ""},
		"another outcome":                 {"POST", "/store", good, 200, map[string]string{"Content-Type": plain}, `{"outcome":"unknown"}`, "outcome"},
		"an error that is no problem":     {"GET", "/start", "", 409, map[string]string{"Content-Type": problem, "Cache-Control": "no-store"}, `{"error":"busy"}`, "error"},
		"an error in another media type":  {"GET", "/start", "", 409, map[string]string{"Content-Type": plain, "Cache-Control": "no-store"}, refusal, "Content-Type"},
		"another status of HEAD":          {"HEAD", "/readyz", "", 405, map[string]string{"Content-Type": problem, "Allow": "GET"}, "", "status is not supported"},
		"no such path":                    {"GET", "/nowhere", "", 404, map[string]string{"Content-Type": problem}, refusal, ""},
		"no such path, yet an answer":     {"GET", "/nowhere", "", 200, map[string]string{"Content-Type": plain}, "{}", "status must be 404"},
		"no such method":                  {"HEAD", "/start", "", 405, map[string]string{"Content-Type": problem, "Allow": "GET"}, "", ""},
		"no such method, others allowed":  {"POST", "/start", "", 405, map[string]string{"Content-Type": problem, "Allow": "GET, HEAD"}, refusal, "Allow"},
		"no such method, another allowed": {"POST", "/status", "", 405, map[string]string{"Content-Type": problem, "Allow": "GET"}, refusal, "Allow"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				for key, value := range c.header {
					w.Header().Set(key, value)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.answer)
			}))
			defer server.Close()
			failed := &recorder{TB: t}
			req, err := http.NewRequest(c.method, server.URL+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if c.method == "POST" {
				req.Header.Set("Content-Type", plain)
			}
			resp, err := Client(failed, "ms1").Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			switch {
			case c.want == "" && len(failed.failures) > 0:
				t.Errorf("got %q, want no failure", failed.failures)
			case c.want != "" && (len(failed.failures) != 1 || !strings.Contains(failed.failures[0], c.want)):
				t.Errorf("got %q, want a failure with %q", failed.failures, c.want)
			}
		})
	}
}

func TestUnanswered(t *testing.T) {
	const healthz = "GET /healthz 200"
	if missing := unanswered("ms3"); !slices.Contains(missing, healthz) || !slices.Contains(missing, "HEAD /readyz 503") {
		t.Errorf("got %v before any exchange, want all", missing)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"status":"alive"}`)
	}))
	defer server.Close()
	for path, method := range map[string]string{"/healthz": "GET", "/readyz": "HEAD"} {
		req, err := http.NewRequest(method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := Client(t, "ms3").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	missing := unanswered("ms3")
	if slices.Contains(missing, healthz) || slices.Contains(missing, "HEAD /readyz 503") || !slices.Contains(missing, "GET /readyz 503") {
		t.Errorf("got %v, want neither the answers that occurred nor HEAD of the same path", missing)
	}
}

package httpserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
)

// The requests are written as they go over the wire: a client library would
// correct some of them.
func TestGuard(t *testing.T) {
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "served") }
	server := httptest.NewServer(httpserver.Routes{
		"/start":  {http.MethodGet: ok},
		"/store":  {http.MethodPost: ok},
		"/ws":     {http.MethodGet: ok},
		"/status": httpserver.ReadOnly(ok),
	}.Handler("tricycle.example.org"))
	t.Cleanup(server.Close)
	const json = "Content-Type: application/json"
	for _, c := range []struct {
		request string // method, path, headers; Host: localhost unless it has one
		status  int
	}{
		{"GET /start", 200},
		{"POST /store|" + json, 200},
		{"POST /store|Content-Type: application/json; charset=utf-8", 200},
		{"POST /store", 200}, // a simple program
		{"GET /start|Host: 127.0.0.1:8080", 200},
		{"GET /start|Host: [::1]:8080", 200},
		{"GET /start|Host: ::1", 200},
		{"GET /start|Host: LOCALHOST:8080", 200},
		{"GET /start|Host: localhost.", 200},
		{"GET /start|Host: app.localhost:1", 200},
		{"GET /start|Host: ms1:8080", 200},
		{"GET /start|Host: tricycle.example.org", 200},
		{"GET /start|Host: Tricycle.Example.org:8080", 200},
		{"GET http://localhost/start", 200},

		{"GET /start|Host: evil.example", 421},
		{"GET /start|Host: evil.example:8080", 421},
		{"GET /start|Host: localhost.evil.example", 421},
		{"GET /start|Host: 127.0.0.1.evil.example", 421},
		{"GET /start|Host: xtricycle.example.org", 421},
		{"GET /status|Host: evil.example", 421},
		{"POST /store|Host: evil.example|Origin: http://evil.example|" + json, 421},
		{"GET /ws|Host: evil.example|Upgrade: websocket|Connection: Upgrade|Origin: http://evil.example", 421},
		{"GET /ws|Host: evil.example|Upgrade: websocket|Connection: Upgrade|Sec-Fetch-Site: none", 421},
		{"GET /ws|Host: evil.example", 421},

		{"POST /store|Host: ms1.tricycle.svc|" + json, 200},                                 // MS3
		{"GET /ws|Host: ms2.tricycle.svc:8081|Upgrade: websocket|Connection: Upgrade", 200}, // MS1
		{"GET http://evil.example/start", 421},
		{"GET http://evil.example/start|Host: localhost", 421},

		{"GET /start|Origin: http://localhost", 200},
		{"GET /start|Host: localhost:8080|Origin: http://localhost:8080", 200},
		{"GET /start|Host: localhost|Origin: https://localhost", 200}, // behind a proxy that ends TLS
		{"GET /start|Origin: http://evil.example", 403},
		{"GET /start|Origin: null", 403},
		{"GET /start|Origin: ", 403},
		{"GET /start|Origin: http://localhost:1234", 403},
		{"GET /start|Origin: http://localhost|Origin: http://evil.example", 403},
		{"GET /status|Origin: http://evil.example", 403},
		{"POST /store|Origin: null|" + json, 403},

		{"GET /start|Sec-Fetch-Site: none|Sec-Fetch-Mode: navigate", 200},
		{"GET /start|Sec-Fetch-Site: same-origin", 200},
		{"GET /start|Sec-Fetch-Site: cross-site", 403},
		{"GET /start|Sec-Fetch-Site: same-site", 403},
		{"GET /start|Sec-Fetch-Site: cross-site|Sec-Fetch-Mode: navigate", 403},
		{"GET /start|Sec-Fetch-Site: none|Sec-Fetch-Site: cross-site", 403},
		{"GET /status|Sec-Fetch-Site: cross-site|Sec-Fetch-Mode: navigate", 200},
		{"GET /status|Sec-Fetch-Site: cross-site|Sec-Fetch-Mode: no-cors", 403},
		{"POST /store|Sec-Fetch-Site: cross-site|" + json, 403},

		{"GET /start|Referer: http://localhost/", 200},
		{"GET /start|Referer: http://evil.example/page", 403},
		{"GET /start|Referer: http://evil.example/page|Sec-Fetch-Site: none", 200}, // fetch metadata knows better
		{"GET /status|Referer: http://evil.example/page", 200},

		{"GET /start|Sec-Purpose: prefetch;prerender", 403},
		{"GET /start|Sec-Purpose: prefetch|Sec-Fetch-Site: none", 403},
		{"GET /start|Purpose: prefetch", 403},
		{"GET /start|X-Purpose: preview", 403},
		{"GET /start|X-moz: Prefetch", 403},
		{"GET /status|Sec-Purpose: prefetch", 200},

		{"POST /store|Content-Type: text/plain", 415},
		{"POST /store|Content-Type: application/x-www-form-urlencoded", 415},
		{"POST /store|Content-Type: application/jsonp", 415},
		{"POST /store|Content-Type: application/json|Content-Type: text/plain", 415},
		{"POST /store|Content-Type: ;", 415},

		{"CONNECT evil.example:443", 405},
		{"CONNECT /start", 405},
	} {
		t.Run(c.request, func(t *testing.T) {
			t.Parallel()
			parts := strings.Split(c.request, "|")
			lines := append([]string{parts[0] + " HTTP/1.1"}, parts[1:]...)
			if !strings.Contains(c.request, "|Host:") {
				lines = append(lines, "Host: localhost")
			}
			if strings.HasPrefix(c.request, "POST") {
				lines = append(lines, "Content-Length: 0")
			}
			status, contentType := exchange(t, server.Listener.Addr().String(), strings.Join(lines, "\r\n")+"\r\nConnection: close\r\n\r\n")
			if status != c.status {
				t.Errorf("got status %d, want %d", status, c.status)
			}
			if c.status >= 400 && contentType != httpserver.ProblemType {
				t.Errorf("got a body of type %q, want %s", contentType, httpserver.ProblemType)
			}
		})
	}
	t.Run("HTTP/1.0 without Host", func(t *testing.T) {
		if status, _ := exchange(t, server.Listener.Addr().String(), "GET /start HTTP/1.0\r\n\r\n"); status != 200 {
			t.Errorf("got status %d, want 200", status)
		}
	})
}

// exchange sends a request as it is and returns the answer.
func exchange(t *testing.T, address, request string) (status int, contentType string) {
	t.Helper()
	c := connect(t, address)
	fmt.Fprint(c, request)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Content-Type")
}

// The result of a check goes to the log, once, and not to the client. One that
// changes too soon after another is logged later.
func TestReadinessHidesCauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cause := errors.New("connect to 10.0.0.7: access denied for user tricycle")
		handler := httpserver.Health(zerolog.New(&log), prometheus.NewRegistry(), httpserver.Check{Name: "database", Probe: func(context.Context) error { return cause }}).Handler()
		for range 3 {
			for range 3 {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/readyz", nil))
				if w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "denied") {
					t.Errorf("got %d %s, want 503 without the cause", w.Code, w.Body)
				}
				cause = errors.New("connect to 10.0.0.8: access denied for user tricycle")
			}
			time.Sleep(time.Second)
		}
		if lines := log.String(); strings.Count(lines, "10.0.0.7") != 1 || strings.Count(lines, "10.0.0.8") != 1 {
			t.Errorf("got the log %q, want each cause once", lines)
		}
	})
}

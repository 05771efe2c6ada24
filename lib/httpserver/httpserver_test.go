package httpserver_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }

// body is a JSON body as a map.
func body(t *testing.T, r io.Reader) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	say := func(word string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, word) }
	}
	server := httptest.NewServer(httpserver.Routes{
		"/start":         {http.MethodGet: say("started")},
		"/read":          httpserver.ReadOnly(say("read")),
		"/both":          {http.MethodPost: say("posted"), http.MethodGet: say("got")},
		"/sessions/{id}": httpserver.ReadOnly(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.PathValue("id")) }),
		"/{$}":           httpserver.ReadOnly(say("page")),
	}.Handler())
	defer server.Close()
	for _, c := range []struct {
		method, path string
		status       int
		allow, body  string
	}{
		{"GET", "/start", 200, "", "started"},
		{"HEAD", "/start", 405, "GET", ""},
		{"POST", "/start", 405, "GET", "method: must be GET, got POST"},
		{"OPTIONS", "/start", 405, "GET", "method: must be GET, got OPTIONS"},
		{"get", "/start", 405, "GET", "method: must be GET, got get"},
		{"BREW", "/start", 405, "GET", "method: must be GET, got BREW"},
		{"GET", "/read", 200, "", "read"},
		{"GET", "/read?x=1", 200, "", "read"},
		{"HEAD", "/read", 200, "", ""},
		{"DELETE", "/read", 405, "GET, HEAD", "method: must be GET, HEAD, got DELETE"},
		{"POST", "/both", 200, "", "posted"},
		{"PUT", "/both", 405, "GET, POST", "method: must be GET, POST, got PUT"},
		{"GET", "/sessions/7", 200, "", "7"},
		{"POST", "/sessions/7", 405, "GET, HEAD", "method: must be GET, HEAD, got POST"},
		{"GET", "/", 200, "", "page"},
		{"POST", "/", 405, "GET, HEAD", "method: must be GET, HEAD, got POST"},
		{"GET", "/none", 404, "", "path: there is no \"/none\""},
		{"POST", "/none", 404, "", "path: there is no \"/none\""},
		{"HEAD", "/none", 404, "", ""},
		{"GET", "/start/", 200, "", "started"},
		{"POST", "/start/", 405, "GET", "method: must be GET, got POST"},
		{"GET", "/sessions/7/", 200, "", "7"},
		{"GET", "//start", 404, "", "path: there is no \"//start\""},
		{"GET", "/start//", 404, "", "path: there is no \"/start/\""},
		{"GET", "/x/../start", 404, "", "path: there is no \"/x/../start\""},
		{"GET", "/Start", 404, "", "path: there is no \"/Start\""},
		{"GET", "/sessions/7/x", 404, "", "path: there is no \"/sessions/7/x\""},
		{"GET", "/%3Cscript%3E", 404, "", "path: there is no \"/<script>\""},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, server.URL+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != c.status || resp.Header.Get("Allow") != c.allow {
				t.Errorf("got %s, Allow %q, %v, want %d, %q", resp.Status, resp.Header.Get("Allow"), err, c.status, c.allow)
			}
			if c.status >= 400 {
				if got := resp.Header.Get("Content-Type"); got != httpserver.ProblemType {
					t.Errorf("got a body of type %q, want %s", got, httpserver.ProblemType)
				}
			}
			if c.status < 400 || c.method == http.MethodHead {
				if string(text) != c.body {
					t.Errorf("got %q, want %q", text, c.body)
				}
				return
			}
			if got := body(t, bytes.NewReader(text)); got["detail"] != c.body {
				t.Errorf("got %v, want the detail %q", got, c.body)
			}
		})
	}
}

func TestABodyThatDoesNotComeHoldsNoAnswerUp(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]string{
		"where none is wanted": "GET /start HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{",
		"of another method":    "POST /start HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{",
		"in chunks":            "PUT /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, conn := net.Pipe()
				server := &http.Server{Handler: httpserver.Routes{"/start": {http.MethodGet: func(http.ResponseWriter, *http.Request) {}}}.Handler()}
				go func() { _ = server.Serve(&pipe{conn: conn}) }()
				defer server.Close()
				began := time.Now()
				fmt.Fprint(client, request)
				r := bufio.NewReader(client)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, r); err != nil { // else what comes late would be the next request
					t.Errorf("got %v, want the end of the connection", err)
				}
				if took := time.Since(began); took < httpserver.BodyTimeout || took > httpserver.BodyTimeout+time.Second {
					t.Errorf("the connection ended after %s, want about %s", took, httpserver.BodyTimeout)
				}
			})
		})
	}
}

// pipe is a listener of one connection, whose deadlines follow the clock of
// synctest.
type pipe struct {
	net.Listener
	conn net.Conn
}

func (p *pipe) Accept() (net.Conn, error) {
	conn := p.conn
	if p.conn = nil; conn == nil {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p *pipe) Close() error { return nil }

func TestProblem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		problem httpserver.Problem
		status  int
		want    string
	}{
		"of no type": {httpserver.Problem{Status: 409, Detail: "a session runs"}, 409,
			`{"detail":"a session runs","status":409,"title":"Conflict","type":"about:blank"}`},
		"of a type": {httpserver.Problem{Type: httpserver.UnknownMessage, Status: 404, Detail: "never sent"}, 404,
			`{"detail":"never sent","status":404,"title":"Not Found","type":"urn:tricycle:problem:unknown-message"}`},
		"with more members": {httpserver.Problem{Status: 400, Detail: "x", Extensions: map[string]any{"field": "session_id", "n": 1}}, 400,
			`{"detail":"x","field":"session_id","n":1,"status":400,"title":"Bad Request","type":"about:blank"}`},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			c.problem.Write(w)
			if got := w.Body.String(); w.Code != c.status || got != c.want+"\n" {
				t.Errorf("got %d %s, want %d %s", w.Code, got, c.status, c.want)
			}
			if h := w.Header(); h.Get("Content-Type") != "application/problem+json" || h.Get("Cache-Control") != "no-store" {
				t.Errorf("got %v, want problem details that no cache keeps", h)
			}
		})
	}
	t.Run("with a member that JSON has no word for", func(t *testing.T) {
		w := httptest.NewRecorder()
		httpserver.Problem{Status: 400, Extensions: map[string]any{"f": func() {}}}.Write(w)
		if w.Code != 500 || !strings.Contains(w.Body.String(), "unsupported type") {
			t.Errorf("got %d %s, want 500 and the reason", w.Code, w.Body)
		}
	})
}

func TestJSON(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	httpserver.JSON(w, http.StatusAccepted, map[string]int{"session_id": 7})
	if w.Code != 202 || w.Body.String() != "{\"session_id\":7}\n" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got %d %v %s", w.Code, w.Header(), w.Body)
	}
	w = httptest.NewRecorder()
	httpserver.JSON(w, http.StatusOK, make(chan int))
	if w.Code != 500 || w.Header().Get("Content-Type") != httpserver.ProblemType || !strings.Contains(fmt.Sprint(body(t, w.Body)["detail"]), "unsupported type") {
		t.Errorf("got %d %v %s, want a problem", w.Code, w.Header(), w.Body)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	good := httpserver.Check{Name: "database", Probe: func(context.Context) error { return nil }}
	bad := httpserver.Check{Name: "kafka", Probe: func(context.Context) error { return errors.New("no broker answers") }}
	worse := httpserver.Check{Name: "ms1", Probe: func(context.Context) error { return errors.New("refused") }}
	for name, c := range map[string]struct {
		checks []httpserver.Check
		path   string
		status int
		want   string
	}{
		"alive, whatever fails":  {[]httpserver.Check{bad}, "/healthz", 200, `{"status":"alive"}`},
		"nothing to check":       {nil, "/readyz", 200, `{"checks":{},"status":"ready"}`},
		"ready":                  {[]httpserver.Check{good}, "/readyz", 200, `{"checks":{"database":"ok"},"status":"ready"}`},
		"one of two fails":       {[]httpserver.Check{good, bad}, "/readyz", 503, `{"checks":{"database":"ok","kafka":"not ready"},"status":"not ready"}`},
		"the failing left out":   {[]httpserver.Check{good, bad}, "/readyz?exclude=kafka", 200, `{"checks":{"database":"ok"},"status":"ready"}`},
		"one failing left out":   {[]httpserver.Check{worse, bad}, "/readyz?exclude=kafka", 503, `{"checks":{"ms1":"not ready"},"status":"not ready"}`},
		"both left out":          {[]httpserver.Check{worse, good, bad}, "/readyz?exclude=kafka&exclude=ms1", 200, `{"checks":{"database":"ok"},"status":"ready"}`},
		"one nobody knows":       {[]httpserver.Check{bad}, "/readyz?exclude=redis", 503, `{"checks":{"kafka":"not ready"},"status":"not ready"}`},
		"a request without care": {[]httpserver.Check{bad}, "/readyz?exclude", 503, `{"checks":{"kafka":"not ready"},"status":"not ready"}`},
	} {
		t.Run(name, func(t *testing.T) {
			h := httpserver.Health(zerolog.Nop(), prometheus.NewRegistry(), c.checks...).Handler()
			for range 2 { // the next request has the checks that the last one excluded
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+c.path, nil))
				if w.Code != c.status || w.Body.String() != c.want+"\n" {
					t.Errorf("got %d %s, want %d %s", w.Code, w.Body, c.status, c.want)
				}
			}
		})
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	t.Run("checks run side by side, two seconds at most", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			results := httpserver.Probe(t.Context(), []httpserver.Check{
				{Name: "a", Probe: hang},
				{Name: "b", Probe: hang},
				{Name: "c", Probe: func(context.Context) error { time.Sleep(1900 * time.Millisecond); return nil }},
			})
			if took := time.Since(began); took != 2*time.Second {
				t.Errorf("took %s, want 2s", took)
			}
			if len(results) != 3 || !errors.Is(results["a"], context.DeadlineExceeded) || !errors.Is(results["b"], context.DeadlineExceeded) || results["c"] != nil {
				t.Errorf("got %v, want a and b too late and c good", results)
			}
		})
	})
	t.Run("the asker leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			httpserver.Probe(ctx, []httpserver.Check{{Name: "a", Probe: hang}})
			if took := time.Since(began); took != time.Second {
				t.Errorf("took %s, want 1s", took)
			}
		})
	})
}

const answerTimeout = time.Second

// serve runs a server until the test ends it. Clients have a second to read an
// answer.
func serve(t *testing.T, h http.HandlerFunc, log zerolog.Logger) (address string, stop func() (took time.Duration, err error)) {
	t.Helper()
	return serveWithin(t, answerTimeout, credentials.Pair{}, h, log)
}

func serveWithin(t *testing.T, timeout time.Duration, p credentials.Pair, h http.HandlerFunc, log zerolog.Logger) (address string, stop func() (took time.Duration, err error)) {
	t.Helper()
	s, err := httpserver.Listen("127.0.0.1:0", p, h, log)
	if err != nil {
		t.Fatal(err)
	}
	s.SetAnswerTimeout(timeout)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceValues(func() (time.Duration, error) {
		began := time.Now()
		cancel()
		select {
		case err := <-ended:
			return time.Since(began), err
		case <-time.After(10 * time.Second):
			return 0, errors.New("the server does not stop")
		}
	})
	t.Cleanup(func() {
		if _, err := stop(); err != nil {
			t.Error(err)
		}
	})
	return s.Address(), stop
}

func TestStops(t *testing.T) {
	t.Parallel()
	t.Run("with nothing in flight", func(t *testing.T) {
		address, stop := serve(t, http.NotFound, zerolog.Nop())
		if _, err := connect(t, address).get("/"); err != nil { // the connection is kept, idle
			t.Fatal(err)
		}
		if took, err := stop(); err != nil || took > time.Second {
			t.Errorf("took %s, %v, want no time at all", took, err)
		}
		if _, err := net.Dial("tcp", address); err == nil {
			t.Error("it still listens")
		}
	})
	t.Run("with a request that ends in time", func(t *testing.T) {
		arrived, finish := make(chan struct{}), make(chan struct{})
		address, stop := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			close(arrived)
			<-finish
			fmt.Fprint(w, "done")
		}, zerolog.Nop())
		c, answer := connect(t, address), make(chan string, 1)
		go func() {
			text, _ := c.get("/")
			answer <- text
		}()
		<-arrived
		stopped := make(chan error, 1)
		go func() {
			_, err := stop()
			stopped <- err
		}()
		for { // once it listens no more it is about to stop
			conn, err := net.Dial("tcp", address)
			if err != nil {
				break
			}
			conn.Close()
		}
		close(finish)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if got := <-answer; got != "done" {
			t.Errorf("got %q, want the request to be answered", got)
		}
	})
	t.Run("with a request that hangs", func(t *testing.T) {
		arrived, left := make(chan struct{}), make(chan struct{})
		address, stop := serve(t, func(_ http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
			close(left)
		}, zerolog.Nop())
		c, failed := connect(t, address), make(chan error, 1)
		go func() {
			_, err := c.get("/")
			failed <- err
		}()
		<-arrived
		if took, err := stop(); err != nil || took < 900*time.Millisecond || took > 3*time.Second {
			t.Errorf("took %s, %v, want about a second", took, err)
		}
		if err := <-failed; err == nil {
			t.Error("got an answer, want the request to be cut off")
		}
		<-left // the handler hears of it
	})
}

func TestListenRefuses(t *testing.T) {
	t.Parallel()
	first, err := httpserver.Listen("127.0.0.1:0", credentials.Pair{}, nil, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := httpserver.Listen(first.Address(), credentials.Pair{}, nil, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), first.Address()) {
		t.Errorf("got %v, want an error that %s is taken", err, first.Address())
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := httpserver.Listen(first.Address(), credentials.Pair{}, nil, zerolog.Nop())
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil {
		t.Error("a server without listener has run")
	}
}

func TestTroubleGoesToTheLog(t *testing.T) {
	t.Parallel()
	var log servicetest.Console
	address, stop := serve(t, func(http.ResponseWriter, *http.Request) { panic("oh no") }, zerolog.New(&log).Level(zerolog.InfoLevel))
	const requests = 50
	for range requests {
		if resp, err := http.Get("http://" + address); err == nil {
			resp.Body.Close()
			t.Errorf("got %s, want the connection to be closed", resp.Status)
		}
	}
	if _, err := stop(); err != nil {
		t.Error(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) > requests/2 {
		t.Errorf("%d requests caused %d lines, want one a second", requests, len(lines))
	}
	var event map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &event); err != nil {
		t.Fatalf("got %q: %v, want one line of JSON", lines[0], err)
	}
	if event["level"] != "warn" || !strings.Contains(fmt.Sprint(event["message"]), "oh no") {
		t.Errorf("got %v, want a warning about the panic", event)
	}
}

// The address of a listener on a link-local address works only with its zone.
func TestAddressHasItsZone(t *testing.T) {
	t.Parallel()
	plain, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("needs IPv6 on the loopback interface: ", err)
	}
	plain.Close()
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	loopback := slices.IndexFunc(interfaces, func(i net.Interface) bool { return i.Flags&net.FlagLoopback != 0 })
	host := "::1%" + interfaces[loopback].Name
	s, err := httpserver.Listen(net.JoinHostPort(host, "0"), credentials.Pair{}, http.NotFoundHandler(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got, port, err := net.SplitHostPort(s.Address()); got != host || port == "0" || err != nil {
		t.Errorf("got %s, want host %s and a port", s.Address(), host)
	}
}

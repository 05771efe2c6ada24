package ms1

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// api is an MS1 on a real socket, between fakes.
type api struct {
	t         *testing.T
	url       string
	engine    *engine
	http      *http.Client // holds every exchange against the API's description
	store     *memoryStore
	transport *fakeTransport
	console   *servicetest.Console
	stop      func() error
}

func newAPI(t *testing.T, changes ...func(*Config)) *api {
	t.Helper()
	a := &api{t: t, http: openapitest.Client(t, "ms1"), store: newMemoryStore(), transport: &fakeTransport{}, console: &servicetest.Console{}}
	config := Defaults()
	config.Listen = "127.0.0.1:0"
	config.Interaction.DrainSeconds = 1
	for _, change := range changes {
		change(&config)
	}
	log := zerolog.New(a.console)
	tel, err := telemetry.New(t.Context(), config.Tracing, "ms1", "test", log)
	servicetest.NoError(t, err)
	s, err := New(config, a.store, a.transport, log, tel)
	servicetest.NoError(t, err)
	a.url, a.engine = "http://"+s.Address(), s.engine
	a.transport.connected = s.engine.connected
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	a.stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-done, tel.Shutdown(context.Background()))
	})
	t.Cleanup(func() {
		if err := a.stop(); err != nil {
			t.Error(err)
		}
	})
	a.transport.connect(1)
	servicetest.Eventually(t, 10*time.Second, "ready", func() bool { return a.do("GET", "/readyz", "").StatusCode == http.StatusOK })
	return a
}

// answer is a response with its body read.
type answer struct {
	*http.Response
	text string
}

func (a answer) member(name string) any {
	var body map[string]any
	if json.Unmarshal([]byte(a.text), &body) != nil {
		return nil
	}
	return body[name]
}

func (a *api) do(method, path, body string, header ...string) answer {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, strings.NewReader(body))
	servicetest.NoError(a.t, err)
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.http.Do(req)
	servicetest.NoError(a.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	servicetest.NoError(a.t, err)
	got := answer{resp, string(text)}
	if resp.StatusCode >= 400 && method != http.MethodHead && path != "/readyz" {
		if resp.Header.Get("Content-Type") != httpserver.ProblemType || got.member("detail") == "" || got.member("status") != float64(resp.StatusCode) {
			a.t.Errorf("%s %s: the error is no problem details: %s %s", method, path, resp.Header.Get("Content-Type"), text)
		}
	}
	return got
}

func (a *api) want(got answer, status int, texts ...string) {
	a.t.Helper()
	if got.StatusCode != status {
		a.t.Errorf("%s %s: %s %s, want %d", got.Request.Method, got.Request.URL.RequestURI(), got.Status, got.text, status)
	}
	for _, text := range texts {
		if !strings.Contains(got.text, text) {
			a.t.Errorf("%s %s: %s, want %q in it", got.Request.Method, got.Request.URL.RequestURI(), got.text, text)
		}
	}
}

// sent waits for the nth frame on the link.
func (a *api) sent(n int) message.Message {
	a.t.Helper()
	servicetest.Eventually(a.t, 10*time.Second, fmt.Sprintf("frame %d is sent", n), func() bool { return len(a.transport.frames()) >= n })
	return a.transport.frames()[n-1]
}

func back(m message.Message) string {
	m.Service2, m.Service3 = m.Service1+1, m.Service1+2
	return string(m.Encode())
}

func TestASessionThroughTheAPI(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/status", ""), 200, `"state":"idle"`, `"session":null`)
	a.want(a.do("GET", "/stop", ""), 409, "no session is running")
	got := a.do("GET", "/start", "")
	a.want(got, 202, `"session_id":1`)
	if got.Header.Get("Cache-Control") != "no-store" {
		t.Error("the answer to /start may be cached")
	}
	if !strings.Contains(a.console.String(), "GET /start") {
		t.Errorf("the request is not in the log:\n%s", a.console)
	}
	m := a.sent(1)
	a.want(a.do("GET", "/start", ""), 409, `"session_id":1`, "running")
	a.want(a.do("GET", "/status", ""), 200, `"state":"running"`, `"generated":1`, `"stored":0`, `"lost":1`)
	a.want(a.do("GET", "/sessions/1", ""), 200, `"generated":1`, `"ended_at":null`)
	a.want(a.do("POST", "/store", back(m)), 200, "stored")
	a.want(a.do("POST", "/store", back(m)), 200, "repeat")
	a.want(a.do("POST", "/store", back(message.Message{SessionID: 1, Service1: m.Service1 - 1})), 404, httpserver.UnknownMessage)
	a.sent(2)
	a.want(a.do("GET", "/stop", ""), 200, `"end_reason":"stopped"`, `"generated":2`, `"stored":1`, `"duplicates":1`, `"lost":1`, "total_seconds", `"ms1_to_ms2":{"p50_seconds":0.000001`)
	a.want(a.do("GET", "/sessions/1", ""), 200, `"end_reason":"stopped"`, `"lost":1`, `"lost_messages":[{"service1_timestamp":`, `"reason":"`)
	if log, key := a.console.String(), a.sent(2).Key().String(); !strings.Contains(log, "message given up") || !strings.Contains(log, key) {
		t.Errorf("the lost message %s is not in the log:\n%s", key, log)
	}
	a.want(a.do("POST", "/store", back(a.sent(2))), 200, "stored")
	a.want(a.do("GET", "/status", ""), 200, `"state":"idle"`, `"stored":2`, `"lost":0`)
	a.want(a.do("GET", "/metrics", ""), 200, "tricycle_messages_generated_total 2", "tricycle_messages_stored_total 1", "tricycle_messages_late_total 1",
		"tricycle_messages_duplicate_total 1", "tricycle_messages_given_up_total 1", `tricycle_store_requests_total{code="200"} 3`,
		`tricycle_hop_seconds_count{hop="round"} 1`, "tricycle_messages_under_way 0")
}

func TestStartParameters(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for query, text := range map[string]string{
		"interval=0":               "interval",
		"interval=86401":           "1 to 86400",
		"interval=-1":              "interval",
		"interval=1.5":             "interval",
		"interval=+5":              "interval",
		"interval=05":              "interval",
		"interval=5s":              "interval",
		"interval=":                "interval",
		"interval=1&interval=2":    "interval",
		"in_flight=0":              "1 to 4096",
		"in_flight=4097":           "in_flight",
		"in_flight=99999999999999": "in_flight",
		"in-flight=1":              "expected one of in_flight, interval", // the flag of allinone has a hyphen
		"interval=1;in_flight=1":   "query",
		"interval=%zz":             "query",
	} {
		a.want(a.do("GET", "/start?"+query, ""), 400, text)
	}
	if len(a.store.sessions) != 0 {
		t.Fatal("a refused request opened a session")
	}
	a.want(a.do("GET", "/start?interval=86400&in_flight=4096", ""), 202)
	if row := a.store.sessions[0]; row.IntervalSeconds != 86400 || row.InFlight != 4096 {
		t.Errorf("row %+v", row)
	}
}

func TestMethodsAndPaths(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"HEAD", "/start", 405, "GET"},
		{"HEAD", "/stop", 405, "GET"},
		{"POST", "/start", 405, "GET"},
		{"OPTIONS", "/stop", 405, "GET"},
		{"GET", "/store", 405, "POST"},
		{"PUT", "/store", 405, "POST"},
		{"DELETE", "/sessions/1", 405, "GET, HEAD"},
		{"POST", "/", 405, "GET, HEAD"},
		{"POST", "/sessions", 405, "GET, HEAD"},
		{"GET", "/page", 404, ""},
		{"GET", "//start", 404, ""},
		{"GET", "/Start", 404, ""},
		{"GET", "/session", 404, ""},
		{"GET", "/sessions/1", 404, ""},
		{"GET", "/sessions/0", 404, ""},
		{"GET", "/sessions/-1", 404, ""},
		{"GET", "/sessions/01", 404, ""},
		{"GET", "/sessions/99999999999999999999", 404, ""},
		{"GET", "/sessions/abc", 404, ""},
		{"HEAD", "/status", 200, ""},
		{"HEAD", "/sessions/1", 404, ""},
		{"HEAD", "/healthz", 200, ""},
		{"HEAD", "/readyz", 200, ""},
		{"HEAD", "/metrics", 200, ""},
		{"GET", "/healthz", 200, ""},
	} {
		got := a.do(c.method, c.path, "")
		a.want(got, c.status)
		if got.Header.Get("Allow") != c.allow {
			t.Errorf("%s %s: Allow %q, want %q", c.method, c.path, got.Header.Get("Allow"), c.allow)
		}
	}
	if len(a.store.sessions) != 0 {
		t.Error("one of these opened a session")
	}
}

func TestCommandsRefuseOtherSites(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for _, path := range []string{"/start", "/stop"} {
		for _, site := range []string{"cross-site", "same-site", "nonsense"} {
			a.want(a.do("GET", path, "", "Sec-Fetch-Site", site), 403, site)
		}
	}
	a.want(a.do("POST", "/store", "{}", "Origin", "http://evil.example"), 403, "Origin")
	a.want(a.do("POST", "/store", "{}", "Content-Type", "text/plain"), 415, "text/plain")
	a.want(a.do("GET", "/start", "", "Sec-Fetch-Site", "none"), 202)
	a.want(a.do("GET", "/stop", "", "Sec-Fetch-Site", "same-origin"), 200)
}

func TestStoreRefusesWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start", ""), 202)
	m := a.sent(1)
	whole := back(m)
	for name, c := range map[string]struct {
		body   string
		status int
		text   string
	}{
		"nothing":           {"", 400, `"field":"message"`},
		"no JSON":           {"hello", 400, httpserver.MalformedMessage},
		"a sixth field":     {strings.Replace(whole, "{", `{"x":1,`, 1), 400, `"field":"x"`},
		"two stamps only":   {string(m.Encode()), 400, "service2_timestamp"},
		"the last stamp":    {strings.Replace(whole, `"end_timestamp":null`, `"end_timestamp":"2026-11-23T10:15:30.123456Z"`, 1), 400, "end_timestamp"},
		"a local time":      {strings.Replace(whole, `Z"`, `+01:00"`, 1), 400, "service1_timestamp"},
		"trailing bytes":    {whole + "{}", 400, "after the object"},
		"4096 bytes":        {whole + strings.Repeat(" ", message.MaxBytes-len(whole)-1) + "x", 400, "message"},
		"4097 bytes":        {whole + strings.Repeat(" ", message.MaxBytes-len(whole)+1), 413, "4096"},
		"4097 bytes of bad": {strings.Repeat("x", 4097), 413, httpserver.MessageTooLarge},
		"a huge body":       {strings.Repeat("x", 10<<20), 413, "4096"},
	} {
		t.Run(name, func(t *testing.T) { a.want(a.do("POST", "/store", c.body), c.status, c.text) })
	}
	a.want(a.do("POST", "/store", whole+strings.Repeat(" ", message.MaxBytes-len(whole))), 200)
	if !a.console.Has(`"level":"warn"`) || !a.console.Has("message refused") || a.console.Has(`"trace_id":"0000`) {
		t.Errorf("got %s, want a refused message and no trace", a.console)
	}
}

// A body with a content coding is not taken for a message that can never be stored.
func TestStoreRefusesContentCodings(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start", ""), 202)
	for _, coding := range []string{"gzip", "br", "gzip, identity", "x"} {
		got := a.do("POST", "/store", "\x1f\x8b", "Content-Encoding", coding)
		a.want(got, 415, "Content-Encoding: must be identity", `"type":"about:blank"`)
		if accepts := got.Header.Get("Accept-Encoding"); accepts != "identity" { // RFC 9110, 15.5.16
			t.Errorf("%s: got Accept-Encoding %q, want identity", coding, accepts)
		}
	}
	a.want(a.do("POST", "/store", back(a.sent(1)), "Content-Encoding", "Identity"), 200)
}

// A client that will not use its connection again is still sending when it is
// answered; the answer must not be lost with what it has sent.
func TestAHugeBodyIsAnsweredBeforeItsConnectionCloses(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	for range 20 {
		a.want(a.do("POST", "/store", strings.Repeat("x", 10<<20), "Connection", "close"), 413, "4096")
	}
}

func TestASlowBodyIsCutOff(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	servicetest.NoError(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /store HTTP/1.1\r\nHost: ms1\r\nContent-Length: 200\r\n\r\n{")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	servicetest.NoError(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a body that does not come: %s, want 408", resp.Status)
	}
	openapitest.Exchange(t, "ms1", httptest.NewRequest("POST", "/store", nil), resp)
}

func TestStoreAnswers503UntilCommitted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start", ""), 202)
	m := a.sent(1)
	a.store.fail(errors.New("connection refused"))
	got := a.do("POST", "/store", back(m))
	a.want(got, 503, "not stored yet")
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	a.store.fail(nil)
	a.want(a.do("POST", "/store", back(m)), 200, "stored")

	// A commit that hangs: the caller learns after 3 s, the message stays.
	m = a.sent(2)
	release := a.store.block()
	a.want(a.do("POST", "/store", back(m)), 503)
	release()
	a.want(a.do("POST", "/store", back(m)), 200)
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/readyz", ""), 200, `"database":"ok"`, `"ms2":"ok"`)
	a.transport.connect(0)
	a.store.fail(errors.New("access denied"))
	a.want(a.do("GET", "/readyz", ""), 503, `"database":"not ready"`, `"ms2":"not ready"`)
	a.want(a.do("GET", "/start", ""), 503, `"missing":{"database":"not ready","ms2":"not ready"}`)
	a.want(a.do("GET", "/sessions/1", ""), 503, "database: not ready")
	for _, text := range []string{"session not started", "session not read", `"error":"not ready: database: access denied; ms2: not connected"`} { // beside the request, in the same second
		if n := a.console.Count(text); n != 1 {
			t.Errorf("%q is logged %d times, want the cause once:\n%s", text, n, a.console)
		}
	}
}

func TestStopWithoutADatabase(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start", ""), 202)
	a.sent(1)
	const cause = "10.0.0.7: access denied for user tricycle"
	a.store.fail(errors.New(cause))
	stopped := a.do("GET", "/stop", "")
	a.want(stopped, 503, "not recorded", `"generated":1`, `"lost":1`)
	status, started, session := a.do("GET", "/status", ""), a.do("GET", "/start", ""), a.do("GET", "/sessions/1", "")
	a.want(status, 200, "not recorded")
	a.want(started, 503, "database")
	a.want(session, 503, "database")
	_, event := a.listen("").next()
	if log := a.console.String(); !strings.Contains(log, "NOT RECORDED in the database: "+cause) || !strings.Contains(log, "messages generated: 1") {
		t.Errorf("the figures and the cause are not in the log:\n%s", log)
	}
	for _, text := range []string{stopped.text, status.text, started.text, session.text, fmt.Sprint(event)} {
		if strings.Contains(text, "denied") {
			t.Errorf("got %s, want no cause for every client", text)
		}
	}
	a.store.fail(nil)
	servicetest.Eventually(t, 10*time.Second, "the session is recorded", func() bool { return a.do("GET", "/status", "").member("state") == string(Idle) })
	a.want(a.do("GET", "/sessions/1", ""), 200, `"end_reason":"stopped"`)
	a.want(a.do("GET", "/start", ""), 202)
}

func TestShutdownWhileAClientWaitsForStop(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start", ""), 202)
	a.sent(1)
	answers := make(chan answer, 1)
	go func() { answers <- a.do("GET", "/stop", "") }()
	servicetest.Eventually(t, 10*time.Second, "it waits", func() bool { return a.console.Has("GET /stop") })
	servicetest.NoError(t, a.stop())
	a.want(<-answers, 200, `"generated":1`)
}

// Routes that act want the token; those that only read need none.
func TestToken(t *testing.T) {
	t.Parallel()
	file := servicetest.File(t, "token", "secret\n")
	a := newAPI(t, func(c *Config) { c.TokenFile = file })
	const token = "Bearer secret"
	a.want(a.do("GET", "/start", ""), 401, "Authorization: must be Bearer")
	a.want(a.do("GET", "/stop", "", "Authorization", "Bearer other"), 401)
	a.want(a.do("POST", "/store", "{}"), 401)
	a.want(a.do("POST", "/store", "{}", "Authorization", token), 400)
	a.want(a.do("GET", "/stop", "", "Authorization", token), 409)
	a.want(a.do("GET", "/start", "", "Authorization", token), 202)
	a.want(a.do("GET", "/status", ""), 200, `"state":"running"`)
}

func TestFilesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	tel, err := telemetry.New(t.Context(), telemetry.Defaults(), "ms1", "test", zerolog.Nop())
	servicetest.NoError(t, err)
	for want, change := range map[string]func(*Config){
		"token_file: open absent: ":           func(c *Config) { c.TokenFile = "absent" },
		"ms2.token_file: open absent: ":       func(c *Config) { c.MS2.TokenFile = "absent" },
		"ms2.ca_file: open absent: ":          func(c *Config) { c.MS2.CAFile = "absent" },
		"tls.certificate_file: open absent: ": func(c *Config) { c.TLS.CertificateFile, c.TLS.KeyFile = "absent", "absent" },
	} {
		config := Defaults()
		config.Listen = "127.0.0.1:0"
		change(&config)
		if _, err := New(config, newMemoryStore(), &fakeTransport{}, zerolog.Nop(), tel); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

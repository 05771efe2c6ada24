package ms3

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// answer shapes that must be repeated until MS1 takes the message, and never
// lead to a dead letter.
func TestRepeatedUntilStored(t *testing.T) {
	t.Parallel()
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	}
	zeros := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		_, _ = z.Write(make([]byte, 1<<20)) // more takes too long under the race detector
		_ = z.Close()
	}
	for name, c := range map[string]struct {
		bad  func(http.ResponseWriter, *http.Request)
		log  string
		kind string
	}{
		"500":                    {status(500), "MS1 does not take messages", "500"},
		"503":                    {status(503), "MS1 does not take messages", "503"},
		"200 is the one":         {status(204), "not from MS1", "204"},
		"a stranger's empty 200": {status(200), "not from MS1", "200"},
		"a stranger's JSON":      {replies(200, "application/json", `{"status":"ok"}`), "not from MS1", "200"},
		"outcome as text":        {replies(200, "text/html", `{"outcome":"stored"}`), "not from MS1", "200"},
		"another outcome":        {replies(200, "application/json", `{"outcome":"unknown"}`), "not from MS1", "200"},
		"endless 200":            {endless, "not from MS1", "200"},
		"gzip 200":               {zeros, "not from MS1", "200"},
		"nginx's 400":            {replies(400, "text/html", "<html><center>The plain HTTP request was sent to HTTPS port</center>"), "not from MS1", "400"},
		"nginx's 413":            {replies(413, "text/html", "<html>413 Request Entity Too Large"), "not from MS1", "413"},
		"another's problem":      {replies(400, httpserver.ProblemType, `{"type":"about:blank","status":400}`), "not from MS1", "400"},
		"our type as JSON":       {replies(400, "application/json", `{"type":"`+httpserver.MalformedMessage+`"}`), "not from MS1", "400"},
		"our type, other status": {replies(404, httpserver.ProblemType, `{"type":"`+httpserver.MalformedMessage+`"}`), "not from MS1", "404"},
		"200 torn in the body":   {torn("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"), "MS1 does not answer", "connection"},
		"401":                    {status(401), "MS1 refuses the token", "401"},
		"a stranger's 404":       {http.NotFound, "not from MS1", "404"},
		"another 404":            {func(w http.ResponseWriter, _ *http.Request) { httpserver.Problem{Status: 404}.Write(w) }, "not from MS1", "404"},
		"405":                    {status(405), "not from MS1", "405"},
		"408":                    {status(408), "", "408"},
		"429":                    {status(429), "MS1 does not take messages", "429"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "not from MS1", "307"},
		"closed at once":     {torn(""), "MS1 does not answer", "connection"},
		"torn in the status": {torn("HTTP/1.1 20"), "MS1 does not answer", "connection"},
		"torn in a header":   {torn("HTTP/1.1 200 OK\r\nContent-Len"), "MS1 does not answer", "connection"},
		"endless header":     {torn("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxAnswer)), "headers exceeded 262144 bytes", "connection"},
		"silence":            {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "MS1 does not answer", "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, store := topictest.Config(t), newMS1(t)
			collector, spans := telemetrytest.Collector(t)
			source := newMS2(t, k)
			store.answers(func(w http.ResponseWriter, r *http.Request, _ message.Message, try int) {
				if try <= 3 {
					c.bad(w, r)
				}
			})
			r := start(t, k, store.URL, func(c *Config) { c.Tracing.Endpoint = collector }, func(s *Service) {
				if name == "silence" {
					s.client.http.Timeout = time.Second
				}
			})
			ms, records := messages(1)
			source.produce(0, records...)
			source.commits(1)
			posted := store.posted(ms[0].Key())
			if len(posted) < 4 { // more if an answer takes longer than the time-out; a request that does may not have arrived
				t.Fatalf("posted %d times, expected 4", len(posted))
			}
			for _, p := range posted {
				if p != posted[0] {
					t.Errorf("got %s and %s, want one stamp for all tries", p.Encode(), posted[0].Encode())
				}
			}
			retries := int(r.Metric("tricycle_ms3_store_retries_total"))
			if retries < len(posted)-1 || retries > len(posted)-1 && name != "silence" || r.Metric("tricycle_ms3_dead_letters_total") != 0 {
				t.Errorf("got %d retries, want %d and no dead letter", retries, len(posted)-1)
			}
			if c.log != "" && r.Log.Count(c.log) != 1 {
				t.Errorf("got %d log entries, want one", r.Log.Count(c.log))
			}
			r.Stop()
			s := spans()
			if len(s) != 1 || len(s[0].Events) != retries || s[0].Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
				t.Fatalf("got %v, want one span with an event for each retry", s)
			}
			if !slices.ContainsFunc(s[0].Events, func(e *otlp.Span_Event) bool {
				return e.Name == "retry" && e.Attributes[0].Value.GetStringValue() == c.kind
			}) {
				t.Errorf("got events %v, want retries after %s", s[0].Events, c.kind)
			}
		})
	}
}

func TestRefusedForGood(t *testing.T) {
	t.Parallel()
	answer := httpserver.Problem{Type: httpserver.UnknownMessage, Status: 404, Detail: "never sent"}
	const reason = "MS1 answered 404: never sent"
	k, store, source := neighbours(t, topictest.Config(t))
	collector, spans := telemetrytest.Collector(t)
	ms, records := messages(20)
	refused := ms[7].Key()
	store.answers(func(w http.ResponseWriter, _ *http.Request, m message.Message, _ int) {
		if m.Key() == refused {
			answer.Write(w)
		}
	})
	r := start(t, k, store.URL, func(c *Config) { c.Tracing.Endpoint = collector })
	records[7].Headers = []kafka.Header{{Key: "traceparent", Value: []byte("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")}}
	source.produce(2, records...)
	source.commits(20)
	if n := len(store.posted(refused)); n != 1 {
		t.Errorf("posted %d times, expected once", n)
	}
	letter := topictest.Read(t, k, k.DeadLetterTopic, 1)[0]
	if string(letter.Key) != refused.String() || !bytes.Equal(letter.Value, records[7].Value) {
		t.Errorf("got %s %s, want the record as it was", letter.Key, letter.Value)
	}
	headers := topic.Headers(letter.Headers)
	for key, want := range map[string]string{
		topic.HeaderReason: reason, topic.HeaderTopic: k.Topic, topic.HeaderPartition: "2", topic.HeaderOffset: "7",
		topic.HeaderStatus: "404", "traceparent": string(records[7].Headers[0].Value),
	} {
		if got := headers.Get(key); got != want {
			t.Errorf("got header %s = %q, want %q", key, got, want)
		}
	}
	if r.Metric("tricycle_ms3_dead_letters_total", "refused") != 1 || r.Metric("tricycle_ms3_messages_stored_total") != 19 {
		t.Error("expected one dead letter and the others stored")
	}
	r.Stop()
	failed := 0
	for _, s := range spans() {
		if s.Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
			failed++
			if got := telemetrytest.Attribute(s, "error.type"); got != "refused" || s.Status.Message != reason {
				t.Errorf("found error.type %q, %q", got, s.Status.Message)
			}
		}
	}
	if n := len(spans()); n != 20 || failed != 1 {
		t.Errorf("got %d spans, %d failed, want 20 and 1", n, failed)
	}
}

// Other producers may write keys and headers of any size.
func TestMemoryIsBoundedWhileMS1IsDown(t *testing.T) {
	t.Parallel()
	const large = 8 << 10 // as much as two messages, and the record is one itself
	for name, c := range map[string]struct {
		records int
		most    float64 // of them are fetched
		key     []byte
		headers []kafka.Header
	}{
		"messages":     {4 * maxOpen, maxOpen, nil, nil},
		"large key":    {500, maxOpen / 3, make([]byte, large), nil},
		"large header": {500, maxOpen / 3, nil, []kafka.Header{{Key: "k", Value: make([]byte, large)}}},
		"many headers": {500, maxOpen / 3, nil, make([]kafka.Header, large/40)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, store, source := neighbours(t, topictest.Config(t))
			var takes atomic.Bool
			store.answers(func(w http.ResponseWriter, _ *http.Request, _ message.Message, _ int) {
				if !takes.Load() {
					w.WriteHeader(503)
				}
			})
			ms, records := messages(c.records)
			for i := range records {
				records[i].Key, records[i].Headers = c.key, c.headers
			}
			source.produce(0, records...)
			r := start(t, k, store.URL)
			full := func() bool { return r.Metric("tricycle_ms3_uncommitted_weight") == maxOpen }
			servicetest.Eventually(t, time.Minute, "no room", full)
			begin := time.Now()
			servicetest.Eventually(t, time.Minute, "time passes", func() bool {
				if n := r.Metric("tricycle_ms3_records_fetched_total"); n > c.most || !full() {
					t.Fatalf("%v records are fetched, want at most %v", n, c.most)
				}
				return time.Since(begin) > time.Second
			})
			takes.Store(true)
			servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == len(ms) })
			source.commits(int64(len(ms)))
		})
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	r := start(t, k, store.URL)
	r.Ready()
	store.CloseClientConnections()
	store.Close()
	if status, body := r.Get("/readyz"); status != 503 || !strings.Contains(body, `"kafka":"ok"`) {
		t.Errorf("found %d %s without MS1", status, body)
	}
	if status, body := r.Get("/readyz?exclude=ms1"); status != 200 {
		t.Errorf("found %d %s", status, body)
	}
	if status, body := r.Get("/metrics"); status != 200 || !strings.Contains(body, "tricycle_ms3_store_duration_seconds") {
		t.Errorf("found %d %s", status, body)
	}
	healthy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) // 200 to everything
	defer healthy.Close()
	s := client(t, healthy.URL)
	if a, err := s.post(t.Context(), nil); err != nil || !a[0].wrong() {
		t.Errorf("found %v, %v for a stranger's 200", a, err)
	}
	if err := s.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ms1.url: must be") {
		t.Errorf("got %v after a stranger's 200, want an error that names ms1.url", err)
	}
}

// A wrong certificate or file is a clear error, and requests succeed as soon as
// it is right.
func TestTLSToMS1(t *testing.T) {
	t.Parallel()
	config, fail := credentialstest.New(t).Failing("127.0.0.1")
	server := credentialstest.Serve(t, config, func(http.ResponseWriter, *http.Request) {})
	ca := credentialstest.New(t).File
	s := client(t, server.URL, func(c *Config) { c.MS1.CAFile = ca })
	fail("ms1", ca, server.Listener.Addr().String(), func(want string) {
		t.Helper()
		if _, err := s.post(t.Context(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if err := s.ready(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	})
	servicetest.NoError(t, s.ready(t.Context()))
}

// TLS on one side only names the key of the address.
func TestTLSOnOneSide(t *testing.T) {
	t.Parallel()
	plain, secure := httptest.NewServer(http.NotFoundHandler()), credentialstest.Serve(t, nil, http.NotFound)
	defer plain.Close()
	for url, want := range map[string]string{
		"https://" + plain.Listener.Addr().String(): "ms1: expected TLS at " + plain.Listener.Addr().String() + ", found plain text",
		"http://" + secure.Listener.Addr().String(): "ms1.url: http://" + secure.Listener.Addr().String() + `/healthz must answer 200, got 400 Bad Request: "Client sent an HTTP request to an HTTPS server.\n"`,
	} {
		if err := client(t, url).ready(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A 401 is a wrong configuration: nothing is consumed until the token is right.
func TestTokenThatMS1Refuses(t *testing.T) {
	t.Parallel()
	file := servicetest.File(t, "token", "wrong\n")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			return
		}
		if r.Header.Get("Authorization") != "Bearer right" {
			httpserver.Problem{Status: http.StatusUnauthorized}.Write(w)
			return
		}
		httpserver.JSON(w, http.StatusOK, map[string]string{"outcome": "stored"})
	}))
	defer server.Close()
	s := client(t, server.URL, func(c *Config) { c.MS1.TokenFile = file })
	for _, bodies := range [][][]byte{{nil}, {nil, nil}} {
		answers, err := s.post(t.Context(), bodies...)
		if err != nil || !answers[0].wrong() || answers[0].final() || answers[0].status != http.StatusUnauthorized {
			t.Errorf("got %+v, %v, want a 401 that is not final", answers, err)
		}
	}
	want := `ms1.token_file: must name a file with MS1's token, got "` + file + `" and status 401 from ` + server.URL + "/store"
	if err := s.ready(t.Context()); err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
	servicetest.File(t, file, "right\n")
	servicetest.Eventually(t, 20*time.Second, "the right token is read", func() bool {
		answers, err := s.post(t.Context(), nil)
		return err == nil && answers[0].stored && s.ready(t.Context()) == nil
	})
}

// client returns a client of the MS1 at the URL.
func client(t *testing.T, url string, change ...any) *storeClient {
	t.Helper()
	c := Defaults()
	c.MS1.URL = url + "/store"
	programtest.Change(&c, change)
	s, err := newStoreClient(c)
	servicetest.NoError(t, err)
	t.Cleanup(s.http.CloseIdleConnections)
	return s
}

// A proxy in front of MS1 may have a prefix for all of its paths.
func TestReadyBehindAPrefix(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{"": "/healthz", "/store": "/healthz", "/store/": "/healthz", "/a/b/store": "/a/b/healthz", "/a%2Fb/store": "/a%2Fb/healthz"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI != want {
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		defer server.Close()
		s := client(t, "", func(c *Config) { c.MS1.URL = server.URL + path })
		if err := s.ready(t.Context()); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// MS1 under a name that it does not show itself under takes messages all the
// same; a stranger that answers 421 does not.
func TestReadyUnderAnyName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		ready  bool
	}{
		"MS1": {func(w http.ResponseWriter, _ *http.Request) {
			httpserver.Problem{Status: http.StatusMisdirectedRequest}.Write(w)
		}, true},
		"a stranger":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMisdirectedRequest) }, false},
		"another server": {http.NotFound, false},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.answer)
			defer server.Close()
			if err := client(t, server.URL).ready(t.Context()); (err == nil) != c.ready {
				t.Errorf("got %v, want ready: %t", err, c.ready)
			}
		})
	}
}

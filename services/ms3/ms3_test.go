package ms3

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestMain(m *testing.M) { servicetest.Main(m, openapitest.Complete("ms3")) }

// ms1 stands for MS1: it takes what is posted and answers as it is told.
type ms1 struct {
	*httptest.Server
	answer atomic.Pointer[func(w http.ResponseWriter, r *http.Request, m message.Message, try int)]

	mu    sync.Mutex
	tries map[message.Key][]message.Message // what was posted
	trace []string                          // traceparent of each request
	conns map[string]bool                   // remote addresses
}

func newMS1(t *testing.T) *ms1 {
	s := &ms1{tries: map[message.Key][]message.Message{}, conns: map[string]bool{}}
	s.answers(func(http.ResponseWriter, *http.Request, message.Message, int) {})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			return
		}
		if err := openapitest.Request("ms1", r); err != nil {
			t.Errorf("found %s %s, which is not as MS1's description has it: %v", r.Method, r.URL, err)
		}
		body, _ := io.ReadAll(r.Body)
		m, err := message.Decode(body, message.AtStore)
		if err != nil {
			t.Errorf("a message MS1 would not take: %v", err)
		}
		s.mu.Lock()
		s.tries[m.Key()] = append(s.tries[m.Key()], m)
		s.trace = append(s.trace, r.Header.Get("traceparent"))
		s.conns[r.RemoteAddr] = true
		try := len(s.tries[m.Key()])
		s.mu.Unlock()
		answer := &answerWriter{ResponseWriter: w}
		(*s.answer.Load())(answer, r, m, try)
		if !answer.written {
			httpserver.JSON(w, http.StatusOK, map[string]string{"outcome": "stored"})
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// answerWriter remembers whether the test has answered by itself.
type answerWriter struct {
	http.ResponseWriter
	written bool
}

func (w *answerWriter) WriteHeader(status int) {
	w.written = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(text []byte) (int, error) {
	w.written = true
	return w.ResponseWriter.Write(text)
}

func (w *answerWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.written = true
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

func (s *ms1) answers(f func(w http.ResponseWriter, r *http.Request, m message.Message, try int)) {
	s.answer.Store(&f)
}

// got returns how many different messages were posted.
func (s *ms1) got() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tries)
}

func (s *ms1) posted(key message.Key) []message.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]message.Message(nil), s.tries[key]...)
}

// running is an MS3 that a test has started.
type running struct {
	*Service
	*servicetest.Running
}

// start runs MS3 until the test ends, with a group named after the topic. The
// functions may change the configuration, or the service before it runs.
func start(t *testing.T, k topic.Config, ms1URL string, change ...any) *running {
	t.Helper()
	c := Defaults()
	c.Listen, c.Kafka, c.MS1.URL, c.GroupID = "127.0.0.1:0", k, ms1URL+"/store", "group."+k.Topic
	servicetest.Change(&c, change)
	service, r := servicetest.Start(t, "ms3", c.Tracing, func(log zerolog.Logger, tel *telemetry.Telemetry) (*Service, error) {
		s, err := New(c, log, tel)
		if err == nil {
			servicetest.Change(s, change)
		}
		return s, err
	})
	return &running{service, r}
}

// joined waits until MS3 is a member of its group.
func (r *running) joined(t *testing.T) {
	t.Helper()
	servicetest.Eventually(t, time.Minute, "a member of the group", func() bool { return r.consumer.ready(t.Context()) == nil })
}

// ms2 stands for MS2: it writes to the topic.
type ms2 struct {
	*topic.Cluster
	t *testing.T
	k topic.Config
}

func newMS2(t *testing.T, k topic.Config) *ms2 {
	t.Helper()
	l := topic.NewCluster(k, "test", zerolog.Nop())
	topictest.Run(t, l)
	return &ms2{l, t, k}
}

// produce writes records to a partition, again until it succeeds.
func (m *ms2) produce(partition int, records ...kafka.Message) {
	m.t.Helper()
	for len(records) > 0 {
		n := min(len(records), 100)
		servicetest.Eventually(m.t, time.Minute, "produced", func() bool {
			_, err := m.Produce(m.t.Context(), m.k.Topic, partition, records[:n]...)
			return err == nil
		})
		records = records[n:]
	}
}

// messages are n messages of one session, as MS2 writes them.
func messages(n int) ([]message.Message, []kafka.Message) {
	session, base := mathrand.Int64N(1<<40)+1, message.StampOf(time.Now())
	ms, records := make([]message.Message, n), make([]kafka.Message, n)
	for i := range ms {
		ms[i] = message.Message{SessionID: session, Service1: base + message.Stamp(i), Service2: base + message.Stamp(i)}
		records[i] = record(ms[i])
	}
	return ms, records
}

func record(m message.Message) kafka.Message {
	return kafka.Message{Key: []byte(m.Key().String()), Value: m.Encode()}
}

// spread writes the records to all four partitions in turn.
func (m *ms2) spread(records []kafka.Message) {
	m.t.Helper()
	var by [4][]kafka.Message
	for i, r := range records {
		by[i%4] = append(by[i%4], r)
	}
	for p, records := range by {
		m.produce(p, records...)
	}
}

// committed returns the committed offsets of the group, summed over the
// partitions.
func (m *ms2) committed(group string) int64 {
	m.t.Helper()
	resp, err := m.Client().OffsetFetch(m.t.Context(), &kafka.OffsetFetchRequest{
		GroupID: group, Topics: map[string][]int{m.k.Topic: {0, 1, 2, 3}},
	})
	if err != nil {
		return -1
	}
	sum := int64(0)
	for _, p := range resp.Topics[m.k.Topic] {
		sum += max(0, p.CommittedOffset)
	}
	return sum
}

// commits waits until the group has committed exactly n records.
func (m *ms2) commits(n int64) {
	m.t.Helper()
	servicetest.Eventually(m.t, time.Minute, fmt.Sprintf("%d committed", n), func() bool { return m.committed("group."+m.k.Topic) == n })
}

func TestMessagesReachMS1(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	before := message.StampOf(time.Now())
	r := start(t, k, store.URL)
	ms, records := messages(2000)
	source.spread(records)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == len(ms) })
	source.commits(2000)
	after := message.StampOf(time.Now())
	for _, m := range ms {
		posted := store.posted(m.Key())
		if len(posted) != 1 {
			t.Fatalf("%s was posted %d times", m.Key(), len(posted))
		}
		if got := posted[0]; got.Service2 != m.Service2 || got.Service3 < before || got.Service3 > after || got.End != 0 {
			t.Errorf("found %s, expected service3_timestamp from %s to %s", got.Encode(), before, after)
		}
	}
	if n := len(store.conns); n > 2*r.consumer.config.Workers {
		t.Errorf("found %d connections, expected kept-alive ones", n)
	}
	for name, want := range map[string]float64{
		"tricycle_ms3_records_fetched_total": 2000, "tricycle_ms3_messages_stored_total": 2000, "tricycle_ms3_store_retries_total": 0,
		"tricycle_ms3_dead_letters_total": 0, "tricycle_ms3_uncommitted_weight": 0, "tricycle_ms3_reader_reopened_total": 0,
	} {
		if got := r.Metric(name); got != want {
			t.Errorf("found %s = %v, expected %v", name, got, want)
		}
	}
}

// answer shapes that must be repeated until MS1 takes the message, and never
// lead to a dead letter.
func TestRepeatedUntilStored(t *testing.T) {
	t.Parallel()
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	body := func(code int, media, text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", media)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, text)
		}
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
	torn := func(text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, buffer, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = buffer.WriteString(text)
			_ = buffer.Flush()
			conn.Close()
		}
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
		"a stranger's JSON":      {body(200, "application/json", `{"status":"ok"}`), "not from MS1", "200"},
		"outcome as text":        {body(200, "text/html", `{"outcome":"stored"}`), "not from MS1", "200"},
		"another outcome":        {body(200, "application/json", `{"outcome":"unknown"}`), "not from MS1", "200"},
		"endless 200":            {endless, "not from MS1", "200"},
		"gzip 200":               {zeros, "not from MS1", "200"},
		"nginx's 400":            {body(400, "text/html", "<html><center>The plain HTTP request was sent to HTTPS port</center>"), "not from MS1", "400"},
		"nginx's 413":            {body(413, "text/html", "<html>413 Request Entity Too Large"), "not from MS1", "413"},
		"another's problem":      {body(400, httpserver.ProblemType, `{"type":"about:blank","status":400}`), "not from MS1", "400"},
		"our type as JSON":       {body(400, "application/json", `{"type":"`+httpserver.MalformedMessage+`"}`), "not from MS1", "400"},
		"our type, other status": {body(404, httpserver.ProblemType, `{"type":"`+httpserver.MalformedMessage+`"}`), "not from MS1", "404"},
		"200 torn in the body":   {torn("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"), "MS1 does not answer", "connection"},
		"401":                    {status(401), "not from MS1", "401"},
		"a stranger's 404":       {func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "not from MS1", "404"},
		"another 404":            {func(w http.ResponseWriter, _ *http.Request) { httpserver.Problem{Status: 404}.Write(w) }, "not from MS1", "404"},
		"405":                    {status(405), "not from MS1", "405"},
		"408":                    {status(408), "", "408"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "not from MS1", "307"},
		"closed at once":     {torn(""), "MS1 does not answer", "connection"},
		"torn in the status": {torn("HTTP/1.1 20"), "MS1 does not answer", "connection"},
		"torn in a header":   {torn("HTTP/1.1 200 OK\r\nContent-Len"), "MS1 does not answer", "connection"},
		"silence":            {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "MS1 does not answer", "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, store := topictest.Config(t), newMS1(t)
			collector, spans := servicetest.Collector(t)
			source := newMS2(t, k)
			store.answers(func(w http.ResponseWriter, r *http.Request, _ message.Message, try int) {
				if try <= 3 {
					c.bad(w, r)
				}
			})
			r := start(t, k, store.URL, func(c *Config) { c.Tracing.Endpoint = collector }, func(s *Service) { s.client.http.Timeout = time.Second })
			ms, records := messages(1)
			source.produce(0, records...)
			source.commits(1)
			posted := store.posted(ms[0].Key())
			if len(posted) != 4 {
				t.Fatalf("posted %d times, expected 4", len(posted))
			}
			for _, p := range posted {
				if p != posted[0] {
					t.Errorf("found %s and %s, expected one stamp for all tries", p.Encode(), posted[0].Encode())
				}
			}
			if r.Metric("tricycle_ms3_store_retries_total") != 3 || r.Metric("tricycle_ms3_dead_letters_total") != 0 {
				t.Error("expected three retries and no dead letter")
			}
			if c.log != "" && r.Log.Count(c.log) != 1 {
				t.Errorf("found it logged %d times, expected once", r.Log.Count(c.log))
			}
			r.Stop()
			s := spans()
			if len(s) != 1 || len(s[0].Events) != 3 || s[0].Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
				t.Fatalf("found %v, expected one span with three events", s)
			}
			if e := s[0].Events[0]; e.Name != "retry" || e.Attributes[0].Value.GetStringValue() != c.kind {
				t.Errorf("found event %v, expected %s", e, c.kind)
			}
		})
	}
}

func TestRefusedForGood(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer httpserver.Problem
		reason string
	}{
		"400":     {httpserver.Problem{Type: httpserver.MalformedMessage, Status: 400, Detail: "session_id: found x"}, "MS1 answered 400: session_id: found x"},
		"413":     {httpserver.Problem{Type: httpserver.MessageTooLarge, Status: 413, Detail: "too long"}, "MS1 answered 413: too long"},
		"our 404": {httpserver.Problem{Status: 404, Type: httpserver.UnknownMessage, Detail: "never sent"}, "MS1 answered 404: never sent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, store := topictest.Config(t), newMS1(t)
			collector, spans := servicetest.Collector(t)
			source := newMS2(t, k)
			ms, records := messages(20)
			refused := ms[7].Key()
			store.answers(func(w http.ResponseWriter, _ *http.Request, m message.Message, _ int) {
				if m.Key() == refused {
					c.answer.Write(w)
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
				t.Errorf("found %s %s, expected the record as it was", letter.Key, letter.Value)
			}
			headers := topic.Headers(letter.Headers)
			for key, want := range map[string]string{
				topic.HeaderReason: c.reason, topic.HeaderTopic: k.Topic, topic.HeaderPartition: "2", topic.HeaderOffset: "7",
				topic.HeaderStatus: fmt.Sprint(c.answer.Status), "traceparent": string(records[7].Headers[0].Value),
			} {
				if got := headers.Get(key); got != want {
					t.Errorf("found header %s = %q, expected %q", key, got, want)
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
					if got := servicetest.Attribute(s, "error.type"); got != "refused" || s.Status.Message != c.reason {
						t.Errorf("found error.type %q, %q", got, s.Status.Message)
					}
				}
			}
			if n := len(spans()); n != 20 || failed != 1 {
				t.Errorf("found %d spans, %d failed, expected 20 and 1", n, failed)
			}
		})
	}
}

func TestMalformedRecordsBlockNothing(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	r := start(t, k, store.URL)
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	good, records := messages(400)
	const cases = 1200
	var mixed []kafka.Message
	malformed := map[string]bool{}
	for len(malformed) < cases {
		m := records[random.IntN(len(records))]
		value := bytes.Clone(m.Value)
		switch random.IntN(5) {
		case 0:
			value = value[:random.IntN(len(value))]
		case 1:
			value[random.IntN(12)] ^= byte(1 + random.IntN(127))
		case 2:
			value = make([]byte, random.IntN(9000))
			for i := range value {
				value[i] = byte(random.Uint32())
			}
		case 3: // a message that has not been at MS2
			value = bytes.Replace(value, []byte(`"service2_timestamp":"`), []byte(`"service2_timestamp":null,"x":"`), 1)
		case 4:
			value = append(value, '}')
		}
		if _, err := message.Decode(value, message.AtMS3); err == nil {
			t.Fatalf("the test made a good message: %s", value)
		}
		id := fmt.Sprintf("case %d", len(malformed))
		malformed[id] = true
		mixed = append(mixed, kafka.Message{Key: []byte(id), Value: value})
	}
	mixed = append(mixed, records...)
	mixed = append(mixed, kafka.Message{}, kafka.Message{Key: []byte("tombstone")})
	random.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	source.spread(mixed)
	servicetest.Eventually(t, time.Minute, "all good ones posted", func() bool { return store.got() == len(good) })
	source.commits(int64(len(mixed)))
	if got := r.Metric("tricycle_ms3_dead_letters_total", "malformed"); got < cases+2 {
		t.Errorf("found %v dead letters, expected %d", got, cases+2)
	}
	for _, letter := range topictest.Read(t, k, k.DeadLetterTopic, cases+2) {
		headers := topic.Headers(letter.Headers)
		if headers.Get(topic.HeaderReason) == "" || headers.Get(topic.HeaderStatus) != "" {
			t.Fatalf("found headers %v", headers)
		}
		delete(malformed, string(letter.Key))
	}
	if len(malformed) > 0 {
		t.Errorf("%d malformed records are no dead letters", len(malformed))
	}
}

func TestEndsOfTransactionsAreNoRecords(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	r := start(t, k, store.URL)
	_, records := messages(1)
	mark := []byte{0, 0, 0, 0, 0, 9}
	source.produce(0,
		kafka.Message{Key: []byte{0, 0, 0, 0}, Value: mark}, // aborted
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: mark}, // committed
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: records[0].Value},
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: []byte("junk")}, // both of somebody whose keys are numbers
		kafka.Message{Key: []byte{0, 0, 0, 2}, Value: mark},
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: mark}) // nothing after it
	source.commits(6)
	if store.got() != 1 || r.Metric("tricycle_ms3_records_fetched_total") != 3 || r.Metric("tricycle_ms3_dead_letters_total") != 2 {
		t.Errorf("found %d posted, %v fetched and %v dead letters, expected 1, 3 and 2", store.got(),
			r.Metric("tricycle_ms3_records_fetched_total"), r.Metric("tricycle_ms3_dead_letters_total"))
	}
}

func TestDeadLetterIsWrittenBeforeItsCommit(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store := topictest.For(t, address), newMS1(t)
	source := newMS2(t, k)
	fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: k.DeadLetterTopic, Err: kerr.NotEnoughReplicas, Count: -1})
	r := start(t, k, store.URL)
	good, records := messages(5)
	junk := kafka.Message{Value: bytes.Repeat([]byte("x"), 40_000), Headers: []kafka.Header{
		{Key: topic.HeaderOffset, Value: []byte("77")}, {Key: "mine", Value: []byte("1")}}} // it was a dead letter before
	source.produce(1, append([]kafka.Message{junk}, records...)...)
	servicetest.Eventually(t, time.Minute, "the others posted", func() bool { return store.got() == len(good) })
	servicetest.Eventually(t, time.Minute, "several tries", func() bool { return fault.Hits() > 3 })
	if n := source.committed("group." + k.Topic); n != 0 {
		t.Errorf("committed %d though the dead letter is not written", n)
	}
	if n := r.Log.Count("dead letter not written"); n != 1 {
		t.Errorf("found it logged %d times, expected once", n)
	}
	// The junk weighs as much as ten messages.
	servicetest.Eventually(t, time.Minute, "their weight", func() bool { return r.Metric("tricycle_ms3_uncommitted_weight") == 10+5 })
	fault.Remove()
	source.commits(6)
	found := map[string]string{}
	for _, h := range topictest.Read(t, k, k.DeadLetterTopic, 1)[0].Headers {
		if _, twice := found[h.Key]; twice {
			t.Errorf("found the header %s twice", h.Key)
		}
		found[h.Key] = string(h.Value)
	}
	if found[topic.HeaderOffset] != "0" || found["mine"] != "1" {
		t.Errorf("found %v, expected where it was found now, and the record's own header", found)
	}
}

func TestDeadLetterThatIsTooLargeGoesWithoutItsText(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store := topictest.For(t, address), newMS1(t)
	source := newMS2(t, k)
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: k.DeadLetterTopic, Err: kerr.MessageTooLarge})
	start(t, k, store.URL)
	source.produce(3, kafka.Message{Key: []byte("k"), Value: bytes.Repeat([]byte("x"), 900_000)})
	source.commits(1)
	letter := topictest.Read(t, k, k.DeadLetterTopic, 1)[0]
	headers := topic.Headers(letter.Headers)
	if len(letter.Value) != 0 || headers.Get(topic.HeaderPartition) != "3" || !strings.Contains(headers.Get(topic.HeaderReason), "900000 bytes") {
		t.Errorf("found %d bytes, %v", len(letter.Value), headers)
	}
}

func TestDeadLetterThatIsRefusedDoesNotBlock(t *testing.T) {
	t.Parallel()
	for _, refusal := range []*kerr.Error{kerr.TopicAuthorizationFailed, kerr.MessageTooLarge, kerr.PolicyViolation} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k, store := topictest.For(t, address), newMS1(t)
			source := newMS2(t, k)
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: k.DeadLetterTopic, Err: refusal, Count: -1})
			r := start(t, k, store.URL)
			_, records := messages(2)
			records[0].Value = []byte("malformed")
			source.produce(0, records...)
			source.commits(2)
			if r.Metric("tricycle_ms3_dead_letters_dropped_total") != 1 || !r.Log.Has("dead letter dropped") {
				t.Error("expected one dead letter that is counted and logged as dropped")
			}
		})
	}
}

func TestOnlyWhatIsDoneIsCommitted(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	ms, records := messages(10)
	var takes atomic.Bool
	store.answers(func(w http.ResponseWriter, _ *http.Request, m message.Message, _ int) {
		if m.Key() == ms[4].Key() && !takes.Load() {
			w.WriteHeader(503)
		}
	})
	start(t, k, store.URL)
	source.produce(0, records...)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == 10 })
	source.commits(4)
	servicetest.Eventually(t, time.Minute, "a few tries", func() bool { return len(store.posted(ms[4].Key())) > 4 })
	if n := source.committed("group." + k.Topic); n != 4 {
		t.Errorf("committed %d, expected the four before the open one", n)
	}
	takes.Store(true)
	source.commits(10)
}

func TestMemoryIsBoundedWhileMS1IsDown(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	var takes atomic.Bool
	store.answers(func(w http.ResponseWriter, _ *http.Request, _ message.Message, _ int) {
		if !takes.Load() {
			w.WriteHeader(503)
		}
	})
	r := start(t, k, store.URL)
	ms, records := messages(4 * maxOpen)
	source.spread(records)
	fetched := func() float64 { return r.Metric("tricycle_ms3_records_fetched_total") }
	servicetest.Eventually(t, time.Minute, "full", func() bool { return fetched() == maxOpen })
	begin := time.Now()
	servicetest.Eventually(t, time.Minute, "time passes", func() bool {
		if fetched() != maxOpen || r.Metric("tricycle_ms3_uncommitted_weight") > maxOpen {
			t.Fatal("more is fetched than the bound")
		}
		return time.Since(begin) > time.Second
	})
	takes.Store(true)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == len(ms) })
	source.commits(int64(len(ms)))
}

func TestStopEndsRequestsUnderWayAndNoRetries(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	ms, records := messages(8)
	inside, release := make(chan struct{}, 8), make(chan struct{})
	store.answers(func(w http.ResponseWriter, _ *http.Request, m message.Message, _ int) {
		if m.Key() == ms[5].Key() {
			w.WriteHeader(503)
			return
		}
		inside <- struct{}{}
		<-release
	})
	r := start(t, k, store.URL)
	source.produce(0, records...)
	for range 7 {
		<-inside
	}
	servicetest.Eventually(t, time.Minute, "a retry is open", func() bool { return len(store.posted(ms[5].Key())) > 2 })
	stopped := make(chan time.Duration)
	go func() { stopped <- r.Stop() }()
	servicetest.Eventually(t, time.Minute, "it is stopping", func() bool {
		return r.consumer.offsets.next(0) == 8 && r.Log.Has("not take messages")
	})
	close(release)
	if took := <-stopped; took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if n := source.committed("group." + k.Topic); n != 5 {
		t.Errorf("committed %d, expected the five before the one that was open", n)
	}
	// The next member gets what was not committed.
	store.answers(func(http.ResponseWriter, *http.Request, message.Message, int) {})
	start(t, k, store.URL)
	source.commits(8)
}

func TestStopIsBoundedWhenMS1Hangs(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	collector, spans := servicetest.Collector(t)
	source := newMS2(t, k)
	store.answers(func(_ http.ResponseWriter, r *http.Request, _ message.Message, _ int) { <-r.Context().Done() })
	r := start(t, k, store.URL, func(c *Config) { c.Workers, c.Tracing.Endpoint = 4, collector })
	_, records := messages(20)
	source.spread(records)
	servicetest.Eventually(t, time.Minute, "posting", func() bool { return store.got() == 4 && r.Metric("tricycle_ms3_records_fetched_total") == 20 })
	if took := r.Stop(); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if n := source.committed("group." + k.Topic); n != 0 {
		t.Errorf("committed %d, expected none", n)
	}
	if s := spans(); len(s) != 20 || servicetest.Attribute(s[0], "error.type") != "abandoned" {
		t.Errorf("found %d spans, expected 20 that say abandoned", len(s))
	}
}

func TestStopIsBoundedWhenKafkaHangs(t *testing.T) {
	t.Parallel()
	address, hang := hangingBroker(t)
	k, store := topictest.For(t, address), newMS1(t)
	source := newMS2(t, k)
	r := start(t, k, store.URL)
	_, records := messages(20)
	source.spread(records)
	source.commits(20)
	hang()
	if took := r.Stop(); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// hangingBroker is a broker whose connections, once it is told to hang, carry
// nothing any more in either direction.
func hangingBroker(t *testing.T) (address string, hang func()) {
	hung, over := make(chan struct{}), make(chan struct{})
	_, address = topictest.Cluster(t, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return listener{l, func() {
			select {
			case <-hung:
				<-over
			default:
			}
		}}, err
	}))
	t.Cleanup(func() { close(over) })
	return address, func() { close(hung) }
}

// listener accepts connections that wait before each write.
type listener struct {
	net.Listener
	wait func()
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return conn{c, l.wait}, err
}

type conn struct {
	net.Conn
	wait func()
}

func (c conn) Write(p []byte) (int, error) {
	c.wait()
	return c.Conn.Write(p)
}

func TestSlowLinkToKafka(t *testing.T) {
	t.Parallel()
	var slow atomic.Bool
	_, address := topictest.Cluster(t, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return listener{l, func() {
			if !slow.Load() {
				return
			}
			select {
			case <-time.After(300*time.Millisecond + mathrand.N(400*time.Millisecond)): // the latency itself
			case <-t.Context().Done():
			}
		}}, err
	}))
	k, store := topictest.For(t, address), newMS1(t)
	source := newMS2(t, k)
	ms, records := messages(500)
	source.spread(records)
	slow.Store(true)
	r := start(t, k, store.URL)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == len(ms) })
	source.commits(500)
	if r.Metric("tricycle_ms3_reader_reopened_total") != 0 {
		t.Error("the reader was taken for stalled")
	}
}

func TestKafkaRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := kfake.DataDir(t.TempDir())
	cluster, address := topictest.Cluster(t, dir, kfake.SyncWrites())
	k, store := topictest.For(t, address), newMS1(t)
	source := newMS2(t, k)
	r := start(t, k, store.URL)
	for restart := range 2 {
		_, records := messages(500)
		source.spread(records)
		servicetest.Eventually(t, time.Minute, "some posted", func() bool { return store.got() > restart*500 })
		cluster.Close()
		servicetest.Eventually(t, time.Minute, "kafka is missed", func() bool { return r.cluster.Ready(t.Context()) != nil })
		if status, body := r.Get("/readyz?exclude=ms1"); status != 503 || !strings.Contains(body, `"kafka":"`) {
			t.Errorf("found %d %s", status, body)
		}
		cluster, _ = topictest.Cluster(t, dir, kfake.SyncWrites(), kfake.Ports(topictest.Port(t, address)))
		servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == (restart+1)*500 })
		source.commits(int64(restart+1) * 500)
	}
	r.joined(t)
}

func TestABrokerThatAnswersNothingIsPassedOver(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	k.Brokers = append([]string{topictest.Mute(t)}, k.Brokers...)
	r := start(t, k, newMS1(t).URL)
	r.Ready()
}

func TestKafkaDownAtTheStart(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	cluster.Close()
	k, store := topictest.For(t, address), newMS1(t)
	r := start(t, k, store.URL)
	servicetest.Eventually(t, time.Minute, "it has tried", func() bool { return r.Log.Has("kafka unavailable") })
	if status, body := r.Get("/readyz"); status != 503 || !strings.Contains(body, `"ms1":"ok"`) {
		t.Errorf("found %d %s", status, body)
	}
	topictest.Cluster(t, kfake.Ports(topictest.Port(t, address)))
	source := newMS2(t, k)
	_, records := messages(100)
	source.spread(records)
	source.commits(100)
}

func TestPathsThatAreOnlyRead(t *testing.T) {
	t.Parallel()
	start(t, topictest.Config(t), newMS1(t).URL).ReadOnlyPaths()
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
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	s, err := newStoreClient(Config{MS1: MS1{URL: stranger.URL + "/store"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.http.CloseIdleConnections()
	if err := s.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("found %v for a stranger", err)
	}
	healthy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})) // 200 to everything
	defer healthy.Close()
	if s, err = newStoreClient(Config{MS1: MS1{URL: healthy.URL + "/store"}}); err != nil {
		t.Fatal(err)
	}
	defer s.http.CloseIdleConnections()
	if a, err := s.post(t.Context(), nil); err != nil || !a.wrong() {
		t.Errorf("found %v, %v for a stranger's 200", a, err)
	}
	if err := s.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ms1.url: must be") {
		t.Errorf("found %v after a stranger's 200, expected it to name ms1.url", err)
	}
}

func TestMembersJoinAndLeaveUnderLoad(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	first := start(t, k, store.URL)
	first.joined(t)
	load, enough := context.WithCancel(t.Context())
	var sent atomic.Int64
	var loading sync.WaitGroup
	loading.Go(func() {
		for retry.Pause(load, 20*time.Millisecond) { // 1,000 messages a second
			_, records := messages(20)
			source.spread(records)
			sent.Add(20)
		}
	})
	for range 10 {
		second := start(t, k, store.URL)
		second.joined(t)
		servicetest.Eventually(t, time.Minute, "both fetch", func() bool { return second.Metric("tricycle_ms3_records_fetched_total") > 0 })
		second.Stop()
	}
	enough()
	loading.Wait()
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == int(sent.Load()) })
	source.commits(sent.Load())
	if n := first.Metric("tricycle_ms3_reader_reopened_total"); n != 0 {
		t.Errorf("the reader was taken for stalled %v times", n)
	}
	t.Logf("%d messages, %v fetched by the one that stayed", sent.Load(), first.Metric("tricycle_ms3_records_fetched_total"))
}

func TestStalledReaderIsReopened(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(c *kfake.Cluster, k topic.Config, on *atomic.Bool){
		// The answers say that there is nothing, for ever.
		"nothing is fetched": func(c *kfake.Cluster, k topic.Config, on *atomic.Bool) {
			c.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.KeepControl()
				if !on.Load() {
					return nil, nil, false
				}
				request := r.(*kmsg.FetchRequest)
				response := request.ResponseKind().(*kmsg.FetchResponse)
				for _, t := range request.Topics {
					topic := kmsg.NewFetchResponseTopic()
					topic.Topic, topic.TopicID = t.Topic, t.TopicID
					for _, p := range t.Partitions {
						partition := kmsg.NewFetchResponseTopicPartition()
						partition.Partition, partition.HighWatermark, partition.RecordBatches = p.Partition, p.FetchOffset, []byte{}
						topic.Partitions = append(topic.Partitions, partition)
					}
					response.Topics = append(response.Topics, topic)
				}
				return response, nil, true
			})
		},
		// The group does not let it in.
		"no member": func(c *kfake.Cluster, k topic.Config, on *atomic.Bool) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, TopLevel: true, Err: kerr.GroupMaxSizeReached, Count: -1,
				When: func(kmsg.Request) bool { return on.Load() }})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k, store := topictest.For(t, address), newMS1(t)
			source := newMS2(t, k)
			var on atomic.Bool
			on.Store(true)
			fault(cluster, k, &on)
			r := start(t, k, store.URL, func(s *Service) { s.consumer.stall = time.Second })
			_, records := messages(10)
			source.spread(records)
			servicetest.Eventually(t, time.Minute, "reopened", func() bool { return r.Metric("tricycle_ms3_reader_reopened_total") > 0 })
			if store.got() != 0 {
				t.Error("the fault did not work")
			}
			on.Store(false)
			source.commits(10)
			r.joined(t)
		})
	}
}

func TestATopicMadeAnewIsReadFromItsStart(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	r := start(t, k, store.URL)
	_, records := messages(400)
	source.spread(records)
	source.commits(400)
	// Below the offsets that were read of the old one, nothing would ever be fetched.
	servicetest.Eventually(t, time.Minute, "the topic is gone", func() bool {
		resp, err := source.Client().DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{k.Topic}})
		return err == nil && errors.Is(resp.Errors[k.Topic], kafka.UnknownTopicOrPartition)
	})
	_, records = messages(8)
	source.spread(records)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == 408 })
	r.joined(t)
	source.commits(8)
	for _, number := range []int{0, 1, 2, 3} {
		if next := r.consumer.offsets.next(number); next != 2 {
			t.Errorf("found %d as the next offset of partition %d, expected 2", next, number)
		}
	}
}

func TestASpareMemberIsHealthy(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	k.Partitions = 1
	var all []*running
	for range 2 {
		all = append(all, start(t, k, store.URL, func(s *Service) { s.consumer.stall = time.Second }))
	}
	for _, r := range all {
		r.joined(t)
	}
	begin := time.Now()
	servicetest.Eventually(t, time.Minute, "time passes", func() bool { return time.Since(begin) > 3*time.Second })
	for _, r := range all {
		if n := r.Metric("tricycle_ms3_reader_reopened_total"); n != 0 {
			t.Errorf("reopened %v times", n)
		}
	}
}

func TestOneSpanForEachRecord(t *testing.T) {
	t.Parallel()
	collector, spans := servicetest.Collector(t)
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	r := start(t, k, store.URL, func(c *Config) { c.Tracing.Endpoint = collector })
	ms, records := messages(2)
	const parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	records[0].Headers = []kafka.Header{{Key: "traceparent", Value: []byte(parent)}}
	junk := kafka.Message{Key: []byte("junk\xff"), Value: []byte("junk"), Headers: records[0].Headers}
	source.produce(1, records[0], records[1], junk)
	source.commits(3)
	r.Stop()

	all := map[string]*otlp.Span{}
	for _, s := range spans() {
		all[servicetest.Attribute(s, "messaging.kafka.message.key")] = s
	}
	if len(all) != 3 || len(spans()) != 3 {
		t.Fatalf("found %d spans, expected one for each of three records", len(spans()))
	}
	derived, root := telemetry.IDs(ms[1].Key())
	for key, want := range map[string][2]string{
		ms[0].Key().String(): {"0123456789abcdef0123456789abcdef", "0123456789abcdef"},
		ms[1].Key().String(): {derived.String(), root.String()}, // without a header, from the key
		"junk\uFFFD":         {"0123456789abcdef0123456789abcdef", "0123456789abcdef"},
	} {
		s := all[key]
		if got := [2]string{fmt.Sprintf("%x", s.TraceId), fmt.Sprintf("%x", s.ParentSpanId)}; got != want {
			t.Errorf("%s: found trace and parent %v, expected %v", key, got, want)
		}
		if s.Kind != otlp.Span_SPAN_KIND_CONSUMER || s.Name != "process "+k.Topic {
			t.Errorf("found span %q of kind %s", s.Name, s.Kind)
		}
		for name, want := range map[string]string{
			"messaging.system": "kafka", "messaging.operation.type": "process", "messaging.operation.name": "process",
			"messaging.destination.name": k.Topic, "messaging.destination.partition.id": "1", "messaging.consumer.group.name": "group." + k.Topic,
		} {
			if got := servicetest.Attribute(s, name); got != want {
				t.Errorf("%s: found %s = %q, expected %q", key, name, got, want)
			}
		}
	}
	if got := servicetest.Attribute(all[ms[1].Key().String()], "messaging.kafka.offset"); got != "int_value:1" {
		t.Errorf("found offset %q", got)
	}
	for _, m := range ms { // MS1's span is a child of ours
		s := all[m.Key().String()]
		want := fmt.Sprintf("00-%x-%x-01", s.TraceId, s.SpanId)
		if store.mu.Lock(); !strings.Contains(strings.Join(store.trace, " "), want) {
			t.Errorf("found traceparents %v, expected %s", store.trace, want)
		}
		store.mu.Unlock()
	}
	if s := all["junk\uFFFD"]; s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || servicetest.Attribute(s, "error.type") != "malformed" {
		t.Errorf("found %v for the malformed record", s)
	}
}

func TestDuplicateRecordsAreAllPosted(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	source := newMS2(t, k)
	start(t, k, store.URL)
	ms, records := messages(1)
	source.produce(0, records[0], records[0], records[0])
	source.commits(3)
	if n := len(store.posted(ms[0].Key())); n != 3 {
		t.Errorf("posted %d times, expected 3", n)
	}
}

func TestNewNeedsItsAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := Defaults()
	c.Listen = l.Addr().String()
	if _, err := New(c, zerolog.Nop(), &telemetry.Telemetry{Metrics: prometheus.NewRegistry()}); err == nil || !strings.Contains(err.Error(), "listen for health checks") {
		t.Errorf("found %v", err)
	}
	c.MS1.URL = "://"
	if _, err := New(c, zerolog.Nop(), nil); err == nil || !strings.Contains(err.Error(), "ms1.url") {
		t.Errorf("found %v", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	c := Defaults()
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	c.Listen, c.MS1.URL, c.Workers, c.GroupID = "8082", "ms1:8080", 0, ""
	c.Kafka.Topic, c.Tracing.SampleRatio, c.Logging.Level = "", 2, "loud"
	err := c.Validate()
	for _, key := range []string{"listen", "ms1.url", "workers", "group_id", "kafka.topic", "tracing.sample_ratio", "logging.level"} {
		if err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("found %v, expected %s", err, key)
		}
	}
}

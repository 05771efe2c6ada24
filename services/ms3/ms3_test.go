package ms3

import (
	"bufio"
	"bytes"
	"encoding/json"
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

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestMain(m *testing.M) { servicetest.Main(m, openapitest.Complete("ms3")) }

// ms1 replaces MS1: it records posted messages and gives the answers of the test.
type ms1 struct {
	*httptest.Server
	answer atomic.Pointer[func(w http.ResponseWriter, r *http.Request, m message.Message, try int)]

	mu    sync.Mutex
	tries map[message.Key][]message.Message // the posted messages
	trace []string                          // traceparent of each request
	conns map[string]bool                   // remote addresses
	sizes []int                             // messages of each request of several
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
		s.mu.Lock()
		s.trace = append(s.trace, r.Header.Get("traceparent"))
		s.conns[r.RemoteAddr] = true
		s.mu.Unlock()
		if r.Header.Get("Content-Type") == httpserver.LinesType {
			s.lines(t, w, r, bytes.Split(bytes.TrimSuffix(body, newline), newline))
			return
		}
		s.one(t, w, r, body)
	}))
	t.Cleanup(s.Close)
	return s
}

// one answers a message as the test wants it.
func (s *ms1) one(t *testing.T, w http.ResponseWriter, r *http.Request, body []byte) {
	m, err := message.Decode(body, message.AtStore)
	if err != nil {
		t.Errorf("a message MS1 would not take: %v", err)
	}
	s.mu.Lock()
	s.tries[m.Key()] = append(s.tries[m.Key()], m)
	try := len(s.tries[m.Key()])
	s.mu.Unlock()
	answer := &answerWriter{ResponseWriter: w}
	(*s.answer.Load())(answer, r, m, try)
	if !answer.written {
		httpserver.JSON(w, http.StatusOK, map[string]string{"outcome": "stored"})
	}
}

// lines answers each message of a request as alone, and all in one answer.
func (s *ms1) lines(t *testing.T, w http.ResponseWriter, r *http.Request, bodies [][]byte) {
	s.mu.Lock()
	s.sizes = append(s.sizes, len(bodies))
	s.mu.Unlock()
	answers := make([]*httptest.ResponseRecorder, len(bodies))
	var answering sync.WaitGroup
	for i, body := range bodies {
		answers[i] = httptest.NewRecorder()
		answering.Go(func() { s.one(t, answers[i], r, body) })
	}
	answering.Wait()
	w.Header().Set("Content-Type", httpserver.LinesType)
	for _, a := range answers {
		line := map[string]any{}
		if err := json.Unmarshal(a.Body.Bytes(), &line); err != nil {
			line["type"] = "about:blank"
		}
		line["status"] = a.Code
		text, _ := json.Marshal(line)
		_, _ = w.Write(append(text, '\n'))
	}
}

// replies answers with a status and a text of the media type.
func replies(status int, media, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

// torn answers with a part of an answer and closes the connection.
func torn(text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, buffer, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = buffer.WriteString(text)
		_ = buffer.Flush()
		conn.Close()
	}
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
	*programtest.Running
}

// start runs MS3 until the test ends, with a group named after the topic. The
// functions may change the configuration, or the service before it runs.
func start(t *testing.T, k topic.Config, ms1URL string, change ...any) *running {
	t.Helper()
	c := Defaults()
	c.Listen, c.Kafka, c.MS1.URL, c.GroupID = "127.0.0.1:0", k, ms1URL+"/store", "group."+k.Topic
	programtest.Change(&c, change)
	service, r := programtest.Start(t, "ms3", c.Tracing, func(log zerolog.Logger, tel *telemetry.Telemetry) (*Service, error) {
		s, err := New(c, log, tel)
		if err == nil {
			programtest.Change(s, change)
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

	mu    sync.Mutex
	ends  map[int]int64 // of the partitions
	twice int64         // records written by a request that failed, and again
}

func newMS2(t *testing.T, k topic.Config) *ms2 {
	t.Helper()
	l := topic.NewCluster(k, "test", zerolog.Nop())
	topictest.Run(t, l)
	return &ms2{Cluster: l, t: t, k: k, ends: map[int]int64{}}
}

// neighbours returns k, an MS1, and an MS2 that writes to the topics of k.
func neighbours(t *testing.T, k topic.Config) (topic.Config, *ms1, *ms2) {
	t.Helper()
	return k, newMS1(t), newMS2(t, k)
}

// produce writes records to a partition, again until it succeeds.
func (m *ms2) produce(partition int, records ...kafka.Message) {
	m.t.Helper()
	for len(records) > 0 {
		n, tries, offset := min(len(records), 100), 0, int64(0)
		servicetest.Eventually(m.t, time.Minute, "produced", func() bool {
			var err error
			tries++
			offset, err = m.Produce(m.t.Context(), m.k.Topic, partition, records[:n]...)
			return err == nil
		})
		m.mu.Lock()
		if tries > 1 {
			m.twice += max(0, offset-m.ends[partition])
		}
		m.ends[partition] = offset + int64(n)
		m.mu.Unlock()
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

// send writes n messages to all partitions.
func (m *ms2) send(n int) {
	m.t.Helper()
	_, records := messages(n)
	m.spread(records)
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

// commits waits until the group has committed exactly n records, besides those
// that were written twice.
func (m *ms2) commits(n int64) {
	m.t.Helper()
	m.mu.Lock()
	n += m.twice
	m.mu.Unlock()
	servicetest.Eventually(m.t, time.Minute, fmt.Sprintf("%d committed", n), func() bool { return m.committed("group."+m.k.Topic) == n })
}

func TestMessagesReachMS1(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
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
			t.Errorf("got %s, want service3_timestamp from %s to %s", got.Encode(), before, after)
		}
	}
	if n := len(store.conns); n > 2*r.consumer.config.Workers {
		t.Errorf("got %d connections, want kept-alive ones", n)
	}
	for name, want := range map[string]float64{
		"tricycle_ms3_records_fetched_total": 2000, "tricycle_ms3_messages_stored_total": 2000, "tricycle_ms3_store_retries_total": 0,
		"tricycle_ms3_dead_letters_total": 0, "tricycle_ms3_uncommitted_weight": 0, "tricycle_ms3_reader_reopened_total": 0,
	} {
		if got := r.Metric(name); got != want {
			t.Errorf("got %s = %v, want %v", name, got, want)
		}
	}
}

func TestPathsThatAreOnlyRead(t *testing.T) {
	t.Parallel()
	start(t, topictest.Config(t), newMS1(t).URL).ReadOnlyPaths()
}

func TestDuplicateRecordsAreAllPosted(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	start(t, k, store.URL)
	ms, records := messages(1)
	source.produce(0, records[0], records[0], records[0])
	source.commits(3)
	if n := len(store.posted(ms[0].Key())); n != 3 {
		t.Errorf("posted %d times, expected 3", n)
	}
}

func TestNewNamesWhatItCannotUse(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Config){
		"ms1.url: ":                     func(c *Config) { c.MS1.URL = "://" },
		"ms1.token_file: open absent: ": func(c *Config) { c.MS1.TokenFile = "absent" },
		"ms1.ca_file: open absent: ":    func(c *Config) { c.MS1.CAFile = "absent" },
	} {
		c := Defaults()
		change(&c)
		if _, err := New(c, zerolog.Nop(), nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	c := Defaults()
	servicetest.NoError(t, c.Validate())
	c.Listen, c.MS1.URL, c.Workers, c.GroupID = "8082", "ms1:8080", 0, ""
	c.Kafka.Topic, c.Tracing.SampleRatio, c.Logging.Level = "", 2, "loud"
	err := c.Validate()
	for _, key := range []string{"listen", "ms1.url", "workers", "group_id", "kafka.topic", "tracing.sample_ratio", "logging.level"} {
		if err == nil || !strings.Contains(err.Error(), key+": ") {
			t.Errorf("got %v, want %s", err, key)
		}
	}
}

func TestOneSpanForEachRecord(t *testing.T) {
	t.Parallel()
	collector, spans := telemetrytest.Collector(t)
	k, store, source := neighbours(t, topictest.Config(t))
	r := start(t, k, store.URL, func(c *Config) { c.Tracing.Endpoint, c.MS1.BatchMessages = collector, 1 })
	ms, records := messages(2)
	const parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
	records[0].Headers = []kafka.Header{{Key: "traceparent", Value: []byte(parent)}}
	junk := kafka.Message{Key: []byte("junk\xff"), Value: []byte("junk"), Headers: records[0].Headers}
	source.produce(1, records[0], records[1], junk)
	source.commits(3)
	r.Stop()

	all := map[string]*otlp.Span{}
	for _, s := range spans() {
		all[telemetrytest.Attribute(s, "messaging.kafka.message.key")] = s
	}
	if len(all) != 3 || len(spans()) != 3 {
		t.Fatalf("got %d spans, want one for each of three records", len(spans()))
	}
	derived, root := telemetry.IDs(ms[1].Key())
	for key, want := range map[string][2]string{
		ms[0].Key().String(): {"0123456789abcdef0123456789abcdef", "0123456789abcdef"},
		ms[1].Key().String(): {derived.String(), root.String()}, // without a header, from the key
		"junk\uFFFD":         {"0123456789abcdef0123456789abcdef", "0123456789abcdef"},
	} {
		s := all[key]
		if got := [2]string{fmt.Sprintf("%x", s.TraceId), fmt.Sprintf("%x", s.ParentSpanId)}; got != want {
			t.Errorf("%s: got trace and parent %v, want %v", key, got, want)
		}
		if s.Kind != otlp.Span_SPAN_KIND_CONSUMER || s.Name != "process "+k.Topic {
			t.Errorf("found span %q of kind %s", s.Name, s.Kind)
		}
		for name, want := range map[string]string{
			"messaging.system": "kafka", "messaging.operation.type": "process", "messaging.operation.name": "process",
			"messaging.destination.name": k.Topic, "messaging.destination.partition.id": "1", "messaging.consumer.group.name": "group." + k.Topic,
		} {
			if got := telemetrytest.Attribute(s, name); got != want {
				t.Errorf("%s: got %s = %q, want %q", key, name, got, want)
			}
		}
	}
	if got := telemetrytest.Attribute(all[ms[1].Key().String()], "messaging.kafka.offset"); got != "int_value:1" {
		t.Errorf("found offset %q", got)
	}
	for _, m := range ms { // MS1's span is a child of ours
		s := all[m.Key().String()]
		want := fmt.Sprintf("00-%x-%x-01", s.TraceId, s.SpanId)
		if store.mu.Lock(); !strings.Contains(strings.Join(store.trace, " "), want) {
			t.Errorf("got traceparents %v, want %s", store.trace, want)
		}
		store.mu.Unlock()
	}
	if s := all["junk\uFFFD"]; s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || telemetrytest.Attribute(s, "error.type") != "malformed" {
		t.Errorf("found %v for the malformed record", s)
	}
}

func TestEveryKeyHasAVariable(t *testing.T) { programtest.Variables(t, Program()) }

func TestShippedConfiguration(t *testing.T) {
	loopback := programtest.Shipped(t, "../../compose/config/", Program())
	if loopback.Listen != "127.0.0.1:8082" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms3.log" {
		t.Errorf("got %+v", loopback)
	}
}

func TestProgram(t *testing.T) {
	t.Parallel()
	p := Program()
	p.Config.Kafka = topictest.Config(t)
	p.Config.GroupID = "group." + p.Config.Kafka.Topic
	p.Config.Tracing.Endpoint, _ = telemetrytest.Collector(t)
	programtest.Life(t, p, p.Config.Kafka.Brokers[0], "listen for health checks")
}

package ms2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
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
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestMain(m *testing.M) { servicetest.Main(m, openapitest.Complete("ms2")) }

// running is a service that a test has started.
type running struct {
	*Service
	t    *testing.T
	stop func() time.Duration // asks it to stop, waits until it has, returns how long that took
	log  *programtest.Console
}

// start runs MS2 until the test ends. The functions may change the
// configuration, or the service before it runs.
func start(t *testing.T, k topic.Config, change ...any) *running {
	t.Helper()
	c := Defaults()
	c.Listen, c.Kafka = "127.0.0.1:0", k
	for _, f := range change {
		if f, ok := f.(func(*Config)); ok {
			f(&c)
		}
	}
	r := &running{t: t, log: &programtest.Console{}}
	log := zerolog.New(r.log)
	tel, err := telemetry.New(context.Background(), c.Tracing, "ms2", "test", log)
	if err != nil {
		t.Fatal(err)
	}
	if r.Service, err = New(c, log, tel); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		if f, ok := f.(func(*Service)); ok {
			f(r.Service)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceValue(func() time.Duration {
		begin := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		took := time.Since(begin)
		if err := tel.Shutdown(context.Background()); err != nil {
			t.Errorf("telemetry: %v", err)
		}
		return took
	})
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Log(r.log)
		}
	})
	return r
}

func (r *running) ready() *running {
	r.t.Helper()
	topictest.Eventually(r.t, 20*time.Second, "ready", func() bool { return r.cluster.Ready(r.t.Context()) == nil })
	return r
}

func (r *running) metric(name string, label ...string) float64 {
	r.t.Helper()
	return topictest.Metric(r.t, r.telemetry.Metrics, name, label...)
}

// client is a connection to MS2 that reads all the time, as MS1 does.
type client struct {
	*websocket.Conn
	pings atomic.Int64
	ended chan error // why reading ended
}

func (r *running) dial() *client {
	r.t.Helper()
	ws, resp, err := websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil)
	if err != nil {
		r.t.Fatalf("connecting: %v, %v", err, resp)
	}
	c := &client{Conn: ws, ended: make(chan error, 1)}
	pong := ws.PingHandler()
	ws.SetPingHandler(func(text string) error {
		c.pings.Add(1)
		return pong(text)
	})
	go func() {
		_, _, err := ws.ReadMessage()
		ws.Close()
		c.ended <- err
	}()
	r.t.Cleanup(func() { ws.Close() })
	return c
}

// closed waits until MS2 closes the connection and returns how.
func (c *client) closed(t *testing.T) *websocket.CloseError {
	t.Helper()
	select {
	case err := <-c.ended:
		var closed *websocket.CloseError
		if !errors.As(err, &closed) {
			t.Fatalf("found %v, expected a close frame", err)
		}
		return closed
	case <-time.After(20 * time.Second):
		t.Fatal("the connection was not closed")
	}
	return nil
}

// messages are n messages of one session, as MS1 sends them.
func messages(n int) []message.Message {
	session, base := rand.Int64N(1<<40)+1, message.StampOf(time.Now())
	ms := make([]message.Message, n)
	for i := range ms {
		ms[i] = message.Message{SessionID: session, Service1: base + message.Stamp(i)}
	}
	return ms
}

func (c *client) send(t *testing.T, ms ...message.Message) {
	t.Helper()
	for _, m := range ms {
		if err := c.WriteMessage(websocket.TextMessage, m.Encode()); err != nil {
			t.Fatalf("sending: %v", err)
		}
	}
}

// distinct waits until the topic holds each of the messages, some of them
// perhaps twice, and returns the first record of each.
func distinct(t *testing.T, k topic.Config, ms []message.Message) map[message.Key]kafka.Message {
	t.Helper()
	missing, found := map[message.Key]bool{}, map[message.Key]kafka.Message{}
	for _, m := range ms {
		missing[m.Key()] = true
	}
	topictest.ReadUntil(t, k, k.Topic, func(r kafka.Message) bool {
		m, err := message.Decode(r.Value, message.AtMS3)
		if err != nil {
			t.Fatalf("a record MS3 would not take: %v", err)
		}
		if string(r.Key) != m.Key().String() {
			t.Errorf("found key %q, expected %q", r.Key, m.Key())
		}
		if missing[m.Key()] {
			found[m.Key()] = r
		}
		delete(missing, m.Key())
		return len(missing) == 0
	})
	return found
}

func TestMessagesReachTheTopic(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	r := start(t, k).ready()
	ms := messages(1000)
	before := message.StampOf(time.Now())
	r.dial().send(t, ms...)
	found := distinct(t, k, ms)
	after := message.StampOf(time.Now())

	used := map[int]int{}
	for key, record := range found {
		m, _ := message.Decode(record.Value, message.AtMS3)
		if m.Service2 < before || m.Service2 > after {
			t.Errorf("%s: stamped %s, expected %s to %s", key, m.Service2, before, after)
		}
		if want := (kafka.Murmur2Balancer{}).Balance(record, 0, 1, 2, 3); record.Partition != want {
			t.Errorf("%s: found in partition %d, expected %d", key, record.Partition, want)
		}
		used[record.Partition]++
	}
	if len(used) != 4 {
		t.Errorf("found records by partition %v, expected all four in use", used)
	}
	topictest.Eventually(t, 5*time.Second, "all acknowledged", func() bool {
		return r.metric("tricycle_ms2_messages_produced_total") == 1000 && r.metric("tricycle_ms2_queue_messages") == 0
	})
	if got := r.metric("tricycle_ms2_messages_received_total"); got != 1000 {
		t.Errorf("found %v received, expected 1000", got)
	}
	if got := r.metric("tricycle_ms2_connections"); got != 1 {
		t.Errorf("found %v connections, expected 1", got)
	}
}

func TestRejectedFrames(t *testing.T) {
	t.Parallel()
	good := messages(1)[0]
	wire := string(good.Encode())
	stamped := good
	stamped.Service2 = good.Service1
	for name, c := range map[string]struct {
		kind   int
		frame  string
		code   int
		text   string
		reason string
	}{
		"binary":          {websocket.BinaryMessage, wire, 1003, "binary", "binary"},
		"no JSON":         {websocket.TextMessage, "hello", 1008, "message: found", "malformed"},
		"empty":           {websocket.TextMessage, "", 1008, "message: found", "malformed"},
		"array":           {websocket.TextMessage, "[]", 1008, "message: found an array, expected a JSON object", "malformed"},
		"sixth field":     {websocket.TextMessage, strings.Replace(wire, "{", `{"trace":1,`, 1), 1008, "trace: found an unknown field", "malformed"},
		"zero session":    {websocket.TextMessage, `{"session_id":0}`, 1008, "session_id: found 0, expected an integer", "malformed"},
		"stamped before":  {websocket.TextMessage, string(stamped.Encode()), 1008, "service2_timestamp: found", "malformed"},
		"trailing bytes":  {websocket.TextMessage, wire + "x", 1008, "message: found", "malformed"},
		"bad UTF-8":       {websocket.TextMessage, strings.Replace(wire, "{", "{\"\xff\xfe\":1,", 1), 1008, "expected only the five fields", "malformed"},
		"long field name": {websocket.TextMessage, `{"` + strings.Repeat("é", 300) + `":1}`, 1008, "é", "malformed"},
		"4 KiB and one":   {websocket.TextMessage, wire + strings.Repeat(" ", message.MaxBytes-len(wire)+1), 1009, "", "too_large"},
		"1 MiB":           {websocket.TextMessage, strings.Repeat("x", 1<<20), 1009, "", "too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := topictest.Config(t)
			r := start(t, k).ready()
			ws := r.dial()
			ws.send(t, good)
			_ = ws.WriteMessage(c.kind, []byte(c.frame)) // the connection may end under it
			closed := ws.closed(t)
			if closed.Code != c.code || !strings.Contains(closed.Text, c.text) {
				t.Errorf("found %v, expected %d %q", closed, c.code, c.text)
			}
			if len(closed.Text) > 123 || !utf8.ValidString(closed.Text) {
				t.Errorf("found a reason of %d bytes, %q", len(closed.Text), closed.Text)
			}
			// The close frame may be here before the rest is done.
			topictest.Eventually(t, 10*time.Second, "it is logged", func() bool { return strings.Contains(r.log.String(), `"reason":"`+c.reason+`"`) })
			if got := r.metric("tricycle_ms2_frames_rejected_total", c.reason); got != 1 {
				t.Errorf("found %v rejected as %s, expected 1", got, c.reason)
			}
			next := messages(1)[0]
			r.dial().send(t, next)                        // the next connection works
			distinct(t, k, []message.Message{good, next}) // and the message before is not lost
		})
	}
}

// The peer waits for MS2 to end the connection (RFC 6455, 7.1.1).
func TestAPeerThatHasAnsweredTheCloseIsLetGoAtOnce(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t)).ready()
	fastest := time.Hour
	for range 5 { // one of them is not slow for reasons of its own
		ws, _, err := websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		_ = ws.WriteMessage(websocket.TextMessage, []byte("hello"))
		if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) { // and answers
			t.Fatalf("found %v, expected 1008", err)
		}
		began := time.Now()
		if n, err := ws.NetConn().Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("found %d bytes, %v, expected the end of the connection", n, err)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > closeTimeout/2 {
		t.Errorf("it took %s at best", fastest)
	}
}

func TestExactlyFourKibibytesAreTaken(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	ws := start(t, k).ready().dial()
	m := messages(1)[0]
	wire := m.Encode()
	if err := ws.WriteMessage(websocket.TextMessage, append(wire, bytes.Repeat([]byte(" "), message.MaxBytes-len(wire))...)); err != nil {
		t.Fatal(err)
	}
	distinct(t, k, []message.Message{m})
}

func TestMalformedInputIsRejectedEveryTime(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	r := start(t, k).ready()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const cases = 1000
	for range cases {
		frame := messages(1)[0].Encode()
		switch random.IntN(3) {
		case 0: // cut
			frame = frame[:random.IntN(len(frame))]
		case 1: // a byte of structure or of a name turned
			frame[random.IntN(12)] ^= byte(1 + random.IntN(127))
		case 2: // noise
			frame = make([]byte, random.IntN(600))
			for i := range frame {
				frame[i] = byte(random.Uint32())
			}
		}
		if _, err := message.Decode(frame, message.AtMS2); err == nil {
			t.Fatalf("the test made a good message: %s", frame)
		}
		ws := r.dial()
		if err := ws.WriteMessage(websocket.TextMessage, frame); err != nil {
			t.Fatal(err)
		}
		if closed := ws.closed(t); closed.Code != websocket.ClosePolicyViolation {
			t.Fatalf("found %v for %q", closed, frame)
		}
	}
	if got := r.metric("tricycle_ms2_frames_rejected_total", "malformed"); got != cases {
		t.Errorf("found %v rejected, expected %d", got, cases)
	}
	m := messages(1)
	r.dial().send(t, m...)
	distinct(t, k, m)
}

func TestHandshake(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t)).ready()
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	with := func(key, value string) http.Header {
		h := upgrade.Clone()
		h.Set(key, value)
		return h
	}
	for name, c := range map[string]struct {
		method string
		header http.Header
		status int
	}{
		"a program":               {"GET", upgrade, 101},
		"a page of this site":     {"GET", with("Origin", "http://"+r.Address()), 101},
		"a page of another site":  {"GET", with("Origin", "https://example.com"), 403},
		"a page of no site":       {"GET", with("Origin", "null"), 403},
		"not a WebSocket request": {"GET", http.Header{}, 400},
		"another method":          {"POST", upgrade, 405},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, "http://"+r.Address()+"/ws", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header = c.header
			resp, err := openapitest.Client(t, "ms2").Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("found %s, expected %d", resp.Status, c.status)
			}
			if c.status >= 400 && resp.Header.Get("Content-Type") != httpserver.ProblemType {
				t.Errorf("found %s, expected a problem", resp.Header.Get("Content-Type"))
			}
		})
	}
}

func TestPathsThatAreOnlyRead(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t))
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			req, err := http.NewRequest(method, "http://"+r.Address()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := openapitest.Client(t, "ms2").Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 && path != "/readyz" { // that depends
				t.Errorf("%s %s: found %s", method, path, resp.Status)
			}
		}
	}
}

// ask returns status and body of a GET.
func (r *running) ask(path string) (int, string) {
	r.t.Helper()
	resp, err := openapitest.Client(r.t, "ms2").Get("http://" + r.Address() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestKafkaDownAtTheStart(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	cluster.Close()
	k := topictest.For(t, address)
	r := start(t, k)
	topictest.Eventually(t, 5*time.Second, "it has tried", func() bool { return strings.Contains(r.log.String(), "kafka unavailable") })

	_, resp, err := websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil)
	if err == nil || resp == nil || resp.StatusCode != 503 {
		t.Fatalf("found %v, %v, expected 503", resp, err)
	}
	openapitest.Exchange(t, "ms2", resp.Request, resp)
	body, _ := io.ReadAll(resp.Body)
	var problem struct{ Detail string }
	if err := json.Unmarshal(body, &problem); err != nil || !strings.Contains(problem.Detail, "kafka") {
		t.Errorf("found %s, expected a problem that names kafka", body)
	}
	if status, body := r.ask("/readyz"); status != 503 || !strings.Contains(body, `"kafka":"`) {
		t.Errorf("found %d %s", status, body)
	}
	if status, _ := r.ask("/healthz"); status != 200 {
		t.Errorf("found %d for /healthz", status)
	}

	topictest.Cluster(t, kfake.Ports(topictest.Port(t, address)))
	r.ready()
	if status, body := r.ask("/readyz"); status != 200 {
		t.Errorf("found %d %s", status, body)
	}
	if status, body := r.ask("/metrics"); status != 200 || !strings.Contains(body, "tricycle_ms2_queue_messages 0") {
		t.Errorf("found %d %s", status, body)
	}
	ms := messages(10)
	r.dial().send(t, ms...)
	distinct(t, k, ms)
}

func TestKafkaRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := kfake.DataDir(t.TempDir())
	cluster, address := topictest.Cluster(t, dir, kfake.SyncWrites())
	k := topictest.For(t, address)
	r := start(t, k).ready()
	ws := r.dial()
	ms := messages(3000)
	for restart := range 2 {
		ws.send(t, ms[restart*1000:restart*1000+500]...)
		cluster.Close()
		ws.send(t, ms[restart*1000+500:restart*1000+1000]...)
		topictest.Eventually(t, 5*time.Second, "kafka is missed", func() bool { return r.cluster.Ready(t.Context()) != nil })
		cluster, _ = topictest.Cluster(t, dir, kfake.SyncWrites(), kfake.Ports(topictest.Port(t, address)))
		topictest.Eventually(t, 15*time.Second, "all acknowledged", func() bool {
			return r.metric("tricycle_ms2_messages_produced_total") == float64(1000*(restart+1))
		})
	}
	ws.send(t, ms[2000:]...)
	topictest.Eventually(t, 15*time.Second, "all acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 3000 })
	if r.metric("tricycle_ms2_messages_dropped_total") != 0 || r.metric("tricycle_ms2_connections") != 1 {
		t.Error("messages or the connection were dropped")
	}
	if r.metric("tricycle_ms2_produce_retries_total") == 0 {
		t.Error("no retry was counted")
	}
	distinct(t, k, ms)
}

// stalledCluster is a broker that answers no request to produce before heal is
// called.
func stalledCluster(t *testing.T) (address string, heal func()) {
	healed := make(chan struct{})
	var cluster *kfake.Cluster
	cluster, address = topictest.Cluster(t, kfake.SleepOutOfOrder())
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		select {
		case <-healed:
		default:
			cluster.SleepControl(func() { <-healed })
		}
		return nil, nil, false
	})
	heal = sync.OnceFunc(func() { close(healed) })
	t.Cleanup(func() {
		heal()
		// A broker that is closed under a request that sleeps leaks it.
		topictest.Eventually(t, 5*time.Second, "no request sleeps", func() bool {
			stacks := make([]byte, 4<<20)
			return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("kfake.(*Cluster).runControl.func1"))
		})
	})
	return address, heal
}

// ping is the time between two pings where a test waits for several.
const ping = 500 * time.Millisecond

func TestPressureReachesMS1(t *testing.T) {
	address, heal := stalledCluster(t)
	k := topictest.For(t, address)
	r := start(t, k, func(s *Service) { s.queue.stall, s.ping = time.Minute, ping }).ready()
	var before, full runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	ws := r.dial()
	ms := messages(40_000)
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, m := range ms {
			if err := ws.WriteMessage(websocket.TextMessage, m.Encode()); err != nil {
				t.Errorf("sending: %v", err)
				return
			}
			sent.Add(1)
		}
	}()
	received := func() float64 { return r.metric("tricycle_ms2_messages_received_total") }
	topictest.Eventually(t, 10*time.Second, "the queue is full", func() bool {
		return r.metric("tricycle_ms2_queue_messages") == queueLength && received() == queueLength+1
	})
	// Longer than the silence that ends a connection, during which nothing is
	// read and MS1 still lives.
	begin := time.Now()
	topictest.Eventually(t, 15*time.Second, "time passes", func() bool {
		if received() != queueLength+1 {
			t.Fatal("it reads though its queue is full")
		}
		return time.Since(begin) > (lostPings+1)*ping
	})
	if sent.Load() == int64(len(ms)) {
		t.Error("everything could be sent; pressure did not reach the sender")
	}
	runtime.GC()
	runtime.ReadMemStats(&full)
	if grown := int64(full.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	heal()
	<-done
	topictest.Eventually(t, 30*time.Second, "all acknowledged", func() bool {
		return r.metric("tricycle_ms2_messages_produced_total") == float64(len(ms))
	})
	if r.metric("tricycle_ms2_connections") != 1 {
		t.Error("the connection was closed")
	}
}

func TestWithoutProgressTheQueueIsDropped(t *testing.T) {
	t.Parallel()
	address, heal := stalledCluster(t)
	k := topictest.For(t, address)
	r := start(t, k, func(s *Service) { s.queue.stall = 500 * time.Millisecond }).ready()
	ms := messages(5000)
	first, second := r.dial(), r.dial()
	go func() {
		for _, m := range ms { // more than the queue holds: the peer waits for room when it is closed
			if first.WriteMessage(websocket.TextMessage, m.Encode()) != nil {
				return
			}
		}
	}()
	for _, c := range []*client{first, second} {
		if closed := c.closed(t); closed.Code != websocket.CloseTryAgainLater || !strings.Contains(closed.Text, "kafka") {
			t.Errorf("found %v, expected 1013", closed)
		}
	}
	topictest.Eventually(t, 5*time.Second, "the queue is empty", func() bool { return r.metric("tricycle_ms2_queue_messages") == 0 })
	if got := r.metric("tricycle_ms2_messages_dropped_total"); got < 100 {
		t.Errorf("found %v dropped", got)
	}
	if !strings.Contains(r.log.String(), "kafka accepts nothing, queue dropped") {
		t.Error("it was not logged")
	}
	heal()
	r.ready()
	again := r.dial()
	again.send(t, ms...)
	topictest.Eventually(t, 15*time.Second, "all acknowledged", func() bool {
		return r.metric("tricycle_ms2_messages_produced_total") >= float64(len(ms))
	})
	select {
	case err := <-again.ended:
		t.Errorf("the new connection has ended: %v", err)
	default:
	}
}

func TestAnIdleQueueIsNoStall(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t), func(s *Service) { s.queue.stall = 200 * time.Millisecond }).ready()
	ws := r.dial()
	begin := time.Now()
	topictest.Eventually(t, 5*time.Second, "time passes", func() bool { return time.Since(begin) > time.Second })
	ws.send(t, messages(1)...)
	topictest.Eventually(t, 5*time.Second, "acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 1 })
}

func TestRefusedProduceIsRepeated(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	collector, spans := topictest.Collector(t)
	r := start(t, k, func(c *Config) { c.Tracing.Endpoint = collector }).ready()
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 3})
	ms := messages(1)
	r.dial().send(t, ms...)
	distinct(t, k, ms)
	topictest.Eventually(t, 5*time.Second, "acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 1 })
	if got := r.metric("tricycle_ms2_produce_retries_total"); got != 3 {
		t.Errorf("found %v retries, expected 3", got)
	}
	if got := strings.Count(r.log.String(), "produce request failed, retrying"); got != 1 {
		t.Errorf("found it logged %d times, expected once", got)
	}
	r.stop()
	if s := spans(); len(s) != 1 || len(s[0].Events) != 3 || s[0].Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("found %v, expected a span with three events", s)
	}
}

// onProduce makes f answer requests to produce. It is given the bytes of the
// records and their partition, and may return the error of the answer.
func onProduce(cluster *kfake.Cluster, f func(size int, partition int32) *kerr.Error) {
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		request := r.(*kmsg.ProduceRequest)
		asked := request.Topics[0].Partitions[0]
		fault := f(len(asked.Records), asked.Partition)
		switch fault {
		case nil:
			return nil, nil, false
		case kerr.UnknownServerError: // closes the connection
			return nil, errors.New("refused by the test"), true
		}
		resp := request.ResponseKind().(*kmsg.ProduceResponse)
		t := kmsg.NewProduceResponseTopic()
		t.Topic = request.Topics[0].Topic
		p := kmsg.NewProduceResponseTopicPartition()
		p.Partition, p.ErrorCode = asked.Partition, fault.Code
		t.Partitions = append(t.Partitions, p)
		resp.Topics = append(resp.Topics, t)
		return resp, nil, true
	})
}

func TestABatchThatIsTooLargeIsSplit(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*testing.T) topic.Config{
		"for the topic": func(t *testing.T) topic.Config { // the real broker's answer, if there is one
			k := topictest.Config(t)
			topictest.Create(t, k, "max.message.bytes", "2048")
			return k
		},
		"for the broker": func(t *testing.T) topic.Config {
			cluster, address := topictest.Cluster(t)
			onProduce(cluster, func(size int, _ int32) *kerr.Error {
				if size > 2048 {
					return kerr.UnknownServerError
				}
				return nil
			})
			return topictest.For(t, address)
		},
		"for the broker's list": func(t *testing.T) topic.Config {
			cluster, address := topictest.Cluster(t)
			onProduce(cluster, func(size int, _ int32) *kerr.Error {
				if size > 2048 {
					return kerr.RecordListTooLarge
				}
				return nil
			})
			return topictest.For(t, address)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := limit(t)
			r := start(t, k).ready()
			ms := messages(2000)
			r.dial().send(t, ms...)
			distinct(t, k, ms)
			topictest.Eventually(t, 20*time.Second, "acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 2000 })
			if r.metric("tricycle_ms2_messages_dropped_total") != 0 || r.metric("tricycle_ms2_connections") != 1 {
				t.Error("messages or the connection were dropped")
			}
			// The size is remembered: each lane finds it once.
			if got := r.metric("tricycle_ms2_produce_retries_total"); got == 0 || got > 40 {
				t.Errorf("got %v retries, want some for each of four lanes", got)
			}
			if err := r.Service.ready(t.Context()); err != nil {
				t.Errorf("not ready: %v", err)
			}
		})
	}
}

// A topic whose settings MS2 may not see, and that takes no message.
func TestAMessageThatIsTooLargeNamesTheSetting(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	var limited atomic.Bool
	limited.Store(true)
	onProduce(cluster, func(int, int32) *kerr.Error {
		if limited.Load() {
			return kerr.MessageTooLarge
		}
		return nil
	})
	r := start(t, k, func(s *Service) { s.queue.stall = 2 * time.Second }).ready()
	r.dial().send(t, messages(10)...)
	topictest.Eventually(t, 5*time.Second, "not ready", func() bool {
		err := r.Service.ready(t.Context())
		return err != nil && strings.Contains(err.Error(), k.Topic+": max.message.bytes: must be at least 512")
	})
	limited.Store(false)
	topictest.Eventually(t, 20*time.Second, "ready", func() bool { return r.Service.ready(t.Context()) == nil })
	ms := messages(10)
	r.dial().send(t, ms...)
	distinct(t, k, ms)
}

// The largest message fits into the smallest topic.
func TestTheLargestMessage(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	topictest.Create(t, k, "max.message.bytes", fmt.Sprint(topic.MessageBytes))
	r := start(t, k).ready()
	m := messages(1)[0]
	m.SessionID = math.MaxInt64
	r.dial().send(t, m)
	distinct(t, k, []message.Message{m})
	if got := r.metric("tricycle_ms2_produce_retries_total"); got != 0 {
		t.Errorf("got %v retries", got)
	}
}

// What a partition refuses goes to the others.
func TestOnePartitionWithoutALeader(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]*kerr.Error{
		"no leader": kerr.NotLeaderForPartition, "too few replicas": kerr.NotEnoughReplicas, "closes the connection": kerr.UnknownServerError,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k := topictest.For(t, address)
			onProduce(cluster, func(_ int, partition int32) *kerr.Error {
				if partition == 1 {
					return fault
				}
				return nil
			})
			r := start(t, k).ready()
			ms := messages(4000)
			r.dial().send(t, ms...)
			for key, record := range distinct(t, k, ms) {
				if record.Partition == 1 {
					t.Errorf("%s: in the partition that refuses", key)
				}
			}
			if r.metric("tricycle_ms2_messages_dropped_total") != 0 || r.metric("tricycle_ms2_connections") != 1 || r.Service.ready(t.Context()) != nil {
				t.Error("messages, the connection or the readiness were dropped")
			}
		})
	}
}

func TestStopWritesWhatWasRead(t *testing.T) {
	t.Parallel()
	address, heal := stalledCluster(t)
	k := topictest.For(t, address)
	r := start(t, k).ready()
	ws := r.dial()
	ms := messages(500)
	ws.send(t, ms...)
	topictest.Eventually(t, 5*time.Second, "all read", func() bool { return r.metric("tricycle_ms2_messages_received_total") == 500 })
	stopped := make(chan time.Duration, 1)
	go func() { stopped <- r.stop() }()
	if closed := ws.closed(t); closed.Code != websocket.CloseGoingAway {
		t.Errorf("found %v, expected 1001", closed)
	}
	heal()
	if took := <-stopped; took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	distinct(t, k, ms)
	if r.metric("tricycle_ms2_messages_dropped_total") != 0 {
		t.Error("messages were dropped")
	}
}

func TestStopIsBoundedWhenKafkaIsStuck(t *testing.T) {
	t.Parallel()
	address, _ := stalledCluster(t)
	r := start(t, topictest.For(t, address)).ready()
	r.dial().send(t, messages(500)...)
	topictest.Eventually(t, 5*time.Second, "all read", func() bool { return r.metric("tricycle_ms2_messages_received_total") == 500 })
	if took := r.stop(); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if got := r.metric("tricycle_ms2_messages_dropped_total"); got != 500 {
		t.Errorf("found %v dropped, expected 500", got)
	}
	if got := r.metric("tricycle_ms2_queue_messages"); got > queueLength {
		t.Errorf("found %v in the queue", got)
	}
}

func TestSilentPeerIsClosed(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t), func(s *Service) { s.ping = ping }).ready()
	living := r.dial()
	silent, _, err := websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil) // reads nothing, so answers no ping
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	topictest.Eventually(t, 5*time.Second, "both are connected", func() bool { return r.metric("tricycle_ms2_connections") == 2 })
	begin := time.Now()
	topictest.Eventually(t, 15*time.Second, "the silent one is closed", func() bool { return r.metric("tricycle_ms2_connections") == 1 })
	if took := time.Since(begin); took < (lostPings-1)*ping {
		t.Errorf("closed after %s, expected %s", took, lostPings*ping)
	}
	if living.pings.Load() < 2 {
		t.Errorf("found %d pings in %s", living.pings.Load(), lostPings*ping)
	}
	living.send(t, messages(1)...)
	topictest.Eventually(t, 5*time.Second, "acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 1 })
}

func TestOneSpanForEachCopy(t *testing.T) {
	t.Parallel()
	collector, spans := topictest.Collector(t)
	k := topictest.Config(t)
	r := start(t, k, func(c *Config) { c.Tracing.Endpoint = collector }).ready()
	m := messages(1)[0]
	ws := r.dial()
	ws.send(t, m, m) // a repeat
	records := topictest.Read(t, k, k.Topic, 2)
	topictest.Eventually(t, 5*time.Second, "acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 2 })
	_ = ws.WriteMessage(websocket.TextMessage, []byte("{}"))
	ws.closed(t)
	r.stop()

	all := spans()
	if len(all) != 3 {
		t.Fatalf("found %d spans, expected two copies and a rejected frame", len(all))
	}
	traceID, rootID := telemetry.IDs(m.Key())
	parents, ids := map[string]bool{}, map[string]bool{}
	for _, record := range records {
		headers := topic.Headers(record.Headers)
		parents[headers.Get("traceparent")] = true
	}
	for _, s := range all {
		if s.Kind != otlp.Span_SPAN_KIND_CONSUMER || s.Name != "receive "+k.Topic {
			t.Errorf("found span %q of kind %s", s.Name, s.Kind)
		}
		if topictest.Attribute(s, "error.type") == "malformed" {
			if s.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || bytes.Equal(s.TraceId, traceID[:]) {
				t.Errorf("found %v for the rejected frame", s)
			}
			continue
		}
		ids[string(s.SpanId)] = true
		if !bytes.Equal(s.TraceId, traceID[:]) || !bytes.Equal(s.ParentSpanId, rootID[:]) {
			t.Errorf("found trace %x, parent %x, expected %s, %s", s.TraceId, s.ParentSpanId, traceID, rootID)
		}
		if !parents[fmt.Sprintf("00-%x-%x-01", s.TraceId, s.SpanId)] {
			t.Errorf("no record carries span %x: %v", s.SpanId, parents)
		}
		for name, want := range map[string]string{
			"messaging.system": "kafka", "messaging.operation.type": "receive", "messaging.operation.name": "receive",
			"messaging.destination.name": k.Topic, "messaging.kafka.message.key": m.Key().String(),
			"messaging.destination.partition.id": fmt.Sprint(records[0].Partition),
		} {
			if got := topictest.Attribute(s, name); got != want {
				t.Errorf("found %s = %q, expected %q", name, got, want)
			}
		}
	}
	if len(ids) != 2 {
		t.Errorf("found span ids %v, expected a fresh one for each copy", ids)
	}
}

func TestSampledOutMessagesMakeNoSpan(t *testing.T) {
	t.Parallel()
	collector, spans := topictest.Collector(t)
	k := topictest.Config(t)
	r := start(t, k, func(c *Config) { c.Tracing.Endpoint, c.Tracing.SampleRatio = collector, 0 }).ready()
	r.dial().send(t, messages(5)...)
	for _, record := range topictest.Read(t, k, k.Topic, 5) {
		headers := topic.Headers(record.Headers)
		if got := headers.Get("traceparent"); !strings.HasSuffix(got, "-00") {
			t.Errorf("found traceparent %q, expected one not sampled", got)
		}
	}
	r.stop()
	if got := spans(); len(got) != 0 {
		t.Errorf("found %d spans", len(got))
	}
}

// slowListener delays what the broker sends by half a second, as a slow link
// does.
type slowListener struct {
	net.Listener
	test context.Context
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return slowConn{c, l.test}, err
}

type slowConn struct {
	net.Conn
	test context.Context
}

func (c slowConn) Write(p []byte) (int, error) {
	select {
	case <-time.After(300*time.Millisecond + rand.N(400*time.Millisecond)): // the latency itself
	case <-c.test.Done():
	}
	return c.Conn.Write(p)
}

func TestSlowLinkToKafka(t *testing.T) {
	t.Parallel()
	_, address := topictest.Cluster(t, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return slowListener{l, t.Context()}, err
	}))
	r := start(t, topictest.For(t, address)).ready()
	r.dial().send(t, messages(2000)...)
	topictest.Eventually(t, 20*time.Second, "all acknowledged", func() bool { return r.metric("tricycle_ms2_messages_produced_total") == 2000 })
	if r.metric("tricycle_ms2_messages_dropped_total") != 0 || r.metric("tricycle_ms2_produce_retries_total") != 0 {
		t.Error("requests were given up")
	}
}

func TestManyConnections(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	r := start(t, k).ready()
	var all []message.Message
	var senders sync.WaitGroup
	for range 8 {
		ms := messages(200)
		all = append(all, ms...)
		ws := r.dial()
		senders.Go(func() { ws.send(t, ms...) })
	}
	senders.Wait()
	distinct(t, k, all)
}

func TestConnectionsAreLimited(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	r := start(t, k).ready()
	ms := messages(2)
	ms1 := r.dial()
	ms1.send(t, ms[0])
	distinct(t, k, ms[:1])
	var idle []*client
	for range 3 * maxPeers { // answer pings and send nothing
		var ws *client
		topictest.Eventually(t, 20*time.Second, "a place", func() bool {
			c, resp, err := websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil)
			if err != nil {
				if resp == nil || resp.StatusCode != 503 {
					t.Fatalf("got %v, %v, want 503 at worst", resp, err)
				}
				return false
			}
			ws = &client{Conn: c, ended: make(chan error, 1)}
			return true
		})
		go func() {
			_, _, err := ws.ReadMessage()
			ws.Close()
			ws.ended <- err
		}()
		t.Cleanup(func() { ws.Close() })
		idle = append(idle, ws)
		if got := r.metric("tricycle_ms2_connections"); got > 2*maxPeers {
			t.Fatalf("got %v connections", got)
		}
	}
	if closed := idle[0].closed(t); closed.Code != websocket.CloseTryAgainLater || !strings.Contains(closed.Text, "too many connections") {
		t.Errorf("got %v for the oldest idle connection, want 1013", closed)
	}
	topictest.Eventually(t, 10*time.Second, "the others are gone", func() bool { return r.metric("tricycle_ms2_connections") == maxPeers })
	ms1.send(t, ms[1]) // its connection is kept
	distinct(t, k, ms)
	if got := strings.Count(r.log.String(), "connection opened"); got > 20 {
		t.Errorf("got %d lines for connections, want one a second", got)
	}

	// When all have sent a message, one more is refused.
	for _, c := range idle[len(idle)-maxPeers+1:] {
		c.send(t, messages(1)...)
	}
	topictest.Eventually(t, 10*time.Second, "all are read", func() bool {
		return r.metric("tricycle_ms2_messages_received_total") == float64(maxPeers+1)
	})
	if _, resp, err := websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil); err == nil || resp == nil || resp.StatusCode != 503 {
		t.Errorf("got %v, %v, want 503", resp, err)
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
	if _, err := New(c, zerolog.Nop(), &telemetry.Telemetry{Metrics: prometheus.NewRegistry()}); err == nil || !strings.Contains(err.Error(), "listen for MS1") {
		t.Errorf("found %v", err)
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ in, want string }{
		"short":               {"found x", "found x"},
		"exactly":             {strings.Repeat("a", 123), strings.Repeat("a", 123)},
		"one too many":        {strings.Repeat("a", 124), strings.Repeat("a", 120) + "…"},
		"on a rune":           {strings.Repeat("a", 119) + "ééé", strings.Repeat("a", 119) + "…"},
		"broken already":      {"a\xff", "a\uFFFD"},
		"grows when mended":   {strings.Repeat("\xff\x00", 62), strings.Repeat("\uFFFD\x00", 30) + "…"},
		"nothing to say":      {"", ""},
		"four bytes for each": {strings.Repeat("🚲", 40), strings.Repeat("🚲", 30) + "…"},
	} {
		if got := cut(c.in); got != c.want || len(got) > maxReason {
			t.Errorf("%s: found %q, expected %q", name, got, c.want)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	c := Defaults()
	if err := c.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	c.Listen, c.Kafka.Topic, c.Tracing.SampleRatio, c.Logging.Level = "8081", "", 2, "loud"
	err := c.Validate()
	for _, key := range []string{"listen", "kafka.topic", "tracing.sample_ratio", "logging.level"} {
		if err == nil || !strings.Contains(err.Error(), key+": found") {
			t.Errorf("found %v, expected %s", err, key)
		}
	}
}

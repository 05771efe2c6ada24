package ms2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestMain(m *testing.M) { servicetest.Main(m, openapitest.Complete("ms2")) }

// running is an MS2 that a test has started.
type running struct {
	*Service
	*programtest.Running
}

// start runs MS2 until the test ends. The functions may change the
// configuration, or the service before it runs.
func start(t *testing.T, k topic.Config, change ...any) *running {
	t.Helper()
	c := Defaults()
	c.Listen, c.Kafka = "127.0.0.1:0", k
	programtest.Change(&c, change)
	service, r := programtest.Start(t, "ms2", c.Tracing, func(log zerolog.Logger, tel *telemetry.Telemetry) (*Service, error) {
		s, err := New(c, log, tel)
		if err == nil {
			programtest.Change(s, change)
		}
		return s, err
	})
	return &running{service, r}
}

// ready waits until MS2 takes messages.
func (r *running) ready() *running {
	r.Ready()
	return r
}

// produced waits until Kafka has acknowledged n messages.
func (r *running) produced(t *testing.T, n int) {
	t.Helper()
	servicetest.Eventually(t, time.Minute, fmt.Sprintf("%d acknowledged", n), func() bool { return r.Metric("tricycle_ms2_messages_produced_total") == float64(n) })
}

// kept checks that neither messages nor the connection were dropped.
func (r *running) kept(t *testing.T) {
	t.Helper()
	if r.Metric("tricycle_ms2_messages_dropped_total") != 0 || r.Metric("tricycle_ms2_connections") != 1 {
		t.Error("messages or the connection were dropped")
	}
}

// client is a connection to MS2 that reads all the time, as MS1 does.
type client struct {
	*websocket.Conn
	pings atomic.Int64
	ended chan error // why reading ended
}

// connect opens a WebSocket, or returns the answer that refuses it.
func (r *running) connect() (*websocket.Conn, *http.Response, error) {
	return websocket.DefaultDialer.Dial("ws://"+r.Address()+"/ws", nil)
}

func (r *running) dial(t *testing.T) *client {
	t.Helper()
	ws, resp, err := r.connect()
	if err != nil {
		t.Fatalf("connecting: %v, %v", err, resp)
	}
	return reading(t, ws)
}

func reading(t *testing.T, ws *websocket.Conn) *client {
	c := &client{Conn: ws, ended: make(chan error, 1)}
	ws.SetPingHandler(func(text string) error {
		c.pings.Add(1)
		// A deadline that passes while MS2 reads nothing would end the connection.
		return ws.WriteControl(websocket.PongMessage, []byte(text), time.Time{})
	})
	go func() {
		_, _, err := ws.ReadMessage()
		ws.Close()
		c.ended <- err
	}()
	t.Cleanup(func() { ws.Close() })
	return c
}

// closed waits until MS2 closes the connection and returns how.
func (c *client) closed(t *testing.T) *websocket.CloseError {
	t.Helper()
	select {
	case err := <-c.ended:
		var closed *websocket.CloseError
		if !errors.As(err, &closed) {
			t.Fatalf("got %v, want a close frame", err)
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
			t.Errorf("got key %q, want %q", r.Key, m.Key())
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
	r.dial(t).send(t, ms...)
	found := distinct(t, k, ms)
	after := message.StampOf(time.Now())

	used := map[int]int{}
	for key, record := range found {
		m, _ := message.Decode(record.Value, message.AtMS3)
		if m.Service2 < before || m.Service2 > after {
			t.Errorf("%s: stamped %s, want %s to %s", key, m.Service2, before, after)
		}
		used[record.Partition]++
	}
	if len(used) != 4 {
		t.Errorf("got records by partition %v, want all four in use", used)
	}
	servicetest.Eventually(t, time.Minute, "all acknowledged", func() bool {
		return r.Metric("tricycle_ms2_messages_produced_total") == 1000 && r.Metric("tricycle_ms2_queue_messages") == 0
	})
	if got := r.Metric("tricycle_ms2_messages_received_total"); got != 1000 {
		t.Errorf("got %v received, want 1000", got)
	}
	if got := r.Metric("tricycle_ms2_connections"); got != 1 {
		t.Errorf("got %v connections, want 1", got)
	}
}

func TestPathsThatAreOnlyRead(t *testing.T) {
	t.Parallel()
	start(t, topictest.Config(t)).ReadOnlyPaths()
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
		if err == nil || !strings.Contains(err.Error(), key+": must be") {
			t.Errorf("got %v, want %s", err, key)
		}
	}
}

func TestEveryKeyHasAVariable(t *testing.T) { programtest.Variables(t, Program()) }

func TestShippedConfiguration(t *testing.T) {
	loopback := programtest.Shipped(t, "../../compose/config/", Program())
	if loopback.Listen != "127.0.0.1:8081" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms2.log" {
		t.Errorf("got %+v", loopback)
	}
}

func TestProgram(t *testing.T) {
	t.Parallel()
	p := Program()
	p.Config.Kafka = topictest.Config(t)
	p.Config.Tracing.Endpoint, _ = telemetrytest.Collector(t)
	programtest.Life(t, p, p.Config.Kafka.Brokers[0], "listen for MS1")
}

package ms2

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

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
		"no JSON":         {websocket.TextMessage, "hello", 1008, "message: expected a JSON object, found invalid character", "malformed"},
		"empty":           {websocket.TextMessage, "", 1008, "message: expected a JSON object, found nothing", "malformed"},
		"array":           {websocket.TextMessage, "[]", 1008, "message: expected a JSON object, found an array", "malformed"},
		"sixth field":     {websocket.TextMessage, strings.Replace(wire, "{", `{"trace":1,`, 1), 1008, "trace: expected one of the five fields of a message, found an unknown field", "malformed"},
		"zero session":    {websocket.TextMessage, `{"session_id":0}`, 1008, "session_id: expected an integer", "malformed"},
		"stamped before":  {websocket.TextMessage, string(stamped.Encode()), 1008, "service2_timestamp: expected null before this stage, found 2", "malformed"},
		"trailing bytes":  {websocket.TextMessage, wire + "x", 1008, "message: expected nothing after the object", "malformed"},
		"bad UTF-8":       {websocket.TextMessage, strings.Replace(wire, "{", "{\"\xff\xfe\":1,", 1), 1008, "expected one of the five fields", "malformed"},
		"long field name": {websocket.TextMessage, `{"` + strings.Repeat("é", 300) + `":1}`, 1008, "é", "malformed"},
		"4 KiB and one":   {websocket.TextMessage, wire + strings.Repeat(" ", message.MaxBytes-len(wire)+1), 1009, "", "too_large"},
		"1 MiB":           {websocket.TextMessage, strings.Repeat("x", 1<<20), 1009, "", "too_large"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := topictest.Config(t)
			r := start(t, k).ready()
			ws := r.dial(t)
			ws.send(t, good)
			_ = ws.WriteMessage(c.kind, []byte(c.frame)) // the connection may end under it
			closed := ws.closed(t)
			if closed.Code != c.code || !strings.Contains(closed.Text, c.text) {
				t.Errorf("got %v, want %d %q", closed, c.code, c.text)
			}
			if len(closed.Text) > 123 || !utf8.ValidString(closed.Text) {
				t.Errorf("got a reason of %d bytes, %q", len(closed.Text), closed.Text)
			}
			// The close frame may be here before the rest is done.
			servicetest.Eventually(t, time.Minute, "it is logged", func() bool { return r.Log.Has(`"reason":"` + c.reason + `"`) })
			if got := r.Metric("tricycle_ms2_frames_rejected_total", c.reason); got != 1 {
				t.Errorf("got %v rejected as %s, want 1", got, c.reason)
			}
			next := messages(1)[0]
			r.dial(t).send(t, next)                       // the next connection works
			distinct(t, k, []message.Message{good, next}) // and the message before is not lost
		})
	}
}

func TestExactlyFourKibibytesAreTaken(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	ws := start(t, k).ready().dial(t)
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
		ws := r.dial(t)
		if err := ws.WriteMessage(websocket.TextMessage, frame); err != nil {
			t.Fatal(err)
		}
		if closed := ws.closed(t); closed.Code != websocket.ClosePolicyViolation {
			t.Fatalf("got %v for %q", closed, frame)
		}
	}
	if got := r.Metric("tricycle_ms2_frames_rejected_total", "malformed"); got != cases {
		t.Errorf("got %v rejected, want %d", got, cases)
	}
	m := messages(1)
	r.dial(t).send(t, m...)
	distinct(t, k, m)
}

// The largest message fits into the smallest topic.
func TestTheLargestMessage(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	topictest.Create(t, k, "max.message.bytes", fmt.Sprint(topic.MessageBytes))
	r := start(t, k).ready()
	m := messages(1)[0]
	m.SessionID = math.MaxInt64
	r.dial(t).send(t, m)
	distinct(t, k, []message.Message{m})
	if got := r.Metric("tricycle_ms2_produce_retries_total"); got != 0 {
		t.Errorf("got %v retries", got)
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
		"grows when repaired": {strings.Repeat("\xff\x00", 62), strings.Repeat("\uFFFD\x00", 30) + "…"},
		"no reason":           {"", ""},
		"four bytes for each": {strings.Repeat("🚲", 40), strings.Repeat("🚲", 30) + "…"},
	} {
		if got := cut(c.in); got != c.want || len(got) > maxReason {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// held is a client's connection that keeps what is written while hold is set.
type held struct {
	net.Conn
	hold  bool
	bytes bytes.Buffer
}

func (c *held) Write(p []byte) (int, error) {
	if c.hold {
		return c.bytes.Write(p)
	}
	return c.Conn.Write(p)
}

// counted counts the reads of its connections that return something.
type counted struct {
	net.Listener
	reads *atomic.Int64
}

func (l counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return countedConn{conn, l.reads}, err
}

type countedConn struct {
	net.Conn
	reads *atomic.Int64
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads.Add(1)
	}
	return n, err
}

// As many frames as MS1 writes at once are read at once.
func TestFramesThatArriveTogetherAreOneRead(t *testing.T) {
	t.Parallel()
	const most = 64
	r := start(t, topictest.Config(t), func(s *Service) { s.ping = time.Hour }).ready()
	var reads atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(r.serveWebSocket))
	server.Listener = counted{server.Listener, &reads}
	server.Start()
	defer server.Close()
	wire := &held{}
	dialer := websocket.Dialer{NetDial: func(network, address string) (_ net.Conn, err error) {
		wire.Conn, err = net.Dial(network, address)
		return wire, err
	}}
	ws, resp, err := dialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	defer ws.Close()
	wire.hold = true
	for _, m := range messages(most) {
		m.SessionID = math.MaxInt64 // the longest
		if err := ws.WriteMessage(websocket.TextMessage, m.Encode()); err != nil {
			t.Fatal(err)
		}
	}
	before := reads.Load()
	if _, err := wire.Conn.Write(wire.bytes.Bytes()); err != nil {
		t.Fatal(err)
	}
	r.produced(t, most)
	if got := reads.Load() - before; got != 1 {
		t.Errorf("%d frames of together %d bytes: got %d reads, want 1", most, wire.bytes.Len(), got)
	}
}

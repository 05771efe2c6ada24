package ms2

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// The peer waits for MS2 to end the connection (RFC 6455, 7.1.1).
func TestAPeerThatHasAnsweredTheCloseIsLetGoAtOnce(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t)).ready()
	fastest := time.Hour
	for range 5 { // one of them is not slow for reasons of its own
		ws, _, err := r.connect()
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		_ = ws.WriteMessage(websocket.TextMessage, []byte("hello"))
		if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.ClosePolicyViolation) { // and answers
			t.Fatalf("got %v, want 1008", err)
		}
		began := time.Now()
		if n, err := ws.NetConn().Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("got %d bytes, %v, want the end of the connection", n, err)
		}
		fastest = min(fastest, time.Since(began))
	}
	if fastest > closeTimeout/2 {
		t.Errorf("it took %s at best", fastest)
	}
}

// One that only answers a ping has no more time.
func TestAPongDoesNotDelayTheEndOfAConnection(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t), func(s *Service) { s.ping = time.Hour }).ready()
	ws, _, err := r.connect()
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	_ = ws.WriteMessage(websocket.TextMessage, []byte("hello"))
	_ = ws.WriteMessage(websocket.PongMessage, nil)
	_ = ws.NetConn().SetReadDeadline(time.Now().Add(10 * closeTimeout))
	if _, err := io.Copy(io.Discard, ws.NetConn()); err != nil {
		t.Errorf("got %v, want the end of the connection", err)
	}
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
		"another version":         {"GET", with("Sec-Websocket-Version", "8"), 400},
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
				t.Errorf("got %s, want %d", resp.Status, c.status)
			}
			if got := resp.Header.Get("Sec-Websocket-Version"); c.status == 400 && got != "13" {
				t.Errorf("got version %q, want 13", got)
			}
			if c.status >= 400 && resp.Header.Get("Content-Type") != httpserver.ProblemType {
				t.Errorf("got %s, want a problem", resp.Header.Get("Content-Type"))
			}
		})
	}
}

func TestHandshakeWithAToken(t *testing.T) {
	t.Parallel()
	file := servicetest.File(t, "token", "secret\n")
	r := start(t, topictest.Config(t), func(c *Config) { c.TokenFile = file }).ready()
	for token, want := range map[string]int{"secret": 101, "other": 401} {
		status, body := r.Do(http.MethodGet, "/ws", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Authorization": {"Bearer " + token}})
		if status != want {
			t.Errorf("%s: got %d %s, want %d", token, status, body, want)
		}
	}
}

func TestSilentPeerIsClosed(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t), func(s *Service) { s.ping = ping }).ready()
	living := r.dial(t)
	silent, _, err := r.connect() // reads nothing, so answers no ping
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	servicetest.Eventually(t, time.Minute, "both are connected", func() bool { return r.Metric("tricycle_ms2_connections") == 2 })
	begin := time.Now()
	servicetest.Eventually(t, time.Minute, "the silent one is closed", func() bool { return r.Metric("tricycle_ms2_connections") == 1 })
	if took := time.Since(begin); took < (lostPings-1)*ping {
		t.Errorf("closed after %s, want %s", took, lostPings*ping)
	}
	if living.pings.Load() < 2 {
		t.Errorf("got %d pings in %s", living.pings.Load(), lostPings*ping)
	}
	living.send(t, messages(1)...)
	r.produced(t, 1)
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
		ws := r.dial(t)
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
	ms1 := r.dial(t)
	ms1.send(t, ms[0])
	distinct(t, k, ms[:1])
	var idle []*client
	begin := time.Now()
	for range 3 * maxPeers { // answer pings and send nothing
		var ws *client
		servicetest.Eventually(t, time.Minute, "a place", func() bool {
			c, resp, err := r.connect()
			if err != nil {
				if resp == nil || resp.StatusCode != 503 {
					t.Fatalf("got %v, %v, want 503 at worst", resp, err)
				}
				return false
			}
			ws = reading(t, c)
			return true
		})
		idle = append(idle, ws)
		if got := r.Metric("tricycle_ms2_connections"); got > 2*maxPeers {
			t.Fatalf("got %v connections", got)
		}
	}
	if closed := idle[0].closed(t); closed.Code != websocket.CloseTryAgainLater || !strings.Contains(closed.Text, "too many connections") {
		t.Errorf("got %v for the oldest idle connection, want 1013", closed)
	}
	servicetest.Eventually(t, time.Minute, "the others are gone", func() bool { return r.Metric("tricycle_ms2_connections") == maxPeers })
	ms1.send(t, ms[1]) // its connection is kept
	distinct(t, k, ms)
	if got, seconds := r.Log.Count("connection opened"), int(time.Since(begin).Seconds()); got > seconds+2 {
		t.Errorf("got %d lines for connections in %d s, want one a second", got, seconds)
	}

	// When all have sent a message, one more is refused.
	for _, c := range idle[len(idle)-maxPeers+1:] {
		c.send(t, messages(1)...)
	}
	servicetest.Eventually(t, time.Minute, "all are read", func() bool {
		return r.Metric("tricycle_ms2_messages_received_total") == float64(maxPeers+1)
	})
	if _, resp, err := r.connect(); err == nil || resp == nil || resp.StatusCode != 503 {
		t.Errorf("got %v, %v, want 503", resp, err)
	}
}

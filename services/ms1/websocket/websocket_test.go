package websocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	gorilla "github.com/gorilla/websocket"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }

// ms2 is the other side: each connection is served by the function of its
// number, from 0, the last one serving all that come after.
type ms2 struct {
	*httptest.Server
	mu     sync.Mutex
	dials  []time.Time
	frames []string
}

type serveFunc func(m *ms2, w http.ResponseWriter, r *http.Request)

func newMS2(t *testing.T, serve ...serveFunc) *ms2 {
	t.Helper()
	return ms2At(t, listenAt(t, "127.0.0.1:0"), serve...)
}

func ms2At(t *testing.T, l net.Listener, serve ...serveFunc) *ms2 {
	t.Helper()
	m := &ms2{}
	m.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		n := len(m.dials)
		m.dials = append(m.dials, time.Now())
		m.mu.Unlock()
		serve[min(n, len(serve)-1)](m, w, r)
	})}}
	m.Start()
	t.Cleanup(m.Close)
	return m
}

func listenAt(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil && !strings.HasPrefix(address, "127.0.0.1:") {
		t.Skipf("needs several loopback addresses: %v", err)
	}
	servicetest.NoError(t, err)
	return l
}

func (m *ms2) url() string { return "ws" + strings.TrimPrefix(m.URL, "http") + "/ws" }

func (m *ms2) dialled() []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.dials)
}

func (m *ms2) got() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.frames)
}

// upgrade accepts the connection and hands it to serve.
func upgrade(serve func(m *ms2, c *gorilla.Conn)) serveFunc {
	return func(m *ms2, w http.ResponseWriter, r *http.Request) {
		u := gorilla.Upgrader{}
		c, err := u.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		serve(m, c)
	}
}

// read takes frames until the connection ends, and notes its end as a frame.
func read(m *ms2, c *gorilla.Conn) {
	for {
		kind, data, err := c.ReadMessage()
		m.mu.Lock()
		if err != nil {
			m.frames = append(m.frames, err.Error())
			m.mu.Unlock()
			return
		}
		m.frames = append(m.frames, fmt.Sprintf("%d %s", kind, data))
		m.mu.Unlock()
	}
}

func refuse(_ *ms2, w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "kafka is unavailable", http.StatusServiceUnavailable)
}

// run runs a link until the test ends it.
func run(t *testing.T, url string, silence time.Duration, options ...func(*Client)) (l *Client, connected chan uint64, stop func()) {
	t.Helper()
	l = New(url, credentials.Access{}, zerolog.Nop())
	if silence != 0 {
		l.silence = silence
	}
	for _, option := range options {
		option(l)
	}
	connected = make(chan uint64, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx, func(n uint64) { connected <- n }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the link ended with %v, expected none", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("the link does not end")
		}
	})
	t.Cleanup(stop)
	return l, connected, stop
}

func next(t *testing.T, connected chan uint64) uint64 {
	t.Helper()
	return servicetest.Receive(t, "a connection", connected)
}

func TestSends(t *testing.T) {
	t.Parallel()
	m := newMS2(t, upgrade(read))
	l := New(m.url(), credentials.Access{}, zerolog.Nop())
	if err := l.Ready(t.Context()); !errors.Is(err, ErrNotConnected) {
		t.Errorf("before the start: got %v, want %v", err, ErrNotConnected)
	}
	if _, err := l.Send([]byte("x")); !errors.Is(err, ErrNotConnected) {
		t.Errorf("before the start: got %v, want %v", err, ErrNotConnected)
	}

	l, connected, stop := run(t, m.url(), 0)
	if n := next(t, connected); n != 1 {
		t.Errorf("got connection %d, want 1", n)
	}
	servicetest.NoError(t, l.Ready(t.Context()))
	for _, frame := range []string{"one", "two"} {
		if n, err := l.Send([]byte(frame)); n != 1 || err != nil {
			t.Errorf("got connection %d, %v, want 1", n, err)
		}
	}
	stop()
	// Text frames in their order, then the goodbye.
	servicetest.Eventually(t, time.Minute, "the frames", func() bool { return len(m.got()) == 3 })
	if got, want := m.got(), []string{"1 one", "1 two", "websocket: close 1000 (normal)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := l.Send([]byte("late")); !errors.Is(err, ErrNotConnected) {
		t.Errorf("after the end: got %v, want %v", err, ErrNotConnected)
	}
	if err := l.Ready(t.Context()); err == nil {
		t.Error("after the end: found it ready")
	}
}

// tap counts the writes to a connection.
type tap struct {
	net.Conn
	writes *atomic.Int64
}

func (c tap) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

func TestFramesThatWaitTogetherAreOneWrite(t *testing.T) {
	t.Parallel()
	m := newMS2(t, upgrade(read))
	var writes atomic.Int64
	l, connected, _ := run(t, m.url(), 0, func(l *Client) {
		l.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := l.dialer.DialContext(ctx, network, address)
			return tap{conn, &writes}, err
		}
	})
	next(t, connected)
	var want []string
	for _, n := range []int{1, 64, 1, 2} {
		var frames [][]byte
		for range n {
			frames = append(frames, fmt.Appendf(nil, "%d %s", len(want), strings.Repeat("x", 140)))
			want = append(want, "1 "+string(frames[len(frames)-1]))
		}
		before := writes.Load()
		if _, err := l.Send(frames...); err != nil {
			t.Fatal(err)
		}
		if got := writes.Load() - before; got != 1 {
			t.Errorf("%d frames: got %d writes, want 1", n, got)
		}
		// None waits for a frame that comes later.
		servicetest.Eventually(t, time.Minute, "the frames", func() bool { return len(m.got()) == len(want) })
	}
	if got := m.got(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDialsAgain(t *testing.T) {
	t.Parallel()
	drop := func(say func(c *gorilla.Conn)) serveFunc {
		return upgrade(func(_ *ms2, c *gorilla.Conn) { say(c) })
	}
	for name, c := range map[string]struct {
		first serveFunc
		last  uint64 // number of the second connection: one that failed has none
		want  []string
	}{
		"after a close frame": {drop(func(c *gorilla.Conn) {
			_ = c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(gorilla.ClosePolicyViolation, "session_id: got 0"))
		}), 2, []string{"connection to ms2: ", "close 1008", "session_id: got 0"}},
		"after an end without a word": {drop(func(c *gorilla.Conn) { _ = c.NetConn().Close() }), 2, []string{"connection to ms2: ", "unexpected EOF"}},
		"after a reset": {drop(func(c *gorilla.Conn) {
			_ = c.NetConn().(*net.TCPConn).SetLinger(0)
			_ = c.NetConn().Close()
		}), 2, []string{"connection to ms2: ", "connection reset by peer"}},
		"after bytes that are no frame": {drop(func(c *gorilla.Conn) { _, _ = c.NetConn().Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) }), 2,
			[]string{"connection to ms2: "}},
		"after a frame too large": {drop(func(c *gorilla.Conn) {
			_ = c.WriteMessage(gorilla.BinaryMessage, make([]byte, maxInbound+1))
			_, _, _ = c.ReadMessage()
		}), 2, []string{"connection to ms2: ", "read limit exceeded"}},
		"after a refusal": {refuse, 1, []string{"dial ws://", "bad handshake", `503 Service Unavailable: \"kafka is unavailable`}},
		"after an answer of no WebSocket": {func(_ *ms2, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, 1,
			[]string{"dial ws://", `200 OK: \"hello\"`}},
		"after an endless header": {func(_ *ms2, w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer c.Close()
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nX: "+strings.Repeat("x", 2*maxAnswer))
		}, 1, []string{"dial ws://", "expected the answer of MS2, found more than 65536 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMS2(t, c.first, upgrade(read))
			var log servicetest.Console
			l, connected, _ := run(t, m.url(), 0, func(l *Client) { l.log = zerolog.New(&log) })
			for want := range c.last {
				if n := next(t, connected); n != want+1 {
					t.Errorf("got connection %d, want %d", n, want+1)
				}
			}
			if n, err := l.Send([]byte("hello")); n != c.last || err != nil {
				t.Errorf("got connection %d, %v, want %d", n, err, c.last)
			}
			for _, want := range c.want {
				if !log.Has(want) {
					t.Errorf("the log has no %q:\n%s", want, &log)
				}
			}
		})
	}
	t.Run("after ends that are alike", func(t *testing.T) {
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) {
			_ = c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(4001, "no such tenant"))
		}))
		for silence, again := range map[time.Duration]bool{time.Minute: false, 70 * time.Millisecond: true} {
			var log servicetest.Console
			_, connected, stop := run(t, m.url(), silence, func(l *Client) { l.log = zerolog.New(&log) })
			for range 3 {
				next(t, connected)
			}
			stop()
			ends, begins := log.Count(`"not connected to ms2"`), log.Count(`"connected to ms2"`)
			if ends > 1 != again || !again && begins != 2 {
				t.Errorf("got %d ends and %d connections in the log, want another end after %s: %t\n%s", ends, begins, silence, again, &log)
			}
		}
	})
	t.Run("once somebody listens", func(t *testing.T) {
		l := listenAt(t, "127.0.0.1:0")
		address := l.Addr().String()
		l.Close()
		link, connected, _ := run(t, "ws://"+address+"/ws", 0)
		servicetest.Fails(t, time.Second, "connection refused", link.Ready)
		ms2At(t, listenAt(t, address), upgrade(read))
		next(t, connected)
	})
}

// TestRedialsFollowQuickly: after a restart of MS2, a pause between two attempts
// costs a session less than a second.
func TestRedialsFollowQuickly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		l := New("ws://ms2.test/ws", credentials.Access{}, zerolog.Nop())
		var last time.Time
		attempts := 0
		l.dial = func(context.Context, string, string) (net.Conn, error) {
			if pause := time.Since(last); attempts > 0 && pause > 600*time.Millisecond {
				t.Fatalf("attempt %d: got a pause of %s, want at most 600ms", attempts+1, pause)
			}
			last = time.Now()
			attempts++
			return nil, errors.New("connection refused")
		}
		if err := l.Run(ctx, func(uint64) {}); err != nil || attempts < 6000 {
			t.Errorf("got %d attempts and %v, want at least 6000 in an hour", attempts, err)
		}
	})
}

func TestEveryAddressOfTheNameIsTried(t *testing.T) {
	t.Parallel()
	falls := upgrade(func(*ms2, *gorilla.Conn) { <-t.Context().Done() }) // silent after it was connected
	for name, first := range map[string]serveFunc{"first answers nothing": nil, "first refuses": refuse, "first falls silent": falls} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			one := listenAt(t, "127.0.0.2:0")
			if first == nil {
				t.Cleanup(func() { one.Close() })
			} else {
				ms2At(t, one, first)
			}
			_, port, _ := net.SplitHostPort(one.Addr().String())
			second := make(chan struct{}, 100)
			ms2At(t, listenAt(t, "127.0.0.3:"+port), upgrade(func(m *ms2, c *gorilla.Conn) {
				second <- struct{}{}
				read(m, c)
			}))
			run(t, "ws://ms2.test:"+port+"/ws", 500*time.Millisecond, func(l *Client) {
				l.dialer.LookupHost = func(context.Context, string) ([]string, error) { return []string{"127.0.0.2", "127.0.0.3"}, nil }
			})
			servicetest.Receive(t, "a connection to the second address", second)
		})
	}
}

func TestWaitsLongerEachTime(t *testing.T) {
	// Five refusals, a connection that lives for longer than the silence, and
	// then the pauses start again.
	lives := upgrade(func(_ *ms2, c *gorilla.Conn) {
		for range 20 {
			_ = c.WriteControl(gorilla.PingMessage, nil, time.Now().Add(time.Second))
			time.Sleep(10 * time.Millisecond) // between two pings
		}
	})
	m := newMS2(t, refuse, refuse, refuse, refuse, refuse, lives, refuse)
	_, _, stop := run(t, m.url(), 100*time.Millisecond)
	servicetest.Eventually(t, time.Minute, "seven dials", func() bool { return len(m.dialled()) >= 7 })
	stop()
	at := m.dialled()
	for i, least := range []int{50, 100, 200, 250, 250} { // half of 100 ms, doubled each time up to 500 ms
		if gap := at[i+1].Sub(at[i]); gap < time.Duration(least-5)*time.Millisecond {
			t.Errorf("dial %d came after %s, expected at least %d ms", i+2, gap, least)
		}
	}
	if gap := at[4].Sub(at[3]); gap > time.Second {
		t.Errorf("the longest wait was %s, want at most 750 ms", gap)
	}
	if gap := at[6].Sub(at[5]); gap > 700*time.Millisecond {
		t.Errorf("after a good connection the dial came after %s, expected some 300 ms", gap)
	}
}

func TestSilence(t *testing.T) {
	const silence = 300 * time.Millisecond
	t.Run("of a peer that is gone without a word", func(t *testing.T) {
		t.Parallel()
		m := newMS2(t, upgrade(func(*ms2, *gorilla.Conn) { <-t.Context().Done() }))
		l, connected, _ := run(t, m.url(), silence)
		next(t, connected)
		began := time.Now()
		if n := next(t, connected); n != 2 {
			t.Errorf("got connection %d, want 2", n)
		}
		if took := time.Since(began); took < silence {
			t.Errorf("took it for dead after %s, expected %s", took, silence)
		}
		servicetest.Fails(t, time.Second, "timeout", l.Ready) // the second comes to the same end
	})
	t.Run("broken by pings", func(t *testing.T) {
		t.Parallel()
		pongs := make(chan string, 100)
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) {
			c.SetPongHandler(func(data string) error { pongs <- data; return nil })
			go func() {
				for i := range 30 {
					_ = c.WriteControl(gorilla.PingMessage, fmt.Append(nil, i), time.Now().Add(time.Second))
					time.Sleep(silence / 10) // between two pings
				}
			}()
			_, _, _ = c.ReadMessage()
		}))
		l, connected, _ := run(t, m.url(), silence)
		next(t, connected)
		for want := range 30 { // three times as long as the silence
			if got := <-pongs; got != fmt.Sprint(want) {
				t.Fatalf("got pong %q, want %d", got, want)
			}
		}
		if err := l.Ready(t.Context()); err != nil || len(m.dialled()) != 1 {
			t.Errorf("got %v and %d dials, want the first connection to stand", err, len(m.dialled()))
		}
	})
	t.Run("of a peer that only answers pings", func(t *testing.T) {
		t.Parallel()
		var pings atomic.Int64
		m := newMS2(t, upgrade(func(m *ms2, c *gorilla.Conn) {
			answer := c.PingHandler()
			c.SetPingHandler(func(data string) error {
				pings.Add(1)
				return answer(data)
			})
			read(m, c)
		}))
		l, connected, _ := run(t, m.url(), 2*silence)
		next(t, connected)
		servicetest.Eventually(t, 10*time.Second, "pings for longer than the silence", func() bool { return pings.Load() >= 3 })
		if err := l.Ready(t.Context()); err != nil || len(m.dialled()) != 1 {
			t.Errorf("got %v and %d dials, want the first connection to stand", err, len(m.dialled()))
		}
	})
	t.Run("broken by other frames", func(t *testing.T) {
		t.Parallel()
		m := newMS2(t, upgrade(func(m *ms2, c *gorilla.Conn) {
			for range 20 {
				_ = c.WriteMessage(gorilla.TextMessage, []byte("of no meaning"))
				time.Sleep(silence / 10) // between two frames
			}
			_ = c.WriteMessage(gorilla.CloseMessage, gorilla.FormatCloseMessage(gorilla.CloseGoingAway, "enough"))
		}))
		l, connected, _ := run(t, m.url(), silence)
		next(t, connected)
		servicetest.Fails(t, time.Second, "enough", l.Ready)
	})
	if l := New("ws://localhost", credentials.Access{}, zerolog.Nop()); l.silence != 6*time.Second {
		t.Errorf("got %s, want three pings of two seconds", l.silence)
	}
}

// flood sends until the link does not take any more, and returns what ends it.
func flood(t *testing.T, l *Client) (failed chan error) {
	t.Helper()
	var sent atomic.Int64
	failed = make(chan error, 1)
	go func() {
		frame := make([]byte, 64<<10)
		for {
			if _, err := l.Send(frame); err != nil {
				failed <- err
				return
			}
			sent.Add(1)
		}
	}()
	last, since := int64(-1), time.Now()
	servicetest.Eventually(t, time.Minute, "Send to block", func() bool {
		if n := sent.Load(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 200*time.Millisecond
	})
	select {
	case err := <-failed:
		t.Fatalf("sending ended: %v, expected it to wait", err)
	default:
	}
	return failed
}

func TestAPeerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	t.Run("holds up Send until its connection breaks", func(t *testing.T) {
		t.Parallel()
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) { <-release }), upgrade(read))
		l, connected, _ := run(t, m.url(), 0)
		next(t, connected)
		failed := flood(t, l)
		close(release) // the connection is closed with bytes unread, and so reset
		if err := servicetest.Receive(t, "the end of Send", failed); !strings.HasPrefix(err.Error(), "send to ms2: ") {
			t.Errorf("got %v, want one of sending", err)
		}
		if n := next(t, connected); n != 2 {
			t.Errorf("got connection %d, want 2", n)
		}
	})
	t.Run("and is silent besides", func(t *testing.T) {
		t.Parallel()
		end := make(chan struct{})
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) { <-end }))
		l, connected, stop := run(t, m.url(), 2*time.Second)
		next(t, connected)
		servicetest.Receive(t, "the end of Send", flood(t, l))
		close(end)
		stop()
	})
	t.Run("but pings keeps the connection", func(t *testing.T) {
		t.Parallel()
		const silence = 600 * time.Millisecond
		end := make(chan struct{})
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) {
			for {
				select {
				case <-end:
					return
				case <-time.After(silence / 6):
					_ = c.WriteControl(gorilla.PingMessage, nil, time.Now().Add(time.Second))
				}
			}
		}))
		l, connected, stop := run(t, m.url(), silence)
		next(t, connected)
		failed := flood(t, l)
		began := time.Now()
		servicetest.Eventually(t, time.Minute, "three silences", func() bool { return time.Since(began) > 3*silence })
		select {
		case err := <-failed:
			t.Errorf("got %v, want Send to wait", err)
		default:
		}
		if err := l.Ready(t.Context()); err != nil || len(m.dialled()) != 1 {
			t.Errorf("got %v and %d dials, want the first connection to stand", err, len(m.dialled()))
		}
		stop() // unblocks Send
		close(end)
		<-failed
	})
	t.Run("for a while gets pongs when it reads on", func(t *testing.T) {
		t.Parallel()
		reads, pongs := make(chan struct{}), make(chan string, 1)
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) {
			c.SetPongHandler(func(data string) error { pongs <- data; return nil })
			<-reads
			_ = c.WriteControl(gorilla.PingMessage, []byte("there?"), time.Now().Add(time.Second))
			for {
				if _, _, err := c.ReadMessage(); err != nil {
					return
				}
			}
		}))
		l, connected, stop := run(t, m.url(), 0)
		next(t, connected)
		failed := flood(t, l)
		close(reads) // frames are being written all the while
		if got := servicetest.Receive(t, "a pong", pongs); got != "there?" {
			t.Errorf("found pong %q", got)
		}
		stop()
		<-failed
	})
}

// A pong that waits for a busy MS2 must not break the connection.
func TestSlowPong(t *testing.T) {
	t.Parallel()
	m := newMS2(t, upgrade(func(m *ms2, c *gorilla.Conn) {
		_ = c.WriteControl(gorilla.PingMessage, nil, time.Now().Add(time.Second))
		read(m, c)
	}))
	l, connected, stop := run(t, m.url(), 0, func(l *Client) {
		l.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			server, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			ours, theirs := net.Pipe() // has no buffer
			go func() { _, _ = io.Copy(theirs, server) }()
			go func() {
				defer server.Close()
				handshake := make([]byte, 4096)
				n, _ := theirs.Read(handshake)
				_, _ = server.Write(handshake[:n])
				time.Sleep(1200 * time.Millisecond)
				_, _ = io.Copy(server, theirs)
			}()
			return ours, nil
		}
	})
	next(t, connected)
	if _, err := l.Send([]byte("message")); err != nil {
		t.Error(err)
	}
	servicetest.Eventually(t, time.Minute, "the message", func() bool { return slices.Contains(m.got(), "1 message") })
	stop()
}

func TestEnds(t *testing.T) {
	t.Parallel()
	t.Run("while it dials", func(t *testing.T) {
		l := listenAt(t, "127.0.0.1:0") // takes connections and sends nothing
		defer l.Close()
		_, connected, stop := run(t, "ws://"+l.Addr().String(), 0)
		conn, err := l.Accept()
		servicetest.NoError(t, err)
		defer conn.Close()
		began := time.Now()
		stop()
		if took := time.Since(began); took > time.Second || len(connected) != 0 {
			t.Errorf("took %s, expected no time at all", took)
		}
	})
	t.Run("while it waits to dial again", func(t *testing.T) {
		m := newMS2(t, refuse)
		l, _, stop := run(t, m.url(), 0)
		servicetest.Fails(t, time.Second, "503", l.Ready)
		stop()
	})
	t.Run("before it begins", func(t *testing.T) {
		m := newMS2(t, upgrade(read))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		l := New(m.url(), credentials.Access{}, zerolog.Nop())
		servicetest.NoError(t, l.Run(ctx, func(uint64) { t.Error("connected") }))
	})
	t.Run("with a peer that does not answer the goodbye", func(t *testing.T) {
		end := make(chan struct{})
		m := newMS2(t, upgrade(func(_ *ms2, c *gorilla.Conn) { <-end }))
		_, connected, stop := run(t, m.url(), 0)
		next(t, connected)
		began := time.Now()
		stop()
		close(end)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("took %s, expected no time at all", took)
		}
	})
}

// A wrong certificate or file is a clear error, and a connection follows as soon
// as it is right.
func TestTLSAndToken(t *testing.T) {
	t.Parallel()
	config, fail := credentialstest.New(t).Failing("127.0.0.1")
	upgraded := make(chan struct{}, 10)
	server := credentialstest.Serve(t, config, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer right" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		conn, err := (&gorilla.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		upgraded <- struct{}{}
		_, _, _ = conn.ReadMessage()
	})
	dir := t.TempDir()
	access := credentials.Access{CAFile: dir + "/ca.pem", TokenFile: dir + "/token"}
	servicetest.File(t, access.TokenFile, "wrong\n")
	url := "wss" + strings.TrimPrefix(server.URL, "https")
	l := New(url, access, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, func(uint64) {}) }()
	is := func(want string) {
		t.Helper()
		servicetest.Fails(t, time.Second, want, l.Ready)
	}
	fail("ms2", access.CAFile, server.Listener.Addr().String(), is)
	is(`ms2.token_file: must name a file with MS2's token, got "` + access.TokenFile + `" and 401 Unauthorized from ` + url)
	servicetest.File(t, access.TokenFile, "right\nwrong\n")
	is("ms2.token_file: must name a file with one line, got " + access.TokenFile + ", which has more")
	servicetest.File(t, access.TokenFile, "right\r\n")
	<-upgraded
	cancel()
	servicetest.NoError(t, <-done)
}

func TestTLSOnOneSide(t *testing.T) {
	plain, secure := httptest.NewServer(http.NotFoundHandler()), credentialstest.Serve(t, nil, http.NotFound)
	defer plain.Close()
	for url, want := range map[string]string{
		"wss://" + plain.Listener.Addr().String(): "ms2: expected TLS at " + plain.Listener.Addr().String() + ", found plain text",
		"ws://" + secure.Listener.Addr().String(): "ms2.url: dial ws://" + secure.Listener.Addr().String() + `: websocket: bad handshake: 400 Bad Request: "Client sent an HTTP request to an HTTPS server.\n"`,
	} {
		l := New(url, credentials.Access{}, zerolog.Nop())
		if err := l.connect(t.Context(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

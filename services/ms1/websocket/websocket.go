// Package websocket implements MS1's connection to MS2: one WebSocket that is
// redialled with backoff and jitter whenever it breaks. Addresses that have not
// failed lately come first. It carries messages one way. Only pings come back, and
// by them each side notices that the other is silent. An MS2 that sends none is
// pinged.
package websocket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/dial"
	"github.com/tricycle-relay/tricycle/lib/retry"
)

const (
	handshakeTimeout = 3 * time.Second
	firstRetry       = 100 * time.Millisecond
	// longestRetry is short: every message waits for the connection, and a
	// dial costs MS2 next to nothing.
	longestRetry = 500 * time.Millisecond
	// longestSilence is three of MS2's pings, one every 2 s.
	longestSilence = 6 * time.Second
	// goodbyeTimeout is how long a close frame may wait for a frame that is
	// being written. A missing one is harmless.
	goodbyeTimeout = time.Second
	// maxInbound bounds a frame of MS2, which has no meaning.
	maxInbound = 1024
	// maxAnswer bounds the answer to the handshake.
	maxAnswer = 64 << 10
)

// ErrNotConnected is the error of a send without a connection.
var ErrNotConnected = errors.New("not connected")

// Client keeps a connection to MS2.
type Client struct {
	url     string
	access  credentials.Access
	log     zerolog.Logger
	silence time.Duration // a connection without a frame for so long is dead
	quiet   bool          // no trouble was logged since the last connection was
	dialer  dial.Dialer
	dial    func(ctx context.Context, network, address string) (net.Conn, error)

	mu         sync.Mutex
	conn       *websocket.Conn // nil if there is none
	wire       *gathering      // under conn
	connection uint64          // its number, from 1
	trouble    error           // why there is none
}

// New returns a client of the WebSocket at url (ws: or wss:). It connects in Run,
// and reads the files of its access for each connection.
func New(url string, access credentials.Access, log zerolog.Logger) *Client {
	c := &Client{url: url, access: access, log: log, silence: longestSilence, trouble: ErrNotConnected}
	c.dialer.Handshake = access.Handshake("ms2", url)
	c.dial = c.dialer.DialContext
	return c
}

// Ready returns nil while there is a connection, else why there is none.
func (l *Client) Ready(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// Send writes each message as a text frame, all of them in one write to the
// connection, and returns the number of the connection that took them. It blocks
// while MS2 does not read, and fails if there is no connection or it breaks. One
// goroutine at a time may send.
func (l *Client) Send(messages ...[]byte) (connection uint64, err error) {
	l.mu.Lock()
	conn, wire, connection := l.conn, l.wire, l.connection
	l.mu.Unlock()
	if conn == nil {
		return 0, ErrNotConnected
	}
	for i, m := range messages {
		wire.more.Store(i < len(messages)-1)
		if err := conn.WriteMessage(websocket.TextMessage, m); err != nil {
			_ = conn.Close() // the reader notices
			return 0, fmt.Errorf("send to ms2: %w", err)
		}
	}
	return connection, nil
}

// gathering is a connection that keeps what is written while more follows, and
// writes it with the rest. Of concurrent writers, the WebSocket lets in one at a
// time.
type gathering struct {
	net.Conn
	more   atomic.Bool
	kept   []byte
	unread int // bytes that may still be read
}

// Read implements [net.Conn]. A server that is no MS2 may send without end what
// the handshake takes for a header.
func (g *gathering) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if g.unread -= n; g.unread < 0 {
		return 0, fmt.Errorf("expected the answer of MS2, found more than %d bytes", maxAnswer)
	}
	return n, err
}

// Write implements [net.Conn].
func (g *gathering) Write(p []byte) (int, error) {
	if !g.more.Load() && len(g.kept) == 0 {
		return g.Conn.Write(p)
	}
	g.kept = append(g.kept, p...)
	if g.more.Load() {
		return len(p), nil
	}
	_, err := g.Conn.Write(g.kept)
	g.kept = g.kept[:0]
	return len(p), err
}

// Run keeps a connection until ctx is cancelled, and calls connected with the
// number of each new one.
func (l *Client) Run(ctx context.Context, connected func(connection uint64)) error {
	pause := retry.Backoff{First: firstRetry, Most: longestRetry}
	logged, last := "", time.Time{}
	for {
		began := time.Now()
		err := l.connect(ctx, connected)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > l.silence {
			pause.Reset() // it was a good connection
			logged = ""
		}
		if text := err.Error(); text != logged || l.quiet && time.Since(last) > l.silence {
			l.log.Warn().Err(err).Str("url", l.url).Msg("not connected to ms2")
			logged, last, l.quiet = text, time.Now(), false
		}
		_ = pause.Wait(ctx) // its end is noticed above
	}
}

// connect dials and reads until the connection is gone. Its error is never nil.
func (l *Client) connect(ctx context.Context, connected func(uint64)) (err error) {
	remote := "" // address of the connection
	wire := &gathering{unread: maxAnswer}
	defer func() {
		if remote != "" { // whatever was wrong there, another address may work
			l.dialer.Avoid(remote)
		}
		l.mu.Lock()
		l.conn, l.trouble = nil, err
		l.mu.Unlock()
	}()
	// The dialer heeds ctx while it connects, not in the handshake.
	handshaken := func() bool { return true }
	dial := func(dialing context.Context, network, address string) (net.Conn, error) {
		conn, err := l.dial(dialing, network, address)
		if err != nil {
			return nil, err
		}
		remote = conn.RemoteAddr().String()
		handshaken = context.AfterFunc(ctx, func() { _ = conn.Close() })
		wire.Conn = conn
		return wire, nil
	}
	header := http.Header{}
	if err := l.access.Token("ms2").Set(header); err != nil {
		return err
	}
	dialer := websocket.Dialer{HandshakeTimeout: handshakeTimeout, NetDialContext: dial, NetDialTLSContext: dial}
	conn, resp, err := dialer.DialContext(ctx, l.url, header) //nolint:bodyclose // gorilla has read it and leaves nothing open
	handshaken()
	if err != nil {
		if resp != nil && resp.StatusCode == http.StatusUnauthorized {
			return fmt.Errorf("ms2.token_file: must name a file with MS2's token, got %q and %s from %s", l.access.TokenFile, resp.Status, l.url)
		}
		if resp != nil { // of a server that expects TLS, for example, or of an MS2 without Kafka
			text, _ := io.ReadAll(resp.Body) // gorilla leaves the first kilobyte
			return fmt.Errorf("ms2.url: dial %s: %w: %s: %.150q", l.url, err, resp.Status, text)
		}
		return fmt.Errorf("dial %s: %w", l.url, err)
	}
	wire.unread = math.MaxInt
	defer conn.Close()
	defer context.AfterFunc(ctx, func() {
		goodbye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
		_ = conn.WriteControl(websocket.CloseMessage, goodbye, time.Now().Add(goodbyeTimeout)) // a courtesy
		_ = conn.Close()
	})()

	var writing atomic.Bool
	write := func(kind int, data string) {
		if writing.CompareAndSwap(false, true) {
			// Without a deadline, since a frame that is cut off breaks the
			// connection. Reading goes on, and notices when MS2 is gone.
			go func() {
				defer writing.Store(false)
				_ = conn.WriteControl(kind, []byte(data), time.Time{})
			}()
		}
	}
	pinging := time.AfterFunc(l.silence/2, func() { write(websocket.PingMessage, "") })
	defer pinging.Stop()
	alive := func() error {
		pinging.Reset(l.silence / 2)
		return conn.SetReadDeadline(time.Now().Add(l.silence))
	}
	conn.SetReadLimit(maxInbound)
	conn.SetPongHandler(func(string) error { return alive() })
	conn.SetPingHandler(func(data string) error {
		write(websocket.PongMessage, data)
		return alive()
	})

	l.mu.Lock()
	l.connection++
	number := l.connection
	l.conn, l.wire, l.trouble = conn, wire, nil
	l.mu.Unlock()
	if !l.quiet {
		l.log.Info().Str("url", l.url).Uint64("connection", number).Msg("connected to ms2")
		l.quiet = true
	}
	connected(number)

	err = alive()
	for err == nil {
		if _, _, err = conn.NextReader(); err == nil {
			err = alive()
		}
	}
	return fmt.Errorf("connection to ms2: %w", err)
}

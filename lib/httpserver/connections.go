package httpserver

import (
	"bytes"
	"container/list"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	// MaxConnections is the limit of connections of a server: those of an MS3
	// with all its workers, and others. An idle one uses about 20 KiB.
	MaxConnections = 1280
	// AnswerTimeout is how long a client may take to read an answer, counted
	// from its first byte.
	AnswerTimeout = 10 * time.Second
	// readBuffer and writeBuffer are the sizes in bytes of the kernel's buffers of
	// a connection; Linux doubles them. By default, they grow to megabytes for a
	// client that does not read. Loopback has segments of 64 KiB: if only one fits
	// into the buffer, each waits 40 ms for its delayed acknowledgement.
	readBuffer  = 32 << 10
	writeBuffer = 64 << 10
)

// connections is a listener with a limited number of connections. At the limit,
// a new connection replaces the one that has been idle longest, and waits while
// none is idle. Hijacked connections do not count.
type connections struct {
	net.Listener
	limit         int
	answerTimeout time.Duration
	log           zerolog.Logger

	mu      sync.Mutex
	changed *sync.Cond // a connection is closed or waits, or the listener is closed
	open    map[net.Conn]*list.Element
	waiting *list.List // of net.Conn, the one that has waited longest first
	closed  bool
}

func newConnections(l net.Listener, limit int, log zerolog.Logger) *connections {
	c := &connections{Listener: l, limit: limit, answerTimeout: AnswerTimeout, log: log, open: map[net.Conn]*list.Element{}, waiting: list.New()}
	c.changed = sync.NewCond(&c.mu)
	return c
}

// Accept implements [net.Listener].
func (c *connections) Accept() (net.Conn, error) {
	plain, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if tcp, ok := plain.(*net.TCPConn); ok { // an error comes back from Read or Write
		_ = tcp.SetReadBuffer(readBuffer)
		_ = tcp.SetWriteBuffer(writeBuffer)
	}
	conn := &connection{Conn: plain, timeout: c.answerTimeout}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.open) >= c.limit && !c.closed {
		oldest := c.waiting.Front()
		c.log.Warn().Int("limit", c.limit).Bool("idle_closed", oldest != nil).Msg("connection limit reached")
		if oldest == nil {
			c.changed.Wait()
			continue
		}
		idle := oldest.Value.(net.Conn)
		c.remove(idle)
		_ = idle.Close()
	}
	if c.closed {
		_ = plain.Close()
		return nil, net.ErrClosed
	}
	c.open[conn] = nil
	return conn, nil
}

// Close implements [net.Listener].
func (c *connections) Close() error {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	return c.Listener.Close()
}

// remove forgets a connection.
func (c *connections) remove(conn net.Conn) {
	if e := c.open[conn]; e != nil {
		c.waiting.Remove(e)
	}
	delete(c.open, conn)
	c.changed.Broadcast()
}

// state is [http.Server.ConnState].
func (c *connections) state(conn net.Conn, state http.ConnState) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.open[conn]
	if !ok { // closed by Accept
		return
	}
	switch state {
	case http.StateNew, http.StateIdle:
		conn.(*connection).rearm()
		c.open[conn] = c.waiting.PushBack(conn)
		c.changed.Broadcast()
	case http.StateActive:
		conn.(*connection).rearm() // a TLS handshake has written
		if e != nil {
			c.waiting.Remove(e)
			c.open[conn] = nil
		}
	case http.StateHijacked:
		conn.(*connection).armed.Store(true) // the new owner sets deadlines
		c.remove(conn)
	case http.StateClosed:
		c.remove(conn)
	}
}

// connection is a connection whose answers have a deadline. It turns the errors
// that net/http answers in plain text into problem details.
type connection struct {
	net.Conn
	timeout time.Duration // for the client to read an answer
	armed   atomic.Bool   // the deadline of this answer is set
}

// rearm prepares for the answer to the next request.
func (c *connection) rearm() {
	_ = c.SetWriteDeadline(time.Time{}) // an error comes back from Write
	c.armed.Store(false)
}

// Write implements [net.Conn].
func (c *connection) Write(p []byte) (int, error) {
	if c.armed.CompareAndSwap(false, true) {
		if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
			return 0, err
		}
		if problem := plainError(p); problem != nil {
			if _, err := c.Conn.Write(problem); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
	return c.Conn.Write(p)
}

// Abort ends an answer whose rest cannot be written, so that the client notices.
// It does not return, unless the request is of HTTP/1.0, as from some proxies:
// such an answer ends with its connection (RFC 9112, 6.3), which is reset.
func Abort(w http.ResponseWriter, r *http.Request) {
	if r.ProtoAtLeast(1, 1) {
		panic(http.ErrAbortHandler)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn() // which does not tell the client of an orderly end
	}
	if c, ok := conn.(*connection); ok {
		conn = c.Conn
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // an error comes back from Close
	}
	_ = conn.Close()
}

// CloseWrite is used by net/http to let a client that is still sending read its
// answer.
func (c *connection) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// plainError returns problem details for an answer of net/http to a request that
// it does not hand to a handler, or nil for other answers.
func plainError(p []byte) []byte {
	head, text, _ := bytes.Cut(p, []byte("\r\n\r\n"))
	line, header, _ := bytes.Cut(head, []byte("\r\n"))
	version, status, _ := bytes.Cut(line, []byte(" "))
	switch {
	case string(version) != "HTTP/1.1" || len(status) < 3:
		return nil
	case string(header) == "Content-Type: text/plain; charset=utf-8\r\nConnection: close":
	case bytes.HasPrefix(status, []byte("417")): // to an unknown Expect, without a body
		text = status
	default:
		return nil
	}
	code, err := strconv.Atoi(string(status[:3]))
	if err != nil {
		return nil
	}
	detail := "request: " + string(bytes.TrimSpace(bytes.TrimPrefix(text, status[:3])))
	body, _ := Problem{Status: code, Detail: detail}.MarshalJSON() // without extensions it cannot fail
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Type: %s\r\n\r\n%s\n",
		code, http.StatusText(code), ProblemType, body)
}

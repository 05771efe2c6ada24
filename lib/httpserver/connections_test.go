package httpserver_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
)

// client is a connection on which nothing is made canonical.
type client struct {
	net.Conn
	r *bufio.Reader
}

func connect(t *testing.T, address string) client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	return client{conn, bufio.NewReader(conn)}
}

// get makes a request and returns the body of the answer.
func (c client) get(path string) (string, error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

func ok(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }

// clients returns n connections, each of which has got the answer.
func clients(t *testing.T, n int, address, path, answer string) (all []client) {
	t.Helper()
	for i := range n {
		c := connect(t, address)
		if got, err := c.get(path); err != nil || got != answer {
			t.Fatalf("connection %d: got %q, %v, want %q", i, got, err, answer)
		}
		all = append(all, c)
	}
	return all
}

func TestIdleConnectionsGiveWay(t *testing.T) {
	const extra = 100
	address, _ := serve(t, ok, zerolog.Nop())
	// The server may notice neighbours' idleness in another order.
	closed, last := 0, 0
	for i, c := range clients(t, httpserver.MaxConnections+extra, address, "/", "ok") {
		if got, err := c.get("/"); err != nil {
			closed, last = closed+1, i
		} else if got != "ok" {
			t.Errorf("connection %d: got %q, want ok", i, got)
		}
	}
	if closed != extra || last > 2*extra {
		t.Errorf("got %d connections closed, up to the one numbered %d, want the %d that were idle longest", closed, last, extra)
	}
}

// Idle clients must not take every file that the process may open.
func TestFilesAreLeftForOthers(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files) })
	few := files
	few.Cur = 300
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, ok, zerolog.Nop())
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	const all, want = 200, 200 - 300/2
	closed := 0
	for _, c := range clients(t, all, address, "/", "ok") {
		if _, err := c.get("/"); err != nil {
			closed++
		}
	}
	if closed != want {
		t.Errorf("got %d of %d connections closed, want the %d beyond half of the files", closed, all, want)
	}
}

func TestSilentConnectionsGiveWay(t *testing.T) {
	address, _ := serve(t, ok, zerolog.Nop())
	for range 2 * httpserver.MaxConnections { // none sends anything
		connect(t, address)
	}
	if got, err := connect(t, address).get("/"); err != nil || got != "ok" {
		t.Errorf("got %q, %v, want an answer", got, err)
	}
}

func TestBusyConnectionsAreKept(t *testing.T) {
	arrived, finish := make(chan struct{}), make(chan struct{})
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-finish
		fmt.Fprint(w, "ok")
	}, zerolog.Nop())
	answers := make(chan error, httpserver.MaxConnections+1)
	request := func() {
		c := connect(t, address)
		go func() {
			got, err := c.get("/")
			if err == nil && got != "ok" {
				err = fmt.Errorf("got %q, want ok", got)
			}
			answers <- err
		}()
	}
	for range httpserver.MaxConnections {
		request()
		<-arrived
	}
	request() // waits for one of the others
	select {
	case <-arrived:
		close(finish)
		t.Fatal("more requests are served than connections are allowed")
	case <-time.After(100 * time.Millisecond):
	}
	finish <- struct{}{}
	if err := <-answers; err != nil {
		t.Error(err)
	}
	<-arrived
	close(finish)
	for range httpserver.MaxConnections {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

func TestStopsWhileConnectionsWait(t *testing.T) {
	arrived := make(chan struct{})
	address, stop := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	}, zerolog.Nop())
	for range httpserver.MaxConnections {
		fmt.Fprint(connect(t, address), "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		<-arrived
	}
	connect(t, address)
	if took, err := stop(); err != nil || took > 5*time.Second {
		t.Errorf("took %s, %v, want about a second", took, err)
	}
}

func TestHijackedConnectionsDoNotCount(t *testing.T) {
	address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hijack" {
			fmt.Fprint(w, "ok")
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		_, _ = io.Copy(conn, conn) // until the client leaves
	}, zerolog.Nop())
	hijacked := clients(t, httpserver.MaxConnections+1, address, "/hijack", "hi")
	if got, err := connect(t, address).get("/"); err != nil || got != "ok" {
		t.Errorf("got %q, %v, want an answer", got, err)
	}
	fmt.Fprint(hijacked[0], "x")
	if got, err := hijacked[0].r.ReadByte(); err != nil || got != 'x' {
		t.Errorf("got %q, %v, want the first connection still open", got, err)
	}
	for _, c := range hijacked {
		c.Close()
	}
}

func TestClientsThatDoNotRead(t *testing.T) {
	t.Parallel()
	type outcome struct {
		bytes int
		err   error
	}
	ended := make(chan outcome, 1)
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		var o outcome
		for o.err == nil && o.bytes < 64<<20 {
			var n int
			n, o.err = w.Write(make([]byte, 4<<10))
			o.bytes += n
		}
		select {
		case ended <- o:
		default: // a later request of the same connection
		}
	}, zerolog.Nop())
	c := connect(t, address)
	_ = c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	fmt.Fprint(c, strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 10))
	select {
	case o := <-ended:
		if !errors.Is(o.err, os.ErrDeadlineExceeded) || o.bytes > 1<<20 {
			t.Errorf("got %d bytes and %v, want a deadline after at most 1 MiB", o.bytes, o.err)
		}
	case <-time.After(10 * answerTimeout):
		t.Error("the answer is held indefinitely")
	}
}

// A client of the same machine gets a large answer in the time for one: its
// segments do not wait for delayed acknowledgements.
func TestLargeAnswersArrive(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	address, _ := serveWithin(t, httpserver.AnswerTimeout, credentials.Pair{}, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, size)) }, zerolog.Nop())
	if got, err := connect(t, address).get("/"); err != nil || len(got) != size {
		t.Errorf("got %d bytes, %v, want %d", len(got), err, size)
	}
}

// The time for an answer is not used up by the handler, or by the answer before.
func TestLateAnswersArrive(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			time.Sleep(answerTimeout + answerTimeout/2) // a time that the server must not count
		}
		fmt.Fprint(w, "ok")
	}, zerolog.Nop())
	c := connect(t, address)
	for _, path := range []string{"/", "/late", "/"} {
		if got, err := c.get(path); err != nil || got != "ok" {
			t.Errorf("%s: got %q, %v, want an answer", path, got, err)
		}
	}
}

func TestUnreadableRequestsGetProblems(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "of the handler", http.StatusBadRequest)
	}, zerolog.Nop())
	for name, c := range map[string]struct {
		request string
		status  int
		detail  string
	}{
		"no request line":       {"hello\r\n\r\n", 400, "request: Bad Request"},
		"a bad version":         {"GET / HTTP/x\r\n\r\n", 400, "request: Bad Request"},
		"an unknown version":    {"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, "request: HTTP Version Not Supported: unsupported protocol version"},
		"a bad target":          {"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "request: Bad Request"},
		"no Host":               {"GET / HTTP/1.1\r\n\r\n", 400, "request: Bad Request: missing required Host header"},
		"two Hosts":             {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "request: Bad Request"},
		"a bad Host":            {"GET / HTTP/1.1\r\nHost: <x>\r\n\r\n", 400, "request: Bad Request: malformed Host header"},
		"a bad header":          {"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, "request: Bad Request"},
		"large headers":         {"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 21<<10) + "\r\n\r\n", 431, "request: Request Header Fields Too Large"},
		"another encoding":      {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: br\r\n\r\n", 501, "request: Unsupported transfer encoding"},
		"another Expect":        {"GET / HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n", 417, "request: Expectation Failed"},
		"about the server":      {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""},
		"two lengths":           {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "request: Bad Request"},
		"an answer of its own":  {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, ""},
		"after another request": {"GET / HTTP/1.1\r\nHost: x\r\n\r\nhello\r\n\r\n", 400, "request: Bad Request"},
	} {
		t.Run(name, func(t *testing.T) {
			client := connect(t, address)
			fmt.Fprint(client, c.request)
			if name == "after another request" {
				resp, err := http.ReadResponse(client.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			resp, err := http.ReadResponse(client.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if c.detail == "" {
				if string(text) != "of the handler\n" || resp.StatusCode != c.status {
					t.Errorf("got %s %q, want the handler's", resp.Status, text)
				}
				return
			}
			var problem struct {
				Detail string
				Status int
			}
			if err := errors.Join(err, json.Unmarshal(text, &problem)); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if resp.StatusCode != c.status || problem.Status != c.status || resp.Header.Get("Content-Type") != httpserver.ProblemType {
				t.Errorf("got %s, %s of status %d, want a problem of status %d", resp.Status, resp.Header.Get("Content-Type"), problem.Status, c.status)
			}
			if !strings.HasPrefix(problem.Detail, c.detail) {
				t.Errorf("got the detail %q, want %q", problem.Detail, c.detail)
			}
		})
	}
}

package dial_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/dial"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen accepts connections at ip, on a free port if port is "0". It sends
// greeting on each, or nothing if that is empty.
func listen(t *testing.T, ip, port, greeting string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, port))
	if err != nil {
		t.Skipf("needs several loopback addresses: %v", err)
	}
	var accepted []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted = append(accepted, c)
			_, _ = io.WriteString(c, greeting)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range accepted {
			_ = c.Close()
		}
	})
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

func names(hosts map[string][]string) *dial.Dialer {
	return &dial.Dialer{LookupHost: func(_ context.Context, host string) ([]string, error) {
		if ips, ok := hosts[host]; ok {
			return slices.Clone(ips), nil
		}
		return nil, errors.New("no such host: " + host)
	}}
}

// greeting dials and returns the IP address that was dialed and the first byte
// received, "" if there was none for a moment.
func greeting(t *testing.T, d *dial.Dialer, address string) (ip, text string) {
	t.Helper()
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	b := make([]byte, 1)
	n, _ := c.Read(b)
	ip, _, _ = net.SplitHostPort(c.RemoteAddr().String())
	return ip, string(b[:n])
}

func TestAnAddressThatAnswersNothingIsTriedLast(t *testing.T) {
	port := listen(t, "127.0.0.2", "0", "")
	listen(t, "127.0.0.3", port, "")
	listen(t, "127.0.0.4", port, "x")
	d := names(map[string][]string{"name": {"127.0.0.2", "127.0.0.3", "127.0.0.4"}})
	var got []string
	for range 5 {
		ip, text := greeting(t, d, "name:"+port)
		got = append(got, ip+text)
	}
	if want := []string{"127.0.0.2", "127.0.0.3", "127.0.0.4x", "127.0.0.4x", "127.0.0.4x"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAListIsTriedLikeTheAddressesOfAName(t *testing.T) {
	mute, good := listen(t, "127.0.0.1", "0", ""), listen(t, "127.0.0.1", "0", "x")
	d := names(map[string][]string{"a": {"127.0.0.1"}, "b": {"127.0.0.1"}})
	list := "unknown:1 a:" + mute + " b:" + good
	if _, text := greeting(t, d, list); text != "" {
		t.Errorf("got %q, want the mute one first", text)
	}
	if _, text := greeting(t, d, list); text != "x" {
		t.Error("the list was not walked on")
	}
}

// Docker's name server takes longer than a client waits for the name of a
// container that is gone, if its network leads nowhere else.
func TestANameThatIsNotResolvedIsTriedLast(t *testing.T) {
	t.Parallel()
	port := listen(t, "127.0.0.2", "0", "x")
	var asked atomic.Int64
	d := &dial.Dialer{LookupHost: func(ctx context.Context, host string) ([]string, error) {
		if host == "gone" && asked.Add(1) < 3 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return []string{"127.0.0.2"}, nil
	}}
	reach := func(address string, lookups int64) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if n := asked.Load(); n != lookups {
			t.Errorf("%s: asked for the name %d times, want %d", address, n, lookups)
		}
	}
	reach("gone:"+port+" here:"+port, 1)
	reach("gone:"+port+" here:"+port, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := d.DialContext(ctx, "tcp", "here:1 gone:1"); err == nil || asked.Load() != 2 {
		t.Errorf("got %v after %d lookups, want the name to be asked for again when the other address fails", err, asked.Load())
	}
	reach("gone:"+port, 3) // it is back
	reach("gone:"+port+" here:"+port, 4)
}

func TestARefusalIsFollowedByTheNextAddress(t *testing.T) {
	port := listen(t, "127.0.0.3", "0", "x")
	d := names(map[string][]string{"name": {"127.0.0.2", "127.0.0.3"}})
	if ip, text := greeting(t, d, "name:"+port); ip != "127.0.0.3" || text != "x" {
		t.Errorf("got %s %q, want the second address", ip, text)
	}
	_, err := names(map[string][]string{"name": {"127.0.0.2", "127.0.0.4"}}).DialContext(t.Context(), "tcp", "name:"+port)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.2:") || !strings.Contains(err.Error(), "127.0.0.4:") {
		t.Errorf("got %v, want the errors of both addresses", err)
	}
	if _, err := d.DialContext(t.Context(), "tcp", "other:"+port); err == nil || !strings.Contains(err.Error(), "no such host: other") {
		t.Errorf("got %v, want the resolver's error", err)
	}
	if _, err := d.DialContext(t.Context(), "tcp", "name"); err == nil || !strings.Contains(err.Error(), "missing port") {
		t.Errorf("got %v, want an error of the address", err)
	}
}

func TestAvoid(t *testing.T) {
	port := listen(t, "127.0.0.2", "0", "x")
	listen(t, "127.0.0.3", port, "x")
	d := names(map[string][]string{"name": {"127.0.0.2", "127.0.0.3"}})
	for _, want := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.2"} {
		ip, _ := greeting(t, d, "name:"+port)
		if ip != want {
			t.Errorf("got %s, want %s", ip, want)
		}
		d.Avoid(net.JoinHostPort(ip, port))
	}
}

// The usual caller: it knows nothing of addresses and only tries again.
func TestAnHTTPClientReachesTheSecondAddress(t *testing.T) {
	t.Parallel()
	port := listen(t, "127.0.0.2", "0", "")
	l, err := net.Listen("tcp", "127.0.0.3:"+port)
	if err != nil {
		t.Skipf("needs the same port on another loopback address: %v", err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.NotFoundHandler()}}
	server.Start()
	defer server.Close()
	d := names(map[string][]string{"ms1": {"127.0.0.2", "127.0.0.3"}})
	client := &http.Client{Timeout: 1500 * time.Millisecond, Transport: &http.Transport{DialContext: d.DialContext}}
	defer client.CloseIdleConnections()
	if _, err := client.Get("http://ms1:" + port); err == nil {
		t.Fatal("the first address answered")
	}
	resp, err := client.Get("http://ms1:" + port)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// A connection that its user gives up at once proves nothing about the peer.
func TestTheUsersHasteIsNoFailure(t *testing.T) {
	port := listen(t, "127.0.0.2", "0", "x")
	listen(t, "127.0.0.3", port, "")
	d := names(map[string][]string{"name": {"127.0.0.2", "127.0.0.3"}})
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialContext(cancelled, "tcp", "name:"+port); err == nil || strings.Contains(err.Error(), "127.0.0.3") {
		t.Errorf("got %v, want the walk to end with its context", err)
	}
	if c, err := d.DialContext(t.Context(), "tcp", "name:"+port); err == nil {
		_ = c.Close()
	}
	if ip, text := greeting(t, d, "name:"+port); ip != "127.0.0.2" || text != "x" {
		t.Errorf("got %s %q, want the first address", ip, text)
	}
}

// Several connections are opened at once, so the order of the attempts changes.
func TestARepeatedFailureHasTheSameText(t *testing.T) {
	t.Parallel()
	var d dial.Dialer
	const list = "127.0.0.1:1 127.0.0.1:2"
	_, first := d.DialContext(t.Context(), "tcp", list)
	d.Avoid("127.0.0.1:1")
	_, second := d.DialContext(t.Context(), "tcp", list)
	if first == nil || second == nil || first.Error() != second.Error() {
		t.Errorf("got %v, then %v", first, second)
	}
}

// Package relaytest passes TCP connections on to a server in tests. A test can
// delay what they carry, lead them to another server, or disturb them.
package relaytest

import (
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Relay passes connections on to a server. It ends with its test.
type Relay struct {
	Address string        // host:port for clients
	Delay   time.Duration // of each byte; set before the first connection

	mu      sync.Mutex
	target  string
	cut     string // strikes connections whose first request contains it; "*" is all
	silent  bool   // they are silenced, not closed
	links   []*link
	running sync.WaitGroup
}

// link is a connection and its continuation.
type link struct {
	client, server net.Conn
	request        string      // the first bytes of the client
	silent         atomic.Bool // bytes vanish, and neither side learns of the other's end
}

// New returns a relay that listens on the address, host:port, and leads to the
// target. With an empty target it accepts connections and answers nothing.
func New(t testing.TB, address, target string) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Address: l.Addr().String(), target: target}
	accepting := make(chan struct{})
	go func() {
		defer close(accepting)
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			r.connect(client)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-accepting
		for _, k := range r.all() {
			k.close()
		}
		r.running.Wait()
	})
	return r
}

// To leads new connections to another target.
func (r *Relay) To(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
}

// Silence makes the open connections carry nothing any more.
func (r *Relay) Silence() {
	for _, k := range r.all() {
		k.silent.Store(true)
	}
}

// Abandon closes the clients' side of the open connections. The server does not
// learn of it.
func (r *Relay) Abandon() {
	r.Silence()
	for _, k := range r.all() {
		k.client.Close()
	}
}

// Interrupt closes or silences, for a while, open and new connections whose first
// request contains the text; "*" stands for any. Silenced ones stay so.
func (r *Relay) Interrupt(text string, silent bool, d time.Duration) {
	set := func(cut string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.cut, r.silent = cut, silent
		for _, k := range r.links {
			r.strike(k)
		}
	}
	set(text)
	time.Sleep(d)
	set("")
}

func (r *Relay) all() []*link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links
}

func (r *Relay) connect(client net.Conn) {
	r.mu.Lock()
	target := r.target
	r.mu.Unlock()
	k := &link{client: client}
	if target == "" {
		k.silent.Store(true)
	} else {
		var err error
		if k.server, err = net.Dial("tcp", target); err != nil {
			client.Close()
			return
		}
		r.running.Go(func() { r.carry(k, k.server, client) })
	}
	r.mu.Lock()
	r.links = append(r.links, k)
	r.mu.Unlock()
	r.running.Go(func() { r.carry(k, client, k.server) })
}

func (k *link) close() {
	k.client.Close()
	if k.server != nil {
		k.server.Close()
	}
}

// carry copies bytes from one side to the other until the first ends.
func (r *Relay) carry(k *link, from, to net.Conn) {
	type chunk struct {
		due  time.Time
		data []byte
	}
	chunks := make(chan chunk, 4096)
	r.running.Go(func() {
		for c := range chunks {
			time.Sleep(time.Until(c.due))
			_, _ = to.Write(c.data) // if it fails, so does the reading end
		}
		if !k.silent.Load() {
			to.Close()
		}
	})
	defer close(chunks)
	defer from.Close()
	for {
		data := make([]byte, 32<<10)
		n, err := from.Read(data)
		r.mu.Lock()
		if from == k.client && k.request == "" {
			k.request = string(data[:n])
		}
		r.strike(k)
		r.mu.Unlock()
		if err != nil {
			return
		}
		if !k.silent.Load() {
			chunks <- chunk{time.Now().Add(r.Delay), data[:n]}
		}
	}
}

// strike disturbs a connection if it is to be. The caller holds the mutex.
func (r *Relay) strike(k *link) {
	switch hit := r.cut == "*" || r.cut != "" && strings.Contains(k.request, r.cut); {
	case hit && r.silent:
		k.silent.Store(true)
	case hit:
		k.close()
	}
}

// Package dial opens TCP connections to names that have several addresses. It
// avoids an address that accepts connections and then answers nothing, as long as
// another address is available.
//
// A program that retries only has to use the same [Dialer] each time: the address
// that failed last is tried last.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// timeout is for one address to accept a connection.
const timeout = 3 * time.Second

// Dialer dials every address of a name. The zero value is ready to use. A
// Dialer may be used by several goroutines and must not be copied.
type Dialer struct {
	// LookupHost returns the addresses of a host;
	// [net.DefaultResolver.LookupHost] if it is nil.
	LookupHost func(ctx context.Context, host string) ([]string, error)

	mu     sync.Mutex
	failed map[string]time.Time // by IP address and port: the time of the last failure
}

// DialContext connects to address, one host:port or several that are separated
// by spaces, all of which serve the same purpose. It tries each IP address of
// each host for 3 s at most, those without a failure first, then those whose
// failure is longest ago. A failure is a connection that cannot be opened, one
// that fails, or is closed after a second, before the peer has sent a byte, and
// what [Dialer.Avoid] is told.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	candidates, err := d.candidates(ctx, address)
	for i, candidate := range candidates {
		limit := timeout
		if deadline, ok := ctx.Deadline(); ok { // leave time for the others
			limit = min(limit, time.Until(deadline)/time.Duration(len(candidates)-i))
		}
		c, cause := (&net.Dialer{Timeout: max(limit, 1)}).DialContext(ctx, network, candidate)
		if cause == nil {
			return &conn{Conn: c, dialer: d, address: candidate, opened: time.Now()}, nil
		}
		if ctx.Err() == nil { // else it is not the address's fault
			d.Avoid(candidate)
		}
		if err != nil {
			cause = fmt.Errorf("%w; %w", err, cause)
		}
		if err = cause; ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// candidates returns the IP addresses with their ports in the order to try
// them. The error is of the hosts that could not be resolved, nil if there is
// none.
func (d *Dialer) candidates(ctx context.Context, address string) (found []string, err error) {
	lookup := d.LookupHost
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	for _, a := range strings.Fields(address) {
		host, port, cause := net.SplitHostPort(a)
		if cause == nil {
			var ips []string
			if ips, cause = lookup(ctx, host); cause == nil {
				for _, ip := range ips {
					found = append(found, net.JoinHostPort(ip, port))
				}
				continue
			}
		}
		if err != nil {
			cause = fmt.Errorf("%w; %w", err, cause)
		}
		err = cause
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	slices.SortStableFunc(found, func(a, b string) int { return d.failed[a].Compare(d.failed[b]) })
	return found, err
}

// Avoid makes an IP address with port, as [net.Conn.RemoteAddr] has it, the
// last one to be tried, until the peer there sends a byte on a connection that
// is opened later.
func (d *Dialer) Avoid(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	const most = 1024 // a name can have ever new addresses
	if d.failed == nil || len(d.failed) == most {
		d.failed = map[string]time.Time{}
	}
	d.failed[address] = time.Now()
}

func (d *Dialer) answered(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failed, address)
}

// patience is how long a peer may be silent on a connection that its user
// closes without the peer being to blame.
const patience = time.Second

// conn notes whether the peer sends anything.
type conn struct {
	net.Conn
	dialer   *Dialer
	address  string
	opened   time.Time
	answered atomic.Bool
	failed   atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	switch {
	case c.answered.Load():
	case n > 0:
		if !c.answered.Swap(true) {
			c.dialer.answered(c.address)
		}
	case err != nil && !errors.Is(err, net.ErrClosed):
		c.fail()
	}
	return n, err
}

func (c *conn) Close() error {
	if !c.answered.Load() && time.Since(c.opened) > patience {
		c.fail()
	}
	return c.Conn.Close()
}

func (c *conn) fail() {
	if !c.failed.Swap(true) {
		c.dialer.Avoid(c.address)
	}
}

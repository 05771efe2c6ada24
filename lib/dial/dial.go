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

// Dialer dials every address of a name. The zero value is ready to use, by
// several goroutines. A Dialer must not be copied.
type Dialer struct {
	// LookupHost returns the addresses of a host;
	// [net.DefaultResolver.LookupHost] if it is nil.
	LookupHost func(ctx context.Context, host string) ([]string, error)
	// Handshake makes a connection to the host a secure one, within the 3 s of
	// the address. An error is a failure of the address. Nil for plain TCP.
	Handshake func(ctx context.Context, conn net.Conn, host string) (net.Conn, error)

	mu     sync.Mutex
	failed map[string]time.Time // last failure, by IP address and port or, of its lookup, by host
}

// DialContext connects to address: one host:port, or several equivalent ones
// separated by spaces. It tries each IP address of each host for at most 3 s:
// first those without a failure, then those whose failure is oldest. A host
// whose lookup failed, or took more than 3 s, is tried after the others. An address
// fails if no connection to it can be opened, or if one fails, or is closed
// after a second, before the peer has sent a byte. [Dialer.Avoid] reports other
// failures.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, _, err := d.dial(ctx, network, address)
	return c, err
}

// Until returns a function that dials as [Dialer.DialContext] does and closes
// the connections when owner ends.
func (d *Dialer) Until(owner context.Context) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := owner.Err(); err != nil { // AfterFunc may be later than the connection
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(owner, cancel)()
		secure, c, err := d.dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c.forget = context.AfterFunc(owner, func() { _ = c.close() })
		return secure, nil
	}
}

// dial returns a connection for the caller, and the TCP connection below it.
func (d *Dialer) dial(ctx context.Context, network, address string) (net.Conn, *conn, error) {
	groups, err := d.groups(address)
	errs := []error{err}
	for n, group := range groups {
		later := len(groups) - 1 - n
		lookups, cancel := ctx, context.CancelFunc(func() {})
		if len(groups) > 1 || len(group) > 1 { // leave time for the other hosts
			lookups, cancel = context.WithTimeout(ctx, share(ctx, 2+later))
		}
		candidates, cause := d.candidates(lookups, group)
		cancel()
		errs = append(errs, cause)
		for i, candidate := range candidates {
			limited, cancel := context.WithTimeout(ctx, share(ctx, len(candidates)-i+later))
			secure, c, cause := d.try(limited, network, candidate)
			cancel()
			if cause == nil {
				return secure, c, nil
			}
			errs = append(errs, cause)
			if ctx.Err() != nil { // not a failure of the address
				return nil, nil, join(errs...)
			}
			d.Avoid(candidate.address)
		}
	}
	return nil, nil, join(errs...)
}

// share returns the time for the first of n attempts.
func share(ctx context.Context, n int) time.Duration {
	limit := timeout
	if deadline, ok := ctx.Deadline(); ok { // leave time for the others
		limit = min(limit, time.Until(deadline)/time.Duration(n))
	}
	return max(limit, 1)
}

func (d *Dialer) try(ctx context.Context, network string, to candidate) (net.Conn, *conn, error) {
	tcp, err := (&net.Dialer{}).DialContext(ctx, network, to.address)
	if err != nil {
		return nil, nil, err
	}
	c := &conn{Conn: tcp, dialer: d, address: to.address, opened: time.Now(), forget: func() bool { return true }}
	if d.Handshake == nil {
		return c, c, nil
	}
	secure, err := d.Handshake(ctx, c, to.host)
	if err != nil {
		_ = tcp.Close()
		return nil, nil, err
	}
	return secure, c, nil
}

// join returns the errors that are not nil as one on one line. It sorts them: the order
// of the attempts changes, so that a repeated error would look new in the log.
func join(errs ...error) (joined error) {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	for i, err := range errs {
		if i > 0 {
			err = fmt.Errorf("%w, %w", joined, err)
		}
		joined = err
	}
	return joined
}

// host is a host and a port of it.
type host struct{ name, port string }

// candidate is an IP address with port, and the name of its host.
type candidate struct{ address, host string }

// groups returns the hosts of address: first those to be looked up together,
// then those whose last lookup has failed. A name server may take longer than
// the caller has to tell that it does not know a host.
func (d *Dialer) groups(address string) (groups [][]host, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var known, unknown []host
	for _, a := range strings.Fields(address) {
		name, port, cause := net.SplitHostPort(a)
		_, failed := d.failed[name]
		switch {
		case cause != nil:
			err = join(err, cause)
		case failed:
			unknown = append(unknown, host{name, port})
		default:
			known = append(known, host{name, port})
		}
	}
	return slices.DeleteFunc([][]host{known, unknown}, func(group []host) bool { return len(group) == 0 }), err
}

// candidates returns the addresses of a group in the order of attempts, and the
// errors of the hosts that cannot be resolved.
func (d *Dialer) candidates(ctx context.Context, group []host) (found []candidate, err error) {
	lookup := d.LookupHost
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	ips, causes := make([][]string, len(group)), make([]error, len(group))
	var all sync.WaitGroup
	for i, h := range group {
		all.Go(func() { ips[i], causes[i] = lookup(ctx, h.name) })
	}
	all.Wait()
	for i, h := range group {
		if err = join(err, causes[i]); causes[i] == nil {
			d.answered(h.name)
		} else if !errors.Is(context.Cause(ctx), context.Canceled) {
			d.Avoid(h.name)
		}
		for _, ip := range ips[i] {
			found = append(found, candidate{net.JoinHostPort(ip, h.port), h.name})
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	slices.SortStableFunc(found, func(a, b candidate) int { return d.failed[a.address].Compare(d.failed[b.address]) })
	return found, err
}

// Avoid makes an IP address with port, as in [net.Conn.RemoteAddr], the last one
// to be tried, until the peer sends a byte on a later connection.
func (d *Dialer) Avoid(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	const most = 1024 // the addresses of a name can change without end
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

// patience is how long a peer may be silent on a connection before closing it
// counts as a failure of the peer.
const patience = time.Second

// conn tells its dialer whether the peer has answered.
type conn struct {
	net.Conn
	dialer   *Dialer
	address  string
	opened   time.Time
	forget   func() bool // stops waiting for the end of the owner
	answered atomic.Bool
	failed   atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		var op *net.OpError // in here it is not allocated for every read
		if errors.As(err, &op) {
			op.Source = nil // has another port each time: a repeated error would look new in the log
		}
	}
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
	c.forget()
	return c.close()
}

func (c *conn) close() error {
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

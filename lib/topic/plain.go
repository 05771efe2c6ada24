package topic

import (
	"fmt"
	"net"
)

// plainConn is a connection without TLS. It detects a broker that expects TLS,
// which answers with a TLS alert, the size of a huge response, or closes the
// connection.
type plainConn struct {
	net.Conn
	answered bool // used by the one reader of the connection
}

// Read implements [net.Conn].
func (c *plainConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.answered {
		return n, err
	}
	c.answered = n > 0
	switch {
	case n >= 2 && p[0] == 21 && p[1] == 3:
		return 0, fmt.Errorf("kafka.tls.enabled: must be true for %s, got false", c.RemoteAddr())
	case n == 0 && Torn(err):
		// Without %w: kafka-go replaces an io.EOF by another error.
		return 0, fmt.Errorf("no answer from %s with kafka.tls.enabled false: %s", c.RemoteAddr(), err.Error())
	}
	return n, err
}

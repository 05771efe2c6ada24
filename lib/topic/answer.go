package topic

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/dial"
)

// maxFirstAnswer is far above the first response of a broker on a connection, and
// far below the size that the first four bytes of a text make.
const maxFirstAnswer = 16 << 20

// answerConn is a connection that examines the first answer. A server that is no
// Kafka broker makes kafka-go decode its text as a response, which takes one
// processor and memory without limit. A broker that expects TLS answers plain text
// with a TLS alert, or closes the connection. So does one that has too many.
type answerConn struct {
	net.Conn
	dialer *dial.Dialer
	secure bool   // by TLS
	first  []byte // of the answer, at most four; used by the one reader of the connection
}

// examined returns a handshake that examines the first answer on a connection
// after the handshake with TLS, if any.
func (c Config) examined(dialer *dial.Dialer) credentials.Handshake {
	secure := c.TLS.Handshake("kafka.tls", c.TLS.ServerName)
	return func(ctx context.Context, conn net.Conn, host string) (_ net.Conn, err error) {
		if c.TLS.Enabled {
			if conn, err = secure(ctx, conn, host); err != nil {
				return nil, err
			}
		}
		return &answerConn{Conn: conn, dialer: dialer, secure: c.TLS.Enabled}, nil
	}
}

// Read implements [net.Conn].
func (c *answerConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if len(c.first) == 4 {
		return n, err
	}
	c.first = append(c.first, p[:min(n, 4-len(c.first))]...)
	switch got := len(c.first); {
	case got == 0 && !c.secure && Torn(err):
		// Without %w: kafka-go replaces an io.EOF by another error.
		return 0, fmt.Errorf("no answer from %s with kafka.tls.enabled false, or above its max.connections: %s", c.RemoteAddr(), err.Error())
	case got >= 2 && !c.secure && c.first[0] == 21 && c.first[1] == 3:
		err = fmt.Errorf("kafka.tls.enabled: must be true for %s, got false", c.RemoteAddr())
	case got == 4 && binary.BigEndian.Uint32(c.first) > maxFirstAnswer:
		err = fmt.Errorf("kafka.brokers, or advertised.listeners of a broker: expected a Kafka broker at %s, found an answer that begins %q", c.RemoteAddr(), c.first)
	default:
		return n, err
	}
	c.dialer.Avoid(c.RemoteAddr().String())
	return 0, err
}

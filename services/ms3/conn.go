package ms3

import (
	"context"
	"net"
	"time"
)

// patience is added to the deadlines that kafka-go sets.
const patience = 5 * time.Second

// patientConn extends the deadlines of kafka-go. Its MaxWait is both the
// deadline of a whole fetch and the time that the broker may wait for records,
// so on a slow link every fetch would time out and its connection be dropped.
type patientConn struct{ net.Conn }

func (c patientConn) SetReadDeadline(t time.Time) error {
	return c.Conn.SetReadDeadline(extend(t))
}

func (c patientConn) SetWriteDeadline(t time.Time) error {
	return c.Conn.SetWriteDeadline(extend(t))
}

func extend(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(patience)
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// patient returns a dialFunc whose connections are patient.
func patient(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return patientConn{conn}, nil
	}
}

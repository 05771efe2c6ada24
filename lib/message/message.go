// Package message defines the message that the three services exchange: its five
// fields, the key that identifies it, and its only encoding.
//
// On the wire a message is a JSON object with exactly these members, encoded
// in this order:
//
//	{"session_id":7,
//	 "service1_timestamp":"2026-11-23T10:15:30.123456Z",
//	 "service2_timestamp":null,
//	 "service3_timestamp":null,
//	 "end_timestamp":null}
//
// A stamp is RFC 3339 in UTC with exactly six fractional digits, the resolution
// of MariaDB's DATETIME(6). A stamp that is not yet set is null. Each service sets
// one stamp, in order, so the number of stamps tells how far a message has come.
// A receiver passes the number that it requires to [Decode], which accepts
// nothing else. Unknown, repeated or missing members, other types, trailing bytes
// and other notations of a time are errors.
package message

import (
	"strconv"
	"time"
)

// MaxBytes is the size of the largest encoding a receiver looks at. A message
// takes about 230 bytes; the rest is room for white space.
const MaxBytes = 4096

// Layout is the notation of a stamp, for [time.Time.Format] on a UTC time.
const Layout = "2006-01-02T15:04:05.000000Z"

// Stamp is an instant in microseconds since 1970-01-01T00:00:00Z. The zero
// Stamp means 'not set'; a set one lies between 1970-01-01T00:00:00.000001Z
// and 9999-12-31T23:59:59.999999Z.
type Stamp int64

// latest is the last instant that four digits of a year, and MariaDB's
// DATETIME, can hold.
const latest = Stamp(253402300799999999)

// StampOf returns t as a Stamp, cut to whole microseconds.
func StampOf(t time.Time) Stamp { return Stamp(t.UnixMicro()) }

// Time returns the stamp as a UTC time, or the zero time if it is not set.
func (s Stamp) Time() time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(s)).UTC()
}

// String returns the stamp as on the wire, or "null".
func (s Stamp) String() string {
	return string(s.append(make([]byte, 0, len(Layout))))
}

// Sub returns s-t. It is negative if s is before t, as clocks of two machines
// may have it. Like [time.Time.Sub] it ends at the longest Duration, 292 years:
// a wrong clock must not turn its sign.
func (s Stamp) Sub(t Stamp) time.Duration { return s.Time().Sub(t.Time()) }

// Key identifies a message among all messages ever sent.
type Key struct {
	SessionID int64
	Service1  Stamp
}

// String returns the key as "session_id/service1_timestamp", the latter as on
// the wire. It is the key of the Kafka record too.
func (k Key) String() string {
	return string(k.Append(make([]byte, 0, 48)))
}

// Append appends what [Key.String] returns to b and returns the extended
// buffer.
func (k Key) Append(b []byte) []byte {
	b = append(strconv.AppendInt(b, k.SessionID, 10), '/')
	return k.Service1.append(b)
}

// Message is one message on its round.
type Message struct {
	SessionID int64 // the interaction that the message belongs to; positive
	Service1  Stamp // set by MS1 when it makes the message
	Service2  Stamp // set by MS2 when it reads the message
	Service3  Stamp // set by MS3 when it fetches the record
	End       Stamp // set by MS1 when it takes the message back
}

// Key returns what identifies the message.
func (m Message) Key() Key { return Key{SessionID: m.SessionID, Service1: m.Service1} }

// Encode returns the message as on the wire. It is the inverse of [Decode].
func (m Message) Encode() []byte { return m.Append(make([]byte, 0, encodedBytes)) }

// encodedBytes is room for any message with valid stamps.
const encodedBytes = 256

// Append appends what [Message.Encode] returns to b and returns the extended
// buffer. It does not allocate if b has room for 256 bytes.
func (m Message) Append(b []byte) []byte {
	b = append(b, separators[0]...)
	b = strconv.AppendInt(b, m.SessionID, 10)
	for i, s := range [...]Stamp{m.Service1, m.Service2, m.Service3, m.End} {
		b = s.encode(append(b, separators[i+1]...))
	}
	return append(b, '}')
}

// Hops are the times between neighbouring stamps of a message that has come
// round, and the whole round. Each is negative where the clocks of two
// machines differ by more than the hop took.
type Hops struct {
	ToMS2, ToMS3, ToMS1, Round time.Duration
}

// Hops returns the hops of a message with all four stamps set.
func (m Message) Hops() Hops {
	return Hops{
		ToMS2: m.Service2.Sub(m.Service1),
		ToMS3: m.Service3.Sub(m.Service2),
		ToMS1: m.End.Sub(m.Service3),
		Round: m.End.Sub(m.Service1),
	}
}

// MarshalJSON encodes a set stamp as a string and one not set as null.
func (s Stamp) MarshalJSON() ([]byte, error) { return s.encode(nil), nil }

// encode appends what [Stamp.MarshalJSON] returns.
func (s Stamp) encode(b []byte) []byte {
	if s == 0 {
		return append(b, null...)
	}
	return append(s.append(append(b, '"')), '"')
}

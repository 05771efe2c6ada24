package message

import (
	"bytes"
	"strconv"
	"time"
)

// The encoding that [Message.Append] writes is nearly all that receivers see,
// so it has a decoder and an encoder of its own that work on bytes and do not
// allocate. Whatever else a sender may write takes the general path.

// stampBytes is the length of an encoded stamp with its quotes.
const stampBytes = len(Layout) + 2

// decodeCanonical decodes data if it is, byte for byte, what Append writes for
// a message at the stage. Otherwise it reports false and decides nothing: the
// data may still be valid.
func decodeCanonical(data []byte, stage Stage) (m Message, ok bool) {
	rest, ok := bytes.CutPrefix(data, separators[0])
	if !ok {
		return m, false
	}
	end := max(bytes.IndexByte(rest, ','), 0)
	id, err := strconv.ParseInt(string(rest[:end]), 10, 64)
	if err != nil || rest[0] < '1' { // zero or a sign
		return m, false
	}
	m.SessionID, rest = id, rest[end:]
	for i := 1; i < len(fields); i++ {
		if rest, ok = bytes.CutPrefix(rest, separators[i]); !ok {
			return m, false
		}
		if i > int(stage) {
			if rest, ok = bytes.CutPrefix(rest, null); !ok {
				return m, false
			}
			continue
		}
		if len(rest) < stampBytes || rest[0] != '"' || rest[stampBytes-1] != '"' {
			return m, false
		}
		s := parseStamp(rest[1 : stampBytes-1])
		if s == 0 {
			return m, false
		}
		*m.stamp(i) = s
		rest = rest[stampBytes:]
	}
	return m, len(rest) == 1 && rest[0] == '}'
}

// separators stand between the value of the field before and that of field i.
var separators = [len(fields)][]byte{
	[]byte(`{"session_id":`), []byte(`,"service1_timestamp":`), []byte(`,"service2_timestamp":`), []byte(`,"service3_timestamp":`), []byte(`,"end_timestamp":`),
}

var null = []byte("null")

// parseStamp parses a stamp of the length of [Layout]. It returns 0 for anything
// else, and for an instant that is no valid Stamp.
func parseStamp(b []byte) Stamp {
	var t time.Time
	// UnmarshalText takes a decimal comma, an hour of one digit and other zones as well.
	if b[len(time.DateTime)] != '.' || b[len(b)-1] != 'Z' || t.UnmarshalText(b) != nil {
		return 0
	}
	return max(StampOf(t), 0) // not before 1970
}

// append appends the stamp as on the wire, without quotes.
func (s Stamp) append(b []byte) []byte {
	if s == 0 {
		return append(b, null...)
	}
	t := s.Time()
	b = t.AppendFormat(b, time.RFC3339) // much faster than Layout
	b = append(b[:len(b)-1], ".000000Z"...)
	for i, micros := len(b)-2, t.Nanosecond()/1000; micros > 0; i, micros = i-1, micros/10 {
		b[i] += byte(micros % 10)
	}
	return b
}

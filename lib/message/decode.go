package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Stage is the number of stamps of a message where it is received.
type Stage int

// The stages of a round.
const (
	AtMS2   Stage = 1 // as MS2 receives it from the WebSocket
	AtMS3   Stage = 2 // as MS3 receives it from the topic
	AtStore Stage = 3 // as MS1 receives it on POST /store
	Stored  Stage = 4 // as in the database
)

// fields are the members of the object in the order they are encoded.
var fields = [...]string{"session_id", "service1_timestamp", "service2_timestamp", "service3_timestamp", "end_timestamp"}

// Error is an error in an encoded message.
type Error struct {
	Field    string // member of the object, or "message" for the whole
	Found    string
	Expected string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s: expected %s, found %s", e.Field, e.Expected, e.Found)
}

// Decode reads a message that must be at the given stage: its first stamps are
// set, the others null. Members may be in any order, with white space between
// them. Every error is an [*Error]. The encoding of [Message.Encode] is decoded
// without allocation.
func Decode(data []byte, stage Stage) (Message, error) {
	if m, ok := decodeCanonical(data, stage); ok {
		return m, nil
	}
	return decodeAny(data, stage)
}

// decodeAny is the general decoder.
func decodeAny(data []byte, stage Stage) (Message, error) {
	if len(data) > MaxBytes {
		return Message{}, &Error{"message", fmt.Sprintf("%d bytes", len(data)), fmt.Sprintf("at most %d", MaxBytes)}
	}
	var m Message
	var seen [len(fields)]bool

	// json.Unmarshal ignores case and repeated members. Read tokens instead.
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if tok, err := dec.Token(); errors.Is(err, io.EOF) {
		return Message{}, &Error{"message", "nothing", "a JSON object"}
	} else if err != nil {
		return Message{}, syntax(err)
	} else if tok != json.Delim('{') {
		return Message{}, &Error{"message", kind(tok), "a JSON object"}
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return Message{}, syntax(err)
		}
		name, _ := tok.(string)
		i := slices.Index(fields[:], name)
		if i < 0 {
			return Message{}, &Error{unknown(name), "an unknown field", "one of the five fields of a message"}
		}
		if seen[i] {
			return Message{}, &Error{name, "it twice", "the field once"}
		}
		seen[i] = true
		value, err := dec.Token()
		if err != nil {
			return Message{}, syntax(err)
		}
		if i == 0 {
			m.SessionID, err = sessionID(value)
		} else {
			*m.stamp(i), err = stamp(fields[i], value)
		}
		if err != nil {
			return Message{}, err
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return Message{}, syntax(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Message{}, &Error{"message", "more bytes", "nothing after the object"}
	}
	for i, ok := range seen {
		if !ok {
			return Message{}, &Error{fields[i], "no such field", "all five fields, null for a stamp not yet set"}
		}
	}
	for i := 1; i < len(fields); i++ {
		switch set := *m.stamp(i) != 0; {
		case i <= int(stage) && !set:
			return Message{}, &Error{fields[i], "null", "a time, set before this stage"}
		case i > int(stage) && set:
			return Message{}, &Error{fields[i], m.stamp(i).String(), "null before this stage"}
		}
	}
	return m, nil
}

func (m *Message) stamp(field int) *Stamp {
	return [...]*Stamp{1: &m.Service1, 2: &m.Service2, 3: &m.Service3, 4: &m.End}[field]
}

func sessionID(tok json.Token) (int64, error) {
	const expected = "an integer from 1 to 9223372036854775807, without fraction or exponent"
	n, ok := tok.(json.Number)
	if !ok {
		return 0, &Error{fields[0], kind(tok), expected}
	}
	id, err := strconv.ParseInt(n.String(), 10, 64)
	if err != nil || id <= 0 {
		return 0, &Error{fields[0], excerpt(n.String()), expected}
	}
	return id, nil
}

func stamp(field string, tok json.Token) (Stamp, error) {
	const expected = "null or a UTC time such as 2026-11-23T10:15:30.123456Z"
	if tok == nil {
		return 0, nil
	}
	s, ok := tok.(string)
	if !ok {
		return 0, &Error{field, kind(tok), expected}
	}
	t, err := time.Parse(Layout, s)
	// Parse accepts a decimal comma and an hour of one digit.
	if err != nil || t.Format(Layout) != s {
		return 0, &Error{field, quote(s), expected}
	}
	st := StampOf(t)
	if st <= 0 || st > latest {
		return 0, &Error{field, s, "a time after 1970-01-01T00:00:00.000000Z"}
	}
	return st, nil
}

// kind names the type of a JSON value for an error.
func kind(tok json.Token) string {
	switch v := tok.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "the number " + excerpt(v.String())
	case string:
		return "the string " + quote(v)
	}
	if tok == json.Delim('[') {
		return "an array"
	}
	return "an object"
}

// most is the number of bytes of a value in an error.
const most = 40

// excerpt returns at most [most] bytes of s: an error has to fit into a WebSocket
// close frame (RFC 6455, 5.5: 123 bytes).
func excerpt(s string) string { return shorten(s, len(s)) }

// quote is excerpt for any text, quoted. It cuts after quoting, since a quoted
// control character takes up to ten bytes.
func quote(s string) string { return shorten(strconv.Quote(s), len(s)) }

func shorten(text string, size int) string {
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(text[:most], ""), size)
}

// unknown returns the name of an unknown field, quoted unless it is plain text.
func unknown(name string) string {
	if q := strconv.Quote(name); name == "" || q != `"`+name+`"` {
		return quote(name)
	}
	return excerpt(name)
}

func syntax(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{"message", "the end of the text inside the object", "a JSON object"}
	}
	return &Error{"message", err.Error(), "a JSON object"}
}

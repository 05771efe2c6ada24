package message_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// second reads a message in another way: encoding/json with its own idea of a
// struct. It folds the case of names and takes repeated ones, so it may take
// more than Decode, never less and never something else.
func second(data []byte) (message.Message, error) {
	var w struct {
		Session  *int64  `json:"session_id"`
		Service1 *string `json:"service1_timestamp"`
		Service2 *string `json:"service2_timestamp"`
		Service3 *string `json:"service3_timestamp"`
		End      *string `json:"end_timestamp"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return message.Message{}, err
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return message.Message{}, errors.New("more than one value")
	}
	if w.Session == nil {
		return message.Message{}, errors.New("no session")
	}
	m := message.Message{SessionID: *w.Session}
	for text, into := range map[*string]*message.Stamp{w.Service1: &m.Service1, w.Service2: &m.Service2, w.Service3: &m.Service3, w.End: &m.End} {
		if text == nil {
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, *text)
		if err != nil {
			return message.Message{}, err
		}
		*into = message.Stamp(t.Unix()*1e6 + int64(t.Nanosecond())/1e3)
	}
	return m, nil
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		object(quoted(ts1)),
		object(quoted(ts1), quoted(ts2)),
		object(quoted(ts1), quoted(ts2), quoted(ts3)),
		object(quoted(ts1), quoted(ts2), quoted(ts3), quoted(ts4)),
		"", "{}", "[]", "null", `{"session_id":0}`, `{"a":[[{}]]}`, "\ufeff{}",
		strings.Replace(object(quoted(ts1)), "session_id", `\u0073ession_id`, 1),
		strings.Replace(object(quoted(ts1)), ",", ",,", 1),
		object(`"2026-11-23T10:15:30,123456Z"`), object(`"\ud800\n"`), object("1e400"),
	} {
		for stage := message.AtMS2; stage <= message.Stored; stage++ {
			f.Add([]byte(seed), int(stage))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		stage := message.Stage(1 + (n&3+4)&3)
		m, err := message.Decode(data, stage)
		if err != nil {
			var wrong *message.Error
			if !errors.As(err, &wrong) || wrong.Field == "" {
				t.Fatalf("got %#v, want an Error that names a field", err)
			}
			tidy(t, err)
			return
		}
		if m.SessionID < 1 {
			t.Errorf("took session %d", m.SessionID)
		}
		again, err := message.Decode(m.Encode(), stage)
		if err != nil || again != m {
			t.Errorf("%q was taken as %+v, which comes back as %+v, %v", data, m, again, err)
		}
		other, err := second(data)
		if err != nil || other != m {
			t.Errorf("%q was taken as %+v, a second reading is %+v, %v", data, m, other, err)
		}
	})
}

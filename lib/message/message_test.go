package message_test

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/tricycle-relay/tricycle/lib/message"
)

const (
	ts1 = "2026-11-23T10:15:30.123456Z"
	ts2 = "2026-11-23T10:15:30.123999Z"
	ts3 = "2026-11-23T10:15:30.124000Z"
	ts4 = "2026-11-23T10:15:31.000000Z"
)

func at(t *testing.T, text string) message.Stamp {
	t.Helper()
	when, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return message.StampOf(when)
}

// object returns a message of session 7 whose stamps are the given JSON texts.
func object(stamps ...string) string {
	text := `{"session_id":7`
	for i, name := range []string{"service1", "service2", "service3", "end"} {
		value := "null"
		if i < len(stamps) {
			value = stamps[i]
		}
		text += `,"` + name + `_timestamp":` + value
	}
	return text + "}"
}

func quoted(s string) string { return `"` + s + `"` }

func TestEncode(t *testing.T) {
	m := message.Message{SessionID: 7}
	for i, c := range []struct {
		next       *message.Stamp
		text, want string
	}{
		{&m.Service1, ts1, `{"session_id":7,"service1_timestamp":"2026-11-23T10:15:30.123456Z","service2_timestamp":null,"service3_timestamp":null,"end_timestamp":null}`},
		{&m.Service2, ts2, `{"session_id":7,"service1_timestamp":"2026-11-23T10:15:30.123456Z","service2_timestamp":"2026-11-23T10:15:30.123999Z","service3_timestamp":null,"end_timestamp":null}`},
		{&m.Service3, ts3, `{"session_id":7,"service1_timestamp":"2026-11-23T10:15:30.123456Z","service2_timestamp":"2026-11-23T10:15:30.123999Z","service3_timestamp":"2026-11-23T10:15:30.124000Z","end_timestamp":null}`},
		{&m.End, ts4, `{"session_id":7,"service1_timestamp":"2026-11-23T10:15:30.123456Z","service2_timestamp":"2026-11-23T10:15:30.123999Z","service3_timestamp":"2026-11-23T10:15:30.124000Z","end_timestamp":"2026-11-23T10:15:31.000000Z"}`},
	} {
		*c.next = at(t, c.text)
		if got := string(m.Encode()); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		back, err := message.Decode(m.Encode(), message.AtMS2+message.Stage(i))
		if err != nil || back != m {
			t.Errorf("decoded to %+v, %v, want %+v", back, err, m)
		}
	}
}

// taken is a message that MS2 takes.
type taken struct {
	text string
	want message.Message
}

func allTaken(t *testing.T) map[string]taken {
	t.Helper()
	first := message.Message{SessionID: 7, Service1: at(t, ts1)}
	with := func(change func(*message.Message)) message.Message {
		m := first
		change(&m)
		return m
	}
	return map[string]taken{
		"the fields in another order": {`{"end_timestamp":null,"service3_timestamp":null,"service1_timestamp":"` + ts1 + `","session_id":7,"service2_timestamp":null}`, first},
		"white space everywhere":      {" \t\r\n" + strings.NewReplacer("10:15:30", "10:15:30", ":", " : ", ",", "\n,\t").Replace(object(quoted(ts1))) + "\n \t", first},
		"escapes that spell a field":  {strings.Replace(object(quoted(ts1)), `"session_id"`, `"\u0073ession\u005fid"`, 1), first},
		"escapes that spell a stamp":  {strings.Replace(object(quoted(ts1)), "2026-", `\u0032026\u002d`, 1), first},
		"the largest session":         {strings.Replace(object(quoted(ts1)), ":7,", ":9223372036854775807,", 1), with(func(m *message.Message) { m.SessionID = math.MaxInt64 })},
		"the smallest session":        {strings.Replace(object(quoted(ts1)), ":7,", ":1,", 1), with(func(m *message.Message) { m.SessionID = 1 })},
		"the first stamp there is":    {object(`"1970-01-01T00:00:00.000001Z"`), with(func(m *message.Message) { m.Service1 = 1 })},
		"the last stamp there is":     {object(`"9999-12-31T23:59:59.999999Z"`), with(func(m *message.Message) { m.Service1 = 253402300799999999 })},
		"a leap day":                  {object(`"2028-02-29T23:59:59.999999Z"`), with(func(m *message.Message) { m.Service1 = at(t, "2028-02-29T23:59:59.999999Z") })},
		"4096 bytes":                  {object(quoted(ts1)) + strings.Repeat(" ", message.MaxBytes-len(object(quoted(ts1)))), first},
	}
}

func TestDecodeTakes(t *testing.T) {
	for name, c := range allTaken(t) {
		t.Run(name, func(t *testing.T) {
			got, err := message.Decode([]byte(c.text), message.AtMS2)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
			again, err := message.Decode(got.Encode(), message.AtMS2)
			if err != nil || again != got {
				t.Errorf("once more: got %+v, %v", again, err)
			}
		})
	}
}

// refused is what MS2 does not take.
type refused struct {
	text  string
	field string
	found string // part of the error
}

func allRefused() map[string]refused {
	good := object(quoted(ts1))
	session := func(value string) string { return strings.Replace(good, ":7,", ":"+value+",", 1) }
	insert := func(member string) string { return strings.Replace(good, "{", "{"+member+",", 1) }
	return map[string]refused{
		"nothing":                          {"", "message", "found nothing"},
		"white space":                      {" \n", "message", "found nothing"},
		"null":                             {"null", "message", "found null"},
		"a number":                         {"1", "message", "the number 1"},
		"a string":                         {quoted(ts1), "message", `the string "2026-`},
		"true":                             {"true", "message", "a boolean"},
		"an array":                         {"[" + good + "]", "message", "an array"},
		"not JSON":                         {"hello", "message", "invalid character 'h'"},
		"half an object":                   {good[:len(good)/2], "message", "the end of the text"},
		"an object without its end":        {good[:len(good)-1], "message", "the end of the text"},
		"an array's end":                   {good[:len(good)-1] + "]", "message", "invalid character ']'"},
		"a byte too many":                  {good + "x", "message", "more bytes"},
		"a NUL after it":                   {good + "\x00", "message", "more bytes"},
		"a brace too many":                 {good + "}", "message", "more bytes"},
		"a second object":                  {good + "\n" + good, "message", "more bytes"},
		"a byte order mark":                {"\ufeff" + good, "message", "invalid character"},
		"4097 bytes":                       {good + strings.Repeat(" ", message.MaxBytes+1-len(good)), "message", "4097 bytes"},
		"no comma":                         {strings.Replace(good, ",", " ", 1), "message", "invalid character '\"'"},
		"no comma after a number":          {strings.Replace(good, "7,", "7", 1), "message", "invalid character '\"'"},
		"two commas":                       {strings.Replace(good, ",", ",,", 1), "message", "invalid character ','"},
		"a leading comma":                  {strings.Replace(good, "{", "{,", 1), "message", "invalid character ','"},
		"a trailing comma":                 {good[:len(good)-1] + ",}", "message", "invalid character '}'"},
		"no colon":                         {strings.Replace(good, ":7", " 7", 1), "message", "invalid character '7'"},
		"two colons":                       {strings.Replace(good, ":7", "::7", 1), "message", "invalid character ':'"},
		"a comma for the colon":            {strings.Replace(good, ":7", ",7", 1), "message", "invalid character ','"},
		"a key without value":              {`{"session_id"}`, "message", "invalid character '}'"},
		"a key without value after colon":  {`{"session_id":}`, "message", "invalid character '}'"},
		"a number as key":                  {strings.Replace(good, `"session_id"`, "1", 1), "message", "invalid character '1'"},
		"null as key":                      {strings.Replace(good, `"session_id"`, "null", 1), "message", "invalid character 'n'"},
		"a key without quotes":             {strings.Replace(good, `"session_id"`, "session_id", 1), "message", "invalid character 's'"},
		"an object as key":                 {strings.Replace(good, `"session_id"`, "{}", 1), "message", "invalid character '{'"},
		"single quotes":                    {strings.ReplaceAll(good, `"`, `'`), "message", `invalid character '\''`},
		"a comment":                        {"/**/" + good, "message", "invalid character '/'"},
		"an empty object":                  {"{}", "session_id", "no such field"},
		"no session":                       {strings.Replace(good, `"session_id":7,`, "", 1), "session_id", "no such field"},
		"no first stamp":                   {strings.Replace(good, `"service1_timestamp":"`+ts1+`",`, "", 1), "service1_timestamp", "no such field"},
		"no second stamp":                  {strings.Replace(good, `"service2_timestamp":null,`, "", 1), "service2_timestamp", "no such field"},
		"no third stamp":                   {strings.Replace(good, `"service3_timestamp":null,`, "", 1), "service3_timestamp", "no such field"},
		"no last stamp":                    {strings.Replace(good, `,"end_timestamp":null`, "", 1), "end_timestamp", "no such field"},
		"an unknown field":                 {insert(`"trace_id":1`), "trace_id", "an unknown field"},
		"an unknown field as a nest":       {insert(`"extra":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000)), "extra", "an unknown field"},
		"a field without name":             {insert(`"":1`), `""`, "an unknown field"},
		"a field of two lines":             {insert(`"a\nb":1`), `"a\nb"`, "an unknown field"},
		"a field of control characters":    {insert(`"` + strings.Repeat(`\u0000`, 500) + `":1`), `"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0… (500 bytes)`, "an unknown field"},
		"a field with a long name":         {insert(`"` + strings.Repeat("é", 1000) + `":1`), strings.Repeat("é", 20) + "… (2000 bytes)", "an unknown field"},
		"a name of invalid UTF-8":          {strings.Replace(good, "session_id", "session_id\xff", 1), "session_id\ufffd", "an unknown field"},
		"another case":                     {strings.Replace(good, "session_id", "Session_ID", 1), "Session_ID", "an unknown field"},
		"another case that folds":          {strings.Replace(good, "session_id", "\u017fession_id", 1), "\u017fession_id", "an unknown field"},
		"a field twice":                    {insert(`"session_id":7`), "session_id", "found it twice"},
		"a field twice, escaped":           {insert(`"\u0073ession_id":7`), "session_id", "found it twice"},
		"a stamp twice":                    {insert(`"end_timestamp":null`), "end_timestamp", "found it twice"},
		"session null":                     {session("null"), "session_id", "found null"},
		"session a string":                 {session(`"7"`), "session_id", `the string "7"`},
		"session a boolean":                {session("true"), "session_id", "a boolean"},
		"session an array":                 {session("[7]"), "session_id", "an array"},
		"session an object":                {session("{}"), "session_id", "an object"},
		"session deeply nested":            {session(strings.Repeat("[", 2000)), "session_id", "an array"},
		"session zero":                     {session("0"), "session_id", "found 0"},
		"session minus zero":               {session("-0"), "session_id", "found -0"},
		"session negative":                 {session("-7"), "session_id", "found -7"},
		"session a fraction":               {session("7.0"), "session_id", "found 7.0"},
		"session an exponent":              {session("7e0"), "session_id", "found 7e0"},
		"session one too large":            {session("9223372036854775808"), "session_id", "found 9223372036854775808"},
		"session of 3000 digits":           {session(strings.Repeat("9", 3000)), "session_id", "… (3000 bytes)"},
		"session with a leading zero":      {session("07"), "session_id", "found 0"},
		"session with a plus":              {session("+7"), "message", "invalid character '+'"},
		"session in hexadecimal":           {session("0x7"), "session_id", "found 0"},
		"session one and a zero byte":      {session("1\x00"), "message", "invalid character '\\x00'"},
		"session 1x":                       {session("1x"), "message", "invalid character 'x'"},
		"session NaN":                      {session("NaN"), "message", "invalid character 'N'"},
		"session misspelt null":            {session("nul"), "message", "invalid character ','"},
		"stamp a number":                   {object("1795428930"), "service1_timestamp", "the number 1795428930"},
		"stamp a boolean":                  {object("false"), "service1_timestamp", "a boolean"},
		"stamp an array":                   {object("[]"), "service1_timestamp", "an array"},
		"stamp an object":                  {object("{}"), "service1_timestamp", "an object"},
		"stamp empty":                      {object(`""`), "service1_timestamp", `found ""`},
		"stamp with the word null":         {object(`"null"`), "service1_timestamp", `found "null"`},
		"stamp with an offset":             {object(`"2026-11-23T13:15:30.123456+03:00"`), "service1_timestamp", "+03:00"},
		"stamp with a zero offset":         {object(`"2026-11-23T10:15:30.123456+00:00"`), "service1_timestamp", "+00:00"},
		"stamp with a minus zero offset":   {object(`"2026-11-23T10:15:30.123456-00:00"`), "service1_timestamp", "-00:00"},
		"stamp without zone":               {object(`"2026-11-23T10:15:30.123456"`), "service1_timestamp", "123456\""},
		"stamp without fraction":           {object(`"2026-11-23T10:15:30Z"`), "service1_timestamp", ":30Z"},
		"stamp with milliseconds":          {object(`"2026-11-23T10:15:30.123Z"`), "service1_timestamp", ".123Z"},
		"stamp with seven digits":          {object(`"2026-11-23T10:15:30.1234560Z"`), "service1_timestamp", ".1234560Z"},
		"stamp with nanoseconds":           {object(`"2026-11-23T10:15:30.123456789Z"`), "service1_timestamp", ".123456789Z"},
		"stamp with a comma":               {object(`"2026-11-23T10:15:30,123456Z"`), "service1_timestamp", ",123456Z"},
		"stamp with a lower-case z":        {object(`"2026-11-23T10:15:30.123456z"`), "service1_timestamp", "123456z"},
		"stamp with a lower-case t":        {object(`"2026-11-23t10:15:30.123456Z"`), "service1_timestamp", "23t10"},
		"stamp with a space for the T":     {object(`"2026-11-23 10:15:30.123456Z"`), "service1_timestamp", "23 10"},
		"stamp with a space before":        {object(`" 2026-11-23T10:15:30.123456Z"`), "service1_timestamp", `" 2026`},
		"stamp with one digit of an hour":  {object(`"2026-11-23T1:15:30.123456Z"`), "service1_timestamp", "T1:15"},
		"stamp with hour 24":               {object(`"2026-11-23T24:00:00.000000Z"`), "service1_timestamp", "T24"},
		"stamp with a leap second":         {object(`"2016-12-31T23:59:60.000000Z"`), "service1_timestamp", ":60."},
		"stamp on February 30th":           {object(`"2026-02-30T10:15:30.123456Z"`), "service1_timestamp", "02-30"},
		"stamp on a leap day that is none": {object(`"2026-02-29T10:15:30.123456Z"`), "service1_timestamp", "02-29"},
		"stamp in month 0":                 {object(`"2026-00-10T10:15:30.123456Z"`), "service1_timestamp", "-00-"},
		"stamp in month 13":                {object(`"2026-13-10T10:15:30.123456Z"`), "service1_timestamp", "-13-"},
		"stamp in year 0":                  {object(`"0000-01-01T00:00:00.000000Z"`), "service1_timestamp", "0000-"},
		"stamp in year 10000":              {object(`"10000-01-01T00:00:00.000000Z"`), "service1_timestamp", "10000-"},
		"stamp in a negative year":         {object(`"-001-01-01T00:00:00.000000Z"`), "service1_timestamp", "-001"},
		"stamp at the epoch":               {object(`"1970-01-01T00:00:00.000000Z"`), "service1_timestamp", "1970-"},
		"stamp just before the epoch":      {object(`"1969-12-31T23:59:59.999999Z"`), "service1_timestamp", "1969-"},
		"stamp in other digits":            {object(`"٢٠٢٦-11-23T10:15:30.123456Z"`), "service1_timestamp", "٢٠٢٦"},
		"stamp of invalid UTF-8":           {object("\"2026-11-23T10:15:30.123456Z\xff\""), "service1_timestamp", "\ufffd"},
		"stamp with half a surrogate":      {object(`"\ud800"`), "service1_timestamp", "\ufffd"},
		"stamp of control characters":      {object(`"` + strings.Repeat(`\u0001`, 500) + `"`), "service1_timestamp", "(500 bytes)"},
		"stamp with a bare line break":     {object("\"2026\n\""), "message", "invalid character '\\n'"},
		"stamp with a wrong escape":        {object(`"\x"`), "message", "invalid character 'x'"},
		"stamp of 3800 letters":            {object(quoted(strings.Repeat("x", 3800))), "service1_timestamp", "(3800 bytes)"},
		"a later stamp wrong":              {object(quoted(ts1), quoted("yesterday")), "service2_timestamp", `"yesterday"`},
		"the last stamp wrong":             {object(quoted(ts1), "null", "null", "0"), "end_timestamp", "the number 0"},
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range allRefused() {
		t.Run(name, func(t *testing.T) {
			m, err := message.Decode([]byte(c.text), message.AtMS2)
			var wrong *message.Error
			if !errors.As(err, &wrong) {
				t.Fatalf("got %+v, %v, want an error about %s", m, err, c.field)
			}
			if m != (message.Message{}) {
				t.Errorf("got %+v beside the error, want nothing", m)
			}
			if wrong.Field != c.field {
				t.Errorf("got an error about %q (%v), want one about %q", wrong.Field, err, c.field)
			}
			if !strings.Contains(err.Error(), c.found) {
				t.Errorf("got %q, want %q in it", err, c.found)
			}
			tidy(t, err)
		})
	}
}

// tidy checks that an error fits where errors go: a line of a log, a header.
func tidy(t *testing.T, err error) {
	t.Helper()
	text := err.Error()
	if len(text) > 200 || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\u2028' }) {
		t.Errorf("got an error of %d bytes: %q, want a line of at most 200", len(text), text)
	}
	if !strings.Contains(text, ": expected ") || !strings.Contains(text, ", found ") {
		t.Errorf("got %q, want the expected and the found text", text)
	}
}

// sets returns a message with each set of stamps, gaps among them.
func sets() (texts []string) {
	for set := range 1 << 4 {
		stamps := []string{quoted(ts1), quoted(ts2), quoted(ts3), quoted(ts4)}
		for i := range stamps {
			if set&(1<<i) == 0 {
				stamps[i] = "null"
			}
		}
		texts = append(texts, object(stamps...))
	}
	return texts
}

func TestDecodeStages(t *testing.T) {
	names := []string{"service1_timestamp", "service2_timestamp", "service3_timestamp", "end_timestamp"}
	for stage, where := range map[message.Stage]string{message.AtMS2: "at MS2", message.AtMS3: "at MS3", message.AtStore: "at /store", message.Stored: "stored"} {
		for set, text := range sets() {
			// The first stamp that is missing or set too early.
			wrong := slices.IndexFunc([]int{0, 1, 2, 3}, func(i int) bool { return (set&(1<<i) != 0) != (i < int(stage)) })
			t.Run(where+" "+text, func(t *testing.T) {
				_, err := message.Decode([]byte(text), stage)
				var found *message.Error
				switch {
				case wrong < 0 && err != nil:
					t.Errorf("got %v, want none", err)
				case wrong >= 0 && (!errors.As(err, &found) || found.Field != names[wrong]):
					t.Errorf("got %v, want an error about %s", err, names[wrong])
				case wrong >= 0:
					tidy(t, err)
				}
			})
		}
	}
}

func TestStamp(t *testing.T) {
	for name, c := range map[string]struct {
		stamp message.Stamp
		text  string
	}{
		"not set":     {0, "null"},
		"the first":   {1, "1970-01-01T00:00:00.000001Z"},
		"an ordinary": {at(t, ts1), ts1},
		"the last":    {253402300799999999, "9999-12-31T23:59:59.999999Z"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.stamp.String() != c.text {
				t.Errorf("got %s, want %s", c.stamp, c.text)
			}
			want := quoted(c.text)
			if c.stamp == 0 {
				want = c.text
				if !c.stamp.Time().IsZero() {
					t.Errorf("got the time %s, want the zero time", c.stamp.Time())
				}
			} else if back := message.StampOf(c.stamp.Time()); back != c.stamp || c.stamp.Time().Location() != time.UTC {
				t.Errorf("by way of a time: got %d, want %d", back, c.stamp)
			}
			if got, err := json.Marshal(c.stamp); err != nil || string(got) != want {
				t.Errorf("as JSON: got %s, %v, want %s", got, err, want)
			}
		})
	}
	t.Run("cut to microseconds, never rounded", func(t *testing.T) {
		zone := time.FixedZone("", 3*3600)
		if got := message.StampOf(time.Date(2026, 11, 23, 13, 15, 30, 123456999, zone)).String(); got != ts1 {
			t.Errorf("got %s, want %s", got, ts1)
		}
	})
}

func TestKey(t *testing.T) {
	m := message.Message{SessionID: 7, Service1: at(t, ts1), Service2: at(t, ts2)}
	if got, want := m.Key().String(), "7/"+ts1; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if m.Key() != (message.Key{SessionID: 7, Service1: at(t, ts1)}) {
		t.Errorf("got %v, want session and first stamp only", m.Key())
	}
	if got, want := (message.Key{SessionID: math.MaxInt64, Service1: 253402300799999999}).String(), "9223372036854775807/9999-12-31T23:59:59.999999Z"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestHops(t *testing.T) {
	const last = message.Stamp(253402300799999999)
	for name, c := range map[string]struct {
		m    message.Message
		want message.Hops
	}{
		"forward": {
			message.Message{Service1: 1_000_000, Service2: 1_000_001, Service3: 1_000_011, End: 3_000_000},
			message.Hops{ToMS2: time.Microsecond, ToMS3: 10 * time.Microsecond, ToMS1: 1_999_989 * time.Microsecond, Round: 2 * time.Second},
		},
		"MS2's clock is behind": {
			message.Message{Service1: 1_000_000, Service2: 400_000, Service3: 1_000_100, End: 1_000_200},
			message.Hops{ToMS2: -600 * time.Millisecond, ToMS3: 600_100 * time.Microsecond, ToMS1: 100 * time.Microsecond, Round: 200 * time.Microsecond},
		},
		"no time at all": {message.Message{Service1: 5, Service2: 5, Service3: 5, End: 5}, message.Hops{}},
		"more than a duration holds": {
			message.Message{Service1: 1, Service2: last, Service3: 1, End: last},
			message.Hops{ToMS2: math.MaxInt64, ToMS3: math.MinInt64, ToMS1: math.MaxInt64, Round: math.MaxInt64},
		},
		"exactly what a duration holds": {
			message.Message{Service1: 1, Service2: 1 + math.MaxInt64/1000, Service3: 1, End: 1},
			message.Hops{ToMS2: math.MaxInt64 / 1000 * 1000, ToMS3: -(math.MaxInt64 / 1000 * 1000)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.m.Hops(); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

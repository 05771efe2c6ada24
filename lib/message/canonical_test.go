package message

import (
	"bytes"
	"testing"
	"time"
)

// Both decoders must agree on everything that the fast one takes, and the fast
// one must take everything that Encode writes.
func agree(t *testing.T, data []byte, stage Stage) {
	t.Helper()
	fast, ok := decodeCanonical(data, stage)
	slow, err := decodeAny(data, stage)
	switch {
	case ok && (err != nil || fast != slow):
		t.Errorf("%q at stage %d: the fast decoder returns %+v, the general one %+v, %v", data, stage, fast, slow, err)
	case !ok && err == nil && bytes.Equal(slow.Encode(), data):
		t.Errorf("%q at stage %d: the fast decoder refuses a canonical message", data, stage)
	}
}

func FuzzCanonical(f *testing.F) {
	day := Stamp(24 * 60 * 60 * 1_000_000)
	for _, s := range []Stamp{1, day, 951_782_400_000_000, 951_782_399_999_999, 1_795_428_930_123_456, 4_107_542_400_000_000, latest, latest + 1} {
		m := Message{SessionID: 7, Service1: s, Service2: s, Service3: s, End: s}
		f.Add(m.Encode(), 4)
		m.End = 0
		f.Add(m.Encode(), 3)
		f.Add(m.Encode(), 4)
		f.Add(bytes.ReplaceAll(m.Encode(), []byte("-0"), []byte("-3")), 3)
		f.Add(bytes.ReplaceAll(m.Encode(), []byte(".123456Z"), []byte(".1+01:00")), 3)
		f.Add(bytes.ReplaceAll(m.Encode(), []byte("7,"), []byte("9223372036854775808,")), 3)
		f.Add(bytes.ReplaceAll(m.Encode(), []byte("7,"), []byte("07,")), 3)
	}
	f.Fuzz(func(t *testing.T, data []byte, n int) { agree(t, data, Stage(1+(n&3+3)&3)) })
}

// Every byte of a message replaced by each of a few others, and every prefix.
func TestCanonicalAgrees(t *testing.T) {
	for stage := AtMS2; stage <= Stored; stage++ {
		m := Message{SessionID: 1234567890123456789, Service1: 951_782_399_999_999}
		for i := 2; i <= int(stage); i++ {
			*m.stamp(i) = m.Service1 + Stamp(i)
		}
		valid := m.Encode()
		if got, ok := decodeCanonical(valid, stage); !ok || got != m {
			t.Fatalf("%s: got %+v, %t", valid, got, ok)
		}
		for i := range valid {
			agree(t, valid[:i], stage)
			for _, c := range []byte("0123456789:-.,TZ\"{} ntx\x00\xff") {
				changed := bytes.Clone(valid)
				changed[i] = c
				agree(t, changed, stage)
			}
		}
		agree(t, append(bytes.Clone(valid), ' '), stage)
		agree(t, append(bytes.Clone(valid), '}'), stage)
	}
}

// Every day of the first 400 years, after which the calendar repeats, and every
// 97th up to the year 9999, at its first and its last microsecond, against the
// standard library.
func TestStampCalendar(t *testing.T) {
	const day = Stamp(24 * 60 * 60 * 1_000_000)
	step := day
	for s := day; s <= latest; s += step {
		if s > 400*366*day {
			step = 97 * day
		}
		for _, s := range []Stamp{s - 1, s} {
			want := s.Time().Format(Layout)
			if got := s.String(); got != want {
				t.Fatalf("stamp %d is written as %s, want %s", s, got, want)
			}
			if got := parseStamp([]byte(want)); got != s {
				t.Fatalf("%s is read as %d, want %d", want, got, s)
			}
		}
	}
	for _, s := range []Stamp{-1, latest + 1} {
		if got, want := string(s.append(nil)), s.Time().Format(Layout); got != want {
			t.Errorf("stamp %d is written as %s, want %s", s, got, want)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	m := Message{SessionID: 7, Service1: StampOf(time.Now()), Service2: 2, Service3: 3}
	data, buffer := m.Encode(), make([]byte, 0, encodedBytes)
	if n := testing.AllocsPerRun(100, func() {
		if got, err := Decode(data, AtStore); err != nil || got != m {
			t.Errorf("got %+v, %v", got, err)
		}
	}); n != 0 {
		t.Errorf("decoding allocates %v times, want 0", n)
	}
	if n := testing.AllocsPerRun(100, func() { buffer = m.Append(buffer[:0]) }); n != 0 {
		t.Errorf("encoding allocates %v times, want 0", n)
	}
}

func BenchmarkDecode(b *testing.B) {
	data := Message{SessionID: 7, Service1: 1_795_428_930_123_456, Service2: 1_795_428_930_123_457, Service3: 1_795_428_930_123_458}.Encode()
	for name, decode := range map[string]func([]byte, Stage) (Message, error){"canonical": Decode, "general": decodeAny} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode(data, AtStore); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	m := Message{SessionID: 7, Service1: 1_795_428_930_123_456, Service2: 1_795_428_930_123_457, Service3: 1_795_428_930_123_458}
	buffer := make([]byte, 0, encodedBytes)
	b.ReportAllocs()
	for b.Loop() {
		buffer = m.Append(buffer[:0])
	}
}

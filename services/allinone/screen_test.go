package allinone

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

// terminal shows what a person sees after all of the text was written: a
// carriage return goes back, and what follows overwrites.
func terminal(t *testing.T, text string) []string {
	t.Helper()
	var lines []string
	for _, written := range strings.Split(text, "\n") {
		var shown []byte
		for _, part := range strings.Split(written, "\r") {
			if len(part) > maxLine {
				t.Errorf("a line of %d characters, want at most %d: %q", len(part), maxLine, part)
			}
			shown = append([]byte(part), shown[min(len(part), len(shown)):]...)
		}
		lines = append(lines, strings.TrimRight(string(shown), " "))
	}
	return lines
}

func at(seconds float64, interval int, stored int64) ms1.Summary {
	return ms1.Summary{Session: ms1.Session{IntervalSeconds: interval, Generated: new(stored + 1), Stored: &stored, Lost: new(int64(1))}, TotalSeconds: &seconds,
		Hops: &ms1.Hops{Round: ms1.Hop{P50: 0.00039, P99: 0.00127}}}
}

func TestProgressOnATerminalOverwritesItself(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, live: true}
	s.print("GET /start")
	s.progress(at(0.5, 2, 1_000_000), 1, false)
	s.progress(at(1, 2, 10), 1, false) // a shorter line leaves nothing of a longer one
	if got := terminal(t, out.String()); got[1] != "[#####     ] 1.0 s left  10/s  in flight 1  lost 0  p50 0.39 p99 1.27 ms" {
		t.Errorf("in the middle the terminal shows %q", got)
	}
	s.print("something went wrong")
	s.progress(at(1.5, 2, 15), 1, false)
	s.progress(at(3, 2, 20), 1, true)
	s.print("the end")
	want := []string{"GET /start", "something went wrong", "[##########] 0.0 s left  7/s  in flight 1  lost 0  p50 0.39 p99 1.27 ms", "the end", ""}
	if got := terminal(t, out.String()); !reflect.DeepEqual(got, want) {
		t.Errorf("at the end the terminal shows\n%q\nwant\n%q", got, want)
	}
}

func TestProgressOnATerminalNeverWraps(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out, live: true}
	s.progress(at(86400, 86400, 1<<62), 1, false)
	want := "[##########] 0.0 s left  53375995583650/s  in flight 1  lost 0  p50 0.39 p99"
	if got := terminal(t, out.String())[0]; got != want {
		t.Errorf("the terminal shows %q, want %q", got, want)
	}
	out.Reset()
	s.escapes = true // of a narrower terminal
	s.progress(at(1, 2, 10), 1, false)
	s.print("something went wrong")
	s.progress(at(1.5, 2, 15), 1, false)
	s.progress(at(2, 2, 20), 1, true)
	drawn := strings.Split(out.String(), "\r")[1:]
	for i, text := range drawn {
		clipped := strings.HasPrefix(text, "\x1b[?7l") && strings.HasSuffix(text, "\x1b[?7h")
		if clipped == strings.HasSuffix(text, "\n") {
			t.Errorf("line %d of %q: want it clipped, unless it stays", i, drawn)
		}
	}
}

func TestProgressElsewhereIsALineASecond(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(file)
	servicetest.NoError(t, err)
	defer out.Close()
	s := newScreen(out)
	for range 100 {
		s.progress(at(0, 1, 0), 1, false)
	}
	first := at(1.25, 1, 5)
	first.Hops = nil
	s.progress(first, 0, true)
	want := "1.0 s left  0/s  in flight 1  lost 0  p50 0.39 p99 1.27 ms\n0.0 s left  4/s  in flight 0  lost 1\n"
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestTroublesAreSeen(t *testing.T) {
	var out bytes.Buffer
	w := troubles{&screen{out: &out}}
	for _, line := range []string{"10:00:00.000 INF ms1 fine\n", "10:00:00.000 WRN ms2 hm\n", "10:00:00.000 ??? ms1 text\n", "10:00:00.000 ERR ms3 no\n", "10:00:00.000 [WRN] disk full\n", "\n"} {
		if n, err := io.WriteString(w, line); n != len(line) || err != nil {
			t.Errorf("%q: %d, %v", line, n, err)
		}
	}
	if got, want := out.String(), "10:00:00.000 WRN ms2 hm\n10:00:00.000 ERR ms3 no\n10:00:00.000 [WRN] disk full\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLostMessagesAreReported(t *testing.T) {
	var out bytes.Buffer
	s := at(1, 1, 7)
	s.ID, s.Resent, s.Duplicates, s.EndReason = 3, new(int64(0)), new(int64(0)), new(ms1.Stopped)
	c := Defaults()
	c.Data = "it's here"
	err := (&trio{config: c, screen: &screen{out: &out}}).summarise(s)
	if err == nil || err.Error() != "session 3: lost 1 of 8 messages" {
		t.Errorf("error %v", err)
	}
	if want := `sqlite3 'it'\''s here/tricycle.db' 'SELECT `; !strings.Contains(out.String(), want) {
		t.Errorf("got\n%s\nwant %s", &out, want)
	}
}

func TestExampleConfigurationHasEveryKeyAtItsDefault(t *testing.T) {
	var c Config // so that a key that is not in the file shows
	servicetest.NoError(t, programtest.Load(&c, "../../compose/config/allinone.yaml"))
	want := Defaults()
	want.Kafka.Brokers = []string{}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("the example has\n%+v\nwant the defaults\n%+v", c, want)
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(*Config) {}, ""},
		{func(c *Config) { c.Listen = "here" }, `listen: must be host:port with a port from 0 to 65535, got "here"`},
		{func(c *Config) { c.Data = "" }, "data: must be the path of a directory, got \"\""},
		{func(c *Config) { c.Interaction.InFlight = 0 }, "interaction.in_flight: must be between 1 and 4096, got 0"},
		{func(c *Config) { c.Workers = 0 }, "workers: must be between 1 and 1024, got 0"},
		{func(c *Config) { c.GroupID = "" }, `group_id: must be a name, got ""`},
		{func(c *Config) { c.Kafka.Brokers = []string{"x"} }, `kafka.brokers: must be host:port with a port from 1 to 65535, got "x"`},
		{func(c *Config) { c.Kafka.Partitions = 0 }, "kafka.partitions: must be between 1 and 1000, got 0"},
		{func(c *Config) { c.Database.Name = "" }, ""}, // the embedded one has no name
		{func(c *Config) { c.Database.Address, c.Database.Name = "db:1", "" }, `database.name: must be 1 to 55 characters, got ""`},
		{func(c *Config) { c.Tracing.SampleRatio = 2 }, "tracing.sample_ratio: must be between 0 and 1, got 2"},
		{func(c *Config) { c.Logging.File = "x.log" }, `logging.file: must be empty as each service logs to its own file in data, got "x.log"`},
	} {
		c := Defaults()
		test.change(&c)
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

package logging_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// Every logger is closed, and with it the goroutine that removes old files.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValidate(t *testing.T) {
	if err := logging.Defaults().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*logging.Config)
		want   string
	}{
		"no level":               {func(c *logging.Config) { c.Level = "" }, `logging.level: must be one of trace, debug, info, warn, error, got ""`},
		"a level in capitals":    {func(c *logging.Config) { c.Level = "INFO" }, `logging.level: must be one of trace, debug, info, warn, error, got "INFO"`},
		"a level that is silent": {func(c *logging.Config) { c.Level = "disabled" }, `logging.level: must be one of trace, debug, info, warn, error, got "disabled"`},
		"no megabytes":           {func(c *logging.Config) { c.MaxSizeMegabytes = 0 }, "logging.max_size_megabytes: must be between 1 and 10000, got 0"},
		"no files":               {func(c *logging.Config) { c.MaxFiles = 0 }, "logging.max_files: must be between 1 and 1000, got 0"},
		"several": {func(c *logging.Config) { c.MaxFiles, c.MaxSizeMegabytes = -1, 10001 },
			"logging.max_size_megabytes: must be between 1 and 10000, got 10001\nlogging.max_files: must be between 1 and 1000, got -1"},
	} {
		t.Run(name, func(t *testing.T) {
			config := logging.Defaults()
			c.change(&config)
			if err := config.Validate(); err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func open(t *testing.T, c logging.Config) (log zerolog.Logger, console *bytes.Buffer, closeLog func()) {
	t.Helper()
	console = &bytes.Buffer{}
	log, closer, err := logging.New(c, "ms9", console)
	if err != nil {
		t.Fatal(err)
	}
	return log, console, func() {
		if err := closer.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLines(t *testing.T) {
	c := logging.Defaults()
	c.File = filepath.Join(t.TempDir(), "new", "directory", "ms9.log")
	log, console, closeLog := open(t, c)
	before := time.Now().UTC().Truncate(time.Microsecond)
	log.Info().Str("trace_id", "abc").Int("count", 3).Msg("a line\nof two")
	log.Error().Err(errors.New("boom")).Msg("it failed")
	log.Log().Msg("logged at every level")
	after := time.Now().UTC()
	closeLog()

	events := servicetest.Events(t, c.File)
	if len(events) != 3 {
		t.Fatalf("got %d lines, want 3: %v", len(events), events)
	}
	for i, want := range []map[string]any{
		{"level": "info", "service": "ms9", "message": "a line\nof two", "trace_id": "abc", "count": 3.0},
		{"level": "error", "service": "ms9", "message": "it failed", "error": "boom"},
		{"service": "ms9", "message": "logged at every level"},
	} {
		text, _ := events[i]["time"].(string)
		when, err := time.Parse("2006-01-02T15:04:05.000000Z", text)
		if err != nil || when.Before(before) || when.After(after) {
			t.Errorf("line %d: got time %q, want RFC 3339 in UTC with microseconds, between %s and %s", i, text, before, after)
		}
		delete(events[i], "time")
		if !reflect.DeepEqual(events[i], want) {
			t.Errorf("line %d: got %v, want %v", i, events[i], want)
		}
	}

	found := strings.Split(console.String(), "\n")
	for i, want := range []string{
		`^\d\d:\d\d:\d\d\.\d{3} INF ms9 a line\\nof two count=3 trace_id=abc$`,
		`^\d\d:\d\d:\d\d\.\d{3} ERR ms9 it failed error=boom$`,
		`^\d\d:\d\d:\d\d\.\d{3} LOG ms9 logged at every level$`,
	} {
		if i >= len(found) || !regexp.MustCompile(want).MatchString(found[i]) {
			t.Errorf("console: got %q, want line %d to be %s", found, i, want)
		}
	}
	if strings.Contains(console.String(), "\x1b[") {
		t.Errorf("got colours on a console that is no terminal: %q", console)
	}
}

func TestLevels(t *testing.T) {
	all := []string{"trace", "debug", "info", "warn", "error"}
	for i, level := range all {
		t.Run(level, func(t *testing.T) {
			c := logging.Defaults()
			c.Level, c.File = level, filepath.Join(t.TempDir(), "ms9.log")
			log, console, closeLog := open(t, c)
			log.Trace().Msg("trace")
			log.Debug().Msg("debug")
			log.Info().Msg("info")
			log.Warn().Msg("warn")
			log.Error().Msg("error")
			log.Log().Msg("always")
			closeLog()
			want := append(slices.Clone(all[i:]), "always")
			if found := servicetest.Messages(t, c.File); !slices.Equal(found, want) {
				t.Errorf("file: got %q, want %q", found, want)
			}
			if n := strings.Count(console.String(), "\n"); n != len(want) {
				t.Errorf("console: got %d lines, want %d", n, len(want))
			}
		})
	}
}

// The console is a file.
func TestConsoleOnly(t *testing.T) {
	t.Chdir(t.TempDir())
	f, err := os.Create("stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log, closer, err := logging.New(logging.Defaults(), "ms9", f)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	log.Warn().Msg("hello")
	text, err := os.ReadFile(f.Name())
	if err != nil || !strings.Contains(string(text), "WRN ms9 hello") || strings.Contains(string(text), "\x1b") {
		t.Errorf("got %q, %v, want a line without colours", text, err)
	}
	if left, err := os.ReadDir("."); err != nil || len(left) != 1 {
		t.Errorf("got files %v, %v, want none but the console", left, err)
	}
}

func TestNewRefuses(t *testing.T) {
	inTheWay := servicetest.File(t, "file", "")
	for name, c := range map[string]struct{ level, file, want string }{
		"a directory as file":           {"info", t.TempDir(), "logging.file: "},
		"a file instead of a directory": {"info", filepath.Join(inTheWay, "ms9.log"), "logging.file: "},
		"a level nobody knows":          {"loud", "", "logging.level: "},
	} {
		t.Run(name, func(t *testing.T) {
			config := logging.Defaults()
			config.Level, config.File = c.level, c.file
			_, closer, err := logging.New(config, "ms9", &bytes.Buffer{})
			if err == nil || !strings.HasPrefix(err.Error(), c.want) || closer != nil {
				t.Errorf("got %v, %v, want an error about %s", closer, err, c.want)
			}
		})
	}
}

func TestRotation(t *testing.T) {
	directory := t.TempDir()
	c := logging.Config{Level: "info", File: filepath.Join(directory, "ms9.log"), MaxSizeMegabytes: 1, MaxFiles: 2}
	log, _, closeLog := open(t, c)
	numbers := slices.Repeat([]int{12345}, 16_666)
	const written = 55 // 5.5 MB: the file and at least four before it
	for range written {
		log.Info().Ints("numbers", numbers).Msg("a long line")
	}
	closeLog() // waits for the goroutine that removes old files

	left, err := filepath.Glob(filepath.Join(directory, "*.log"))
	if err != nil || len(left) != 1+c.MaxFiles {
		t.Fatalf("got %q, %v, want the file and %d before it", left, err, c.MaxFiles)
	}
	total := 0
	for _, path := range left {
		info, err := os.Stat(path)
		if err != nil || info.Size() > 1<<20 {
			t.Errorf("%s has %d bytes, %v, want at most a megabyte", path, info.Size(), err)
		}
		total += len(servicetest.Events(t, path))
	}
	if total <= 20 || total >= written {
		t.Errorf("got %d lines in what is left, want more than two files' and fewer than were written", total)
	}
	if !slices.Contains(left, c.File) {
		t.Errorf("got %q, want %s among them", left, c.File)
	}
}

func TestAFileThatIsGoneIsCreatedAgain(t *testing.T) {
	for name, leave := range map[string]func(path string) error{
		"removed":                    os.Remove,
		"renamed":                    func(path string) error { return os.Rename(path, path+".1") },
		"removed with its directory": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := logging.Config{Level: "info", File: filepath.Join(t.TempDir(), "log", "ms9.log"), MaxSizeMegabytes: 1, MaxFiles: 2}
			log, _, closeLog := open(t, c)
			log.Info().Msg("before")
			if got := servicetest.Messages(t, c.File); len(got) != 1 {
				t.Fatalf("got %q, want a line", got)
			}
			if err := leave(c.File); err != nil {
				t.Fatal(err)
			}
			log.Info().Msg("after")
			closeLog()
			if got := servicetest.Messages(t, c.File); !slices.Equal(got, []string{"after"}) {
				t.Errorf("got %q, want the line after it was gone", got)
			}
		})
	}
}

func TestLongStringsAreCut(t *testing.T) {
	c := logging.Defaults()
	c.File = filepath.Join(t.TempDir(), "ms9.log")
	log, console, closeLog := open(t, c)
	long := strings.Repeat("x", 15_000)
	log.Log().Str("query", long).Err(errors.New(long)).Strs("list", []string{long, "b"}).
		Interface("object", map[string]string{"inner": long}).Str("after", "c").Msg(long)
	log.Log().Str("quotes", strings.Repeat(`"`, 128)).Str("letters", strings.Repeat("я", 200)).Msg(strings.Repeat("x", 256))
	closeLog()
	cut := long[:256] + "…"
	events := servicetest.Events(t, c.File)
	for i, want := range []map[string]any{
		{"query": cut, "error": cut, "list": []any{cut, "b"}, "object": map[string]any{"inner": cut}, "after": "c", "message": cut},
		{"quotes": strings.Repeat(`"`, 128), "letters": strings.Repeat("я", 128) + "…", "message": long[:256]},
	} {
		delete(events[i], "time")
		want["service"] = "ms9"
		if !reflect.DeepEqual(events[i], want) {
			t.Errorf("got %v, want %v", events[i], want)
		}
	}
	if console.Len() > 3000 {
		t.Errorf("got %d bytes on the console, want no long string", console.Len())
	}
}

func TestWhatATerminalActsOnIsEscaped(t *testing.T) {
	c := logging.Defaults()
	c.File = filepath.Join(t.TempDir(), "ms9.log")
	log, console, closeLog := open(t, c)
	const nasty = "\x1b[31m\u009b31m\u202egpj\u2066\u200b\U000e0041\u2028\x07\x7f\r\nнорма"
	log.Warn().Str("field", nasty).Err(errors.New(nasty)).Strs("list", []string{nasty}).
		Interface("object", map[string]string{nasty: nasty}).Msg(nasty)
	closeLog()
	text, err := os.ReadFile(c.File)
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"file": string(text), "console": console.String()} {
		for i, r := range strings.TrimSuffix(text, "\n") {
			if !strconv.IsPrint(r) {
				t.Errorf("%s: got %U at %d of %q", where, r, i, text)
			}
		}
		if strings.Count(text, "норма") != 6 || !strings.Contains(text, `\u202egpj`) {
			t.Errorf("%s: got %q, want readable letters and escapes", where, text)
		}
	}
	event := servicetest.Events(t, c.File)[0]
	if event["message"] != nasty || event["field"] != nasty {
		t.Errorf("got %q, want the logged line as valid JSON", event)
	}
}

func TestRepeatedEventsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		base := zerolog.New(&out)
		limited := logging.Limit(base)
		for range 100 {
			limited.Warn().Msg("refused")
		}
		base.Info().Msg("another event")
		time.Sleep(time.Second)
		derived := limited.With().Str("remote", "a").Logger() // shares the limit
		derived.Warn().Msg("refused")
		limited.Warn().Msg("refused")
		time.Sleep(time.Hour)
		limited.Log().Msg("refused")
		time.Sleep(time.Second)
		limited.Warn().Msg("refused")
		const want = `{"level":"warn","message":"refused"}
{"level":"info","message":"another event"}
{"level":"warn","remote":"a","suppressed":99,"message":"refused"}
{"suppressed":1,"message":"refused"}
{"level":"warn","message":"refused"}
`
		if out.String() != want {
			t.Errorf("found\n%s\nexpected\n%s", &out, want)
		}
	})
}

func TestEachProgramHasItsOwnFile(t *testing.T) {
	directory := t.TempDir()
	c := logging.Defaults()
	c.File = filepath.Join(directory, "ms9.log")
	one, _, closeOne := open(t, c)
	two, _, closeTwo := open(t, c)
	one.Info().Msg("one")
	two.Info().Msg("two")
	closeOne()
	three, _, closeThree := open(t, c) // takes the place of the first, and appends to its file
	three.Info().Msg("three")
	closeTwo()
	closeThree()
	for name, want := range map[string][]string{"ms9.log": {"one", "three"}, "ms9.2.log": {"two"}} {
		if found := servicetest.Messages(t, filepath.Join(directory, name)); !slices.Equal(found, want) {
			t.Errorf("%s: got %q, want %q", name, found, want)
		}
	}
}

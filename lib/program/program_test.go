package program_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type settings struct {
	Listen string `yaml:"listen"`
	Count  int    `yaml:"count"`
}

func (s *settings) Validate() error {
	return errors.Join(config.HostPort("listen", s.Listen, 0), config.InRange("count", s.Count, 1, 10))
}

// run runs a command with the body of the test and returns the result. Arguments
// in front of the flags are variables.
func run(t *testing.T, do func(ctx context.Context, s settings, console io.Writer) error, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	for len(args) > 0 && strings.HasPrefix(args[0], "TRICYCLE_") {
		name, value, _ := strings.Cut(args[0], "=")
		t.Setenv(name, value)
		args = args[1:]
	}
	var out bytes.Buffer
	status, stderr = runOn(t, &out, do, args...)
	return status, out.String(), stderr
}

// runOn runs a command with this standard output.
func runOn(t *testing.T, out io.Writer, do func(ctx context.Context, s settings, console io.Writer) error, args ...string) (status int, stderr string) {
	t.Helper()
	var errs bytes.Buffer
	status = program.Main(t.Context(), program.Program[settings]{
		Name: "ms9", Purpose: "does nothing", Config: settings{Listen: "127.0.0.1:1", Count: 5},
		Flags: func(flags *flag.FlagSet, s *settings) {
			flags.IntVar(&s.Count, "count", s.Count, "how `MANY`")
		},
		Serves: func(s settings) program.Served {
			return program.Served{Endpoint: httpserver.Endpoint{Listen: s.Listen}, Ready: "/readyz"}
		},
		Run: do,
	}, args, out, &errs)
	http.DefaultClient.CloseIdleConnections()
	return status, errs.String()
}

func never(t *testing.T) func(context.Context, settings, io.Writer) error {
	return func(context.Context, settings, io.Writer) error {
		t.Error("the program has run")
		return nil
	}
}

func file(t *testing.T, text string) string { return servicetest.File(t, "settings.yaml", text) }

func TestRuns(t *testing.T) {
	one, two := file(t, "count: 7\nlisten: a:1"), file(t, "count: 8")
	for name, c := range map[string]struct {
		args []string
		want settings
	}{
		"the defaults":                   {nil, settings{"127.0.0.1:1", 5}},
		"a file":                         {[]string{"-config", one}, settings{"a:1", 7}},
		"a later file overrides":         {[]string{"-config", one, "-config", two}, settings{"a:1", 8}},
		"the order of files":             {[]string{"-config", two, "--config=" + one}, settings{"a:1", 7}},
		"a flag over the defaults":       {[]string{"-count", "9"}, settings{"127.0.0.1:1", 9}},
		"a flag over a file":             {[]string{"-config", one, "-count", "9"}, settings{"a:1", 9}},
		"a flag in front of a file":      {[]string{"-count", "9", "-config", one}, settings{"a:1", 9}},
		"a flag corrects a file's value": {[]string{"-config", file(t, "count: 99"), "-count", "9"}, settings{"127.0.0.1:1", 9}},
		"a flag with the default":        {[]string{"-config", one, "-count", "5"}, settings{"a:1", 5}},
		"the last of repeated flags":     {[]string{"-count", "6", "-count", "4"}, settings{"127.0.0.1:1", 4}},
		"flags that are switched off":    {[]string{"-version=false", "-healthcheck=false"}, settings{"127.0.0.1:1", 5}},
		"the environment over a file":    {[]string{"TRICYCLE_COUNT=6", "-config", one}, settings{"a:1", 6}},
		"a flag over the environment":    {[]string{"TRICYCLE_COUNT=6", "-count", "9"}, settings{"127.0.0.1:1", 9}},
		"the environment alone":          {[]string{"TRICYCLE_LISTEN=b:2", "TRICYCLE_COUNT=6"}, settings{"b:2", 6}},
		"the variables of the tests":     {[]string{"TRICYCLE_TEST_COUNT=6"}, settings{"127.0.0.1:1", 5}},
		"an empty file leaves it all":    {[]string{"-config", file(t, "")}, settings{"127.0.0.1:1", 5}},
		"two dashes and nothing after":   {[]string{"-count", "6", "--"}, settings{"127.0.0.1:1", 6}},
	} {
		t.Run(name, func(t *testing.T) {
			var got settings
			status, stdout, stderr := run(t, func(_ context.Context, s settings, console io.Writer) error {
				got = s
				fmt.Fprint(console, "hello")
				return nil
			}, c.args...)
			if status != 0 || stdout != "hello" || stderr != "" || got != c.want {
				t.Errorf("got status %d, %q, %q, %+v, want 0, hello and %+v", status, stdout, stderr, got, c.want)
			}
		})
	}
}

func TestPrintConfig(t *testing.T) {
	path := file(t, "count: 7\nlisten: a:1")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"the defaults":            {nil, "listen: 127.0.0.1:1 # default\ncount: 5 # default\n"},
		"a file and a variable":   {[]string{"TRICYCLE_COUNT=6", "-config", path}, "listen: a:1 # file " + path + "\ncount: 6 # variable TRICYCLE_COUNT\n"},
		"a flag with the same":    {[]string{"-config", path, "-count", "7"}, "listen: a:1 # file " + path + "\ncount: 7 # flag -count\n"},
		"beside the health check": {[]string{"-healthcheck"}, "listen: 127.0.0.1:1 # default\ncount: 5 # default\n"},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := run(t, never(t), append(c.args, "-print-config")...)
			if status != 0 || stdout != c.want || stderr != "" {
				t.Errorf("got status %d, %q, %q, want 0 and %q", status, stdout, stderr, c.want)
			}
		})
	}
}

func TestPrintToAFullDisk(t *testing.T) {
	for flag, what := range map[string]string{"-print-config": "configuration", "-version": "version"} {
		refuse, write := io.Pipe()
		refuse.Close()
		status, stderr := runOn(t, write, never(t), flag)
		if want := "ms9: print " + what + ": not accepted by stdout\n"; status != 1 || stderr != want {
			t.Errorf("%s: got status %d, %q, want 1 and %q", flag, status, stderr, want)
		}
	}
}

func TestVersion(t *testing.T) {
	for name, args := range map[string][]string{"alone": {"-version"}, "with a file that is not there": {"-version", "-config", "none.yaml"}} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := run(t, never(t), args...)
			if want := regexp.MustCompile(`^ms9 ` + regexp.QuoteMeta(program.Version) + ` \(go1\.\S+\)\n$`); status != 0 || !want.MatchString(stdout) || stderr != "" {
				t.Errorf("got status %d, %q, %q, want 0 and %s", status, stdout, stderr, want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	status, _, stderr := run(t, never(t), "-help")
	if status != 0 {
		t.Errorf("got status %d, want 0", status)
	}
	for _, want := range []string{"ms9: does nothing\n", "-config FILE", "-print-config", "-version", "-healthcheck", "-count MANY", "(default 5)"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("got %q, want %q in it", stderr, want)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"an unknown flag":             {[]string{"-cuont", "3"}, "flag provided but not defined: -cuont"},
		"an argument":                 {[]string{"start"}, `expected flags only, found argument "start"`},
		"an argument behind flags":    {[]string{"-count", "3", "now"}, `expected flags only, found argument "now"`},
		"an argument behind dashes":   {[]string{"--", "-count"}, `expected flags only, found argument "-count"`},
		"a flag without its value":    {[]string{"-config"}, "flag needs an argument: -config"},
		"a flag with a wrong value":   {[]string{"-count", "few"}, `invalid value "few" for flag -count`},
		"an argument beside -version": {[]string{"-version", "now"}, `found argument "now"`},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := run(t, never(t), c.args...)
			if status != 2 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Count(stderr, c.want) != 1 {
				t.Errorf("got status %d, %q, %q, want 2 and, once, %s", status, stdout, stderr, c.want)
			}
		})
	}
}

func TestErrorsAreOneLine(t *testing.T) {
	bad, odd := file(t, "listen: a:1\ncount: two"), file(t, "listen: a\ncount: 11")
	for name, c := range map[string]struct {
		args []string
		err  error
		want string
	}{
		"a file that is not there":      {[]string{"-config", "none.yaml"}, nil, "ms9: read configuration: open none.yaml: no such file or directory\n"},
		"a file that is wrong":          {[]string{"-config", bad}, nil, "ms9: read configuration: " + bad + ": line 2: count: expected a whole number, found \"two\"\n"},
		"values out of range":           {[]string{"-config", odd}, nil, "ms9: check configuration: listen: must be host:port with a port from 0 to 65535, got \"a\" (file " + odd + "); count: must be between 1 and 10, got 11 (file " + odd + ")\n"},
		"a flag out of range":           {[]string{"-count", "11"}, nil, "ms9: check configuration: count: must be between 1 and 10, got 11 (flag -count)\n"},
		"a wrong file and -healthcheck": {[]string{"-healthcheck", "-count", "0"}, nil, "ms9: check configuration: count: must be between 1 and 10, got 0 (flag -count)\n"},
		"an unknown variable":           {[]string{"TRICYCLE_CUONT=7"}, nil, "ms9: read configuration: unknown variable TRICYCLE_CUONT, the nearest is TRICYCLE_COUNT\n"},
		"a variable of another type":    {[]string{"TRICYCLE_COUNT=two"}, nil, "ms9: read configuration: TRICYCLE_COUNT: expected a whole number, found \"two\"\n"},
		"a variable out of range":       {[]string{"TRICYCLE_COUNT=0", "-print-config"}, nil, "ms9: check configuration: count: must be between 1 and 10, got 0 (variable TRICYCLE_COUNT)\n"},
		"the program's own":             {nil, errors.Join(errors.New("one"), errors.New("two")), "ms9: one; two\n"},
	} {
		t.Run(name, func(t *testing.T) {
			do := never(t)
			if c.err != nil {
				do = func(context.Context, settings, io.Writer) error { return c.err }
			}
			status, stdout, stderr := run(t, do, c.args...)
			if status != 1 || stdout != "" || stderr != c.want {
				t.Errorf("got status %d, %q, %q, want 1 and %q", status, stdout, stderr, c.want)
			}
		})
	}
}

func TestSignals(t *testing.T) {
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	for name, c := range map[string]struct {
		nohup   bool
		signals []syscall.Signal
		want    string
	}{
		"SIGTERM":                 {signals: []syscall.Signal{syscall.SIGTERM}, want: "terminated signal received"},
		"SIGINT":                  {signals: []syscall.Signal{syscall.SIGINT}, want: "interrupt signal received"},
		"a terminal that closes":  {signals: []syscall.Signal{syscall.SIGHUP, syscall.SIGHUP}, want: "hangup signal received"},
		"a terminal behind nohup": {nohup: true, signals: []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM}, want: "terminated signal received"},
	} {
		t.Run(name, func(t *testing.T) {
			signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // alone, Reset leaves an ignored signal ignored
			if signal.Reset(syscall.SIGHUP); c.nohup {
				signal.Ignore(syscall.SIGHUP)
			}
			status, _, stderr := run(t, func(ctx context.Context, _ settings, _ io.Writer) error {
				for i, s := range c.signals {
					if i > 0 && !c.nohup { // a signal that still waits would be one with the next
						select {
						case <-ctx.Done():
						case <-time.After(10 * time.Second):
						}
					}
					if err := syscall.Kill(syscall.Getpid(), s); err != nil {
						return err
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(10 * time.Second):
					return errors.New("the signal did not end the context")
				}
				if got := context.Cause(ctx).Error(); got != c.want {
					return fmt.Errorf("ended by %q, want %q", got, c.want)
				}
				return nil
			})
			if status != 0 || stderr != "" {
				t.Errorf("got status %d, %q, want 0", status, stderr)
			}
		})
	}
}

func TestHealthcheck(t *testing.T) {
	var asked atomic.Value
	ready := func(w http.ResponseWriter, r *http.Request) { asked.Store(r.Method + " " + r.URL.Path) }
	answers := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, text)
		}
	}
	for name, c := range map[string]struct {
		listen, host string
		answer       http.HandlerFunc
		status       int
		want         string // on stderr
	}{
		"ready":                       {"127.0.0.1:0", "127.0.0.1", ready, 0, ``},
		"ready, with a host name":     {"127.0.0.1:0", "localhost", ready, 0, ``},
		"it listens on every address": {"0.0.0.0:0", "0.0.0.0", ready, 0, ``},
		"on every one of both kinds":  {"[::]:0", "[::]", ready, 0, ``},
		"on every one, without host":  {":0", "", ready, 0, ``},
		"not ready": {"127.0.0.1:0", "127.0.0.1", answers(503, "{\"status\":\"not ready\",\r\n\"kafka\":\"away\"}\n"), 1,
			`^ms9: check readiness: 503 Service Unavailable: \{"status":"not ready",; "kafka":"away"\}\n$`},
		// Only the beginning is printed.
		"a book instead of a word": {"127.0.0.1:0", "127.0.0.1", answers(500, strings.Repeat("x", 100_000)), 1, `^ms9: check readiness: 500 Internal Server Error: x+\n$`},
		"no content is not ready":  {"127.0.0.1:0", "127.0.0.1", answers(204, ""), 1, `^ms9: check readiness: 204 No Content: \n$`},
		"it hangs up": {"127.0.0.1:0", "127.0.0.1", func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, 1, `^ms9: check readiness: .*EOF\n$`},
	} {
		t.Run(name, func(t *testing.T) {
			asked.Store("")
			l, err := net.Listen("tcp", c.listen)
			if err != nil {
				t.Fatal(err)
			}
			server := &httptest.Server{Listener: l, Config: &http.Server{Handler: c.answer}}
			server.Start()
			defer server.Close()
			_, port, _ := net.SplitHostPort(l.Addr().String())
			status, stdout, stderr := run(t, never(t), "-healthcheck", "-config", file(t, fmt.Sprintf("listen: %q", c.host+":"+port)))
			if status != c.status || stdout != "" || !regexp.MustCompile(c.want).MatchString(stderr) || c.status == 0 && stderr != "" {
				t.Errorf("got status %d, %q, %q, want %d and %s", status, stdout, stderr, c.status, c.want)
			}
			if len(stderr) > 4200 {
				t.Errorf("got %d bytes on stderr, want some 4 KiB at most", len(stderr))
			}
			if strings.ContainsAny(strings.TrimSuffix(stderr, "\n"), "\r\n") {
				t.Errorf("got %q, want one line", stderr)
			}
			if c.status == 0 && asked.Load() != "GET /readyz" {
				t.Errorf("got %q asked, want GET /readyz", asked.Load())
			}
		})
	}
}

func TestHealthcheckOfOddAddresses(t *testing.T) {
	for name, c := range map[string]struct{ address, path, want string }{
		"nobody there":  {"127.0.0.1:1", "/readyz", "dial tcp 127.0.0.1:1: connect: connection refused"},
		"no port":       {"localhost", "/readyz", "missing port"},
		"a zone":        {"[fe80::1%none]:1", "/readyz", "dial tcp [fe80::1%none]:1"},
		"no such path":  {"localhost:1", "/%zz", "invalid URL escape"},
		"no such place": {"localhost:99999", "/", "invalid port"},
	} {
		t.Run(name, func(t *testing.T) {
			var errs bytes.Buffer
			status := program.Main(t.Context(), program.Program[settings]{
				Name: "ms9", Config: settings{Listen: "127.0.0.1:1", Count: 5},
				Serves: func(settings) program.Served {
					return program.Served{Endpoint: httpserver.Endpoint{Listen: c.address}, Ready: c.path}
				},
			}, []string{"-healthcheck"}, io.Discard, &errs)
			if status != 1 || !strings.Contains(errs.String(), c.want) {
				t.Errorf("got status %d, %q, want 1 and %s", status, errs.String(), c.want)
			}
		})
	}
}

func TestAddressesAreReachable(t *testing.T) {
	for address, want := range map[string]string{
		"[::]:80": "127.0.0.1:80", "0.0.0.0:80": "127.0.0.1:80", "127.0.0.2:80": "127.0.0.2:80", "[::1]:80": "[::1]:80",
		"[fe80::1%eth0]:80": "[fe80::1%25eth0]:80",
	} {
		if got, err := program.Reach(address); got != want || err != nil {
			t.Errorf("%s is reached at %s, %v, want %s", address, got, err, want)
		}
	}
}

// service is a service whose Run is a function.
type service struct{ run func() error }

func (s service) Address() string           { return "127.0.0.1:9" }
func (s service) Run(context.Context) error { return s.run() }

// observed is the log of a service that Serve has run with a collector.
func observed(t *testing.T, collect http.HandlerFunc, do func(zerolog.Logger, *telemetry.Telemetry) error) ([]map[string]any, error) {
	t.Helper()
	collector := httptest.NewServer(collect)
	defer collector.Close()
	c := program.Observability{Logging: logging.Defaults(), Tracing: telemetry.Defaults()}
	c.Logging.File, c.Tracing.Endpoint = filepath.Join(t.TempDir(), "ms9.log"), collector.URL
	err := program.Serve(t.Context(), "ms9", nil, c, io.Discard, func(_ any, log zerolog.Logger, tel *telemetry.Telemetry) (service, error) {
		return service{func() error { return do(log, tel) }}, nil
	}, nil)
	return servicetest.Events(t, c.Logging.File), err
}

func TestServe(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	trouble := errors.New("the disk is full")
	for name, err := range map[string]error{"an end in peace": nil, "an end with an error": trouble} {
		t.Run(name, func(t *testing.T) {
			var spans atomic.Int32
			events, got := observed(t, func(http.ResponseWriter, *http.Request) { spans.Add(1) }, func(log zerolog.Logger, tel *telemetry.Telemetry) error {
				log.Info().Msg("at work")
				_, span := tel.Tracer.Start(t.Context(), "work")
				span.End()
				return err
			})
			if !errors.Is(got, err) || (got == nil) != (err == nil) {
				t.Errorf("got %v, want %v", got, err)
			}
			if spans.Load() != 1 {
				t.Errorf("got %d exports when it had ended, want one", spans.Load())
			}
			var said []string
			for _, e := range events {
				said = append(said, e["message"].(string))
			}
			if want := "starting, started, at work, stopped"; strings.Join(said, ", ") != want {
				t.Fatalf("got %q, want %s", said, want)
			}
			if events[0]["version"] != program.Version || err != nil && (events[3]["error"] != err.Error() || events[3]["level"] != "error") {
				t.Errorf("got %v, want the version, and an error at level error", events)
			}
		})
	}
	t.Run("a collector that swallows the last spans", func(t *testing.T) {
		began := time.Now()
		events, err := observed(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, func(_ zerolog.Logger, tel *telemetry.Telemetry) error {
			_, span := tel.Tracer.Start(t.Context(), "work")
			span.End()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("took %s, want about two seconds", took)
		}
		last := fmt.Sprint(events[len(events)-1])
		if !strings.Contains(last, "last spans not exported") || !strings.Contains(last, "1 spans dropped at shutdown") {
			t.Errorf("got %v, want a warning of the span", events)
		}
	})
	t.Run("a log that cannot be written", func(t *testing.T) {
		err := program.Serve[any, service](t.Context(), "ms9", nil, program.Observability{Logging: logging.Config{Level: "info", File: t.TempDir()}}, io.Discard, nil, nil)
		if err == nil || !strings.HasPrefix(err.Error(), "logging.file: ") {
			t.Errorf("got %v, want one about logging.file", err)
		}
	})
	t.Run("an environment that is wrong", func(t *testing.T) {
		t.Setenv("OTEL_TRACES_SAMPLER", "xray")
		events, err := observed(t, nil, nil)
		if err == nil || !strings.HasPrefix(err.Error(), "OTEL_TRACES_SAMPLER: ") || len(events) != 0 {
			t.Errorf("got %v, %v, want an error about OTEL_TRACES_SAMPLER", err, events)
		}
	})
}

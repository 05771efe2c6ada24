// Package program implements the command line of a service: its flags, its
// configuration, the signals that stop it, and how it reports an error. A main
// function only has to connect the parts.
package program

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	_ "golang.org/x/crypto/x509roots/fallback" // for https and wss in an image, which has no CA roots

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/logging"
)

// Version is the version of this build. Only a release build sets it, at link
// time: other builds of the same sources are equal.
var Version = "0.0.0-dev"

const healthTimeout = 3 * time.Second

// Program describes a command whose configuration is a C.
type Program[C any] struct {
	Name    string
	Purpose string // a line for -help
	Config  C      // the defaults
	// Flags adds flags beside -config, -print-config, -version and -healthcheck.
	// They are bound to the configuration and override its files and the
	// environment. It may be nil.
	Flags func(flags *flag.FlagSet, c *C)
	// Serves returns the part of the configuration that this package reads.
	Serves func(c C) Served
	// Run runs until ctx is cancelled, as it is by SIGINT, SIGTERM and SIGHUP.
	Run func(ctx context.Context, c C, console io.Writer) error
}

// Served is the part of a configuration that this package reads.
type Served struct {
	httpserver.Endpoint
	Ready string // path of the readiness endpoint, which -healthcheck asks
	Observability
}

// ForService returns the command of the service that create returns. serves is as
// in [Program].
func ForService[C any, S Service](name, purpose string, defaults C, serves func(C) Served, create Create[C, S]) Program[C] {
	run := func(ctx context.Context, c C, console io.Writer) error {
		return Serve(ctx, name, c, serves(c).Observability, console, create, nil)
	}
	return Program[C]{Name: name, Purpose: purpose, Config: defaults, Serves: serves, Run: run}
}

// Validator is the constraint on *C.
type Validator[C any] interface {
	*C
	config.Validator
}

// Main runs the command with its arguments, without the program's name. It
// returns the exit status: 0, 1 after an error, which is one line on stderr, or
// 2 for wrong usage.
func Main[C any, PC Validator[C]](ctx context.Context, p Program[C], args []string, stdout, stderr io.Writer) int {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup does
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(ctx, signals...)
	defer stop()
	context.AfterFunc(ctx, func() {
		signal.Ignore(syscall.SIGHUP) // a terminal that closes sends several
		stop()                        // a second signal of the others kills the program
	})
	signal.Ignore(syscall.SIGPIPE) // a closed console does not stop the program

	limitMemory(memlimit.FromCgroup)
	out, errs := logging.Console(stdout), logging.Console(stderr)
	defer out.Close()
	defer errs.Close()
	stdout, stderr = out, errs
	log.SetOutput(errs) // the log of libraries
	defer log.SetOutput(os.Stderr)

	var files []string
	flagged := p.Config // with the values of flags
	flags := flag.NewFlagSet(p.Name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintf(stderr, "%s: %s\n", p.Name, p.Purpose)
		flags.PrintDefaults()
	}
	flags.Func("config", "read configuration from this YAML `FILE`; repeated, a later file overrides an earlier one", func(path string) error {
		files = append(files, path)
		return nil
	})
	show := flags.Bool("print-config", false, "print the configuration with the source of each value and exit")
	version := flags.Bool("version", false, "print the version and exit")
	healthcheck := flags.Bool("healthcheck", false, "ask the running program whether it is ready, exit 0 or 1")
	if p.Flags != nil {
		p.Flags(flags, &flagged)
	}
	printed := func(what string) error {
		if out.Dropped() > 0 {
			return fmt.Errorf("print %s: not accepted by stdout", what)
		}
		return nil
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "expected flags only, found argument %q\n", flags.Arg(0))
		return 2
	case *version:
		fmt.Fprintf(stdout, "%s %s (%s)\n", p.Name, Version, runtime.Version())
		return p.status(printed("version"), stderr)
	}
	c := p.Config
	sources, err := config.Read(&c, os.Environ(), files...)
	if err == nil {
		flags.Visit(func(f *flag.Flag) { override(&c, &flagged, f, sources) })
		err = sources.Check(PC(&c))
	}
	switch {
	case err != nil:
	case *show:
		err = cmp.Or(sources.Print(stdout, &c), printed("configuration"))
	case *healthcheck:
		err = p.Serves(c).askReady(ctx)
	default:
		err = p.run(ctx, c, stdout)
	}
	return p.status(err, stderr)
}

// status returns the exit status after err, which it prints on one line.
func (p Program[C]) status(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	fmt.Fprintf(stderr, "%s: %s\n", p.Name, strings.Join(lines, "; "))
	return 1
}

// override sets the key of a flag in c to its value in flagged, if it has a key.
func override[C any](c, flagged *C, f *flag.Flag, s config.Sources) {
	fields := maps.Collect(config.Keys(c))
	for key, value := range config.Keys(flagged) {
		// A value of the package flag is a pointer to the variable.
		if value.Addr().Pointer() == reflect.ValueOf(f.Value).Pointer() {
			fields[key].Set(value)
			s[key] = "flag -" + f.Name
		}
	}
}

// run does the work, and serves profiles meanwhile if that is configured.
func (p Program[C]) run(ctx context.Context, c C, console io.Writer) error {
	stop, err := p.Serves(c).Profiling.serve()
	if err != nil {
		return err
	}
	defer stop()
	return p.Run(ctx, c, console)
}

// Reach returns the address by which a URL reaches a listening address of this
// machine, which may be unspecified, such as 0.0.0.0.
func Reach(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(strings.ReplaceAll(host, "%", "%25"), port), err // of a zone; RFC 6874
}

func (s Served) askReady(ctx context.Context) error {
	address, err := Reach(s.Listen)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	scheme := "http"
	if s.TLS.CertificateFile != "" {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+s.Ready, nil)
	if err != nil {
		return err
	}
	// Without a proxy or verification: this is the same machine, the certificate
	// is for the name that clients use, and the request has no secret.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("check readiness: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("check readiness: %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

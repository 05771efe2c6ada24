// Command bench measures how close tricycle comes to what the machine and the
// libraries allow. In one run, in turns, it measures
//
//   - the floor of each hop: its library call alone, repeated;
//   - the bare loop: the four calls chained in this process, without a service,
//     and with those of MS2 and MS3 in processes of their own;
//   - tricycle as it is shipped, from one or more directories of binaries. An
//     older build is thus measured under the same conditions.
//
// Every stored message counts, with the stamps of its row; nothing is sampled.
// A session sends the next message when one has returned, so a pause delays all
// later messages. The time between two messages contains such a pause once. Its
// corrected form counts the pause as often as a client at a constant rate would
// observe it.
//
//	bench -programs now=DIR [-programs then=DIR] [-kafka ADDR -mariadb DSN] -out FILE.json
//	bench report FILE.json [PAGE.md]
//	bench compare OLD.json[:SUBJECT] NEW.json[:SUBJECT]
//
// bench/real.sh builds the programs, starts real servers and runs it.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/twmb/franz-go/pkg/kfake"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out, progress io.Writer) error {
	if len(args) > 0 {
		switch name := args[0]; name {
		case "report":
			return reportCommand(args[1:], out)
		case "compare":
			return compareCommand(args[1:], out)
		case "bare":
			return bareCommand(ctx, args[1:], os.Stdin, out)
		}
	}
	p, err := parsePlan(args, progress)
	if err != nil {
		return err
	}
	results, err := p.run(ctx, progress)
	if err != nil {
		return err
	}
	report(out, results)
	return nil
}

// plan is what a run measures.
type plan struct {
	subjects    []programs
	kafka       string
	kafkaTLS    string
	database    *mysql.Config
	processes   map[string]int // of the servers
	collector   string
	parts       []string
	tracing     []string
	inFlight    []int
	seconds     int
	warmUp      int // seconds
	repetitions int
	servers     string
	out         string
}

func parsePlan(args []string, usage io.Writer) (p plan, err error) {
	p.processes = map[string]int{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.Func("programs", "measure the binaries in a directory: `NAME=DIR[,ms3=N][,tls=DIR][,VARIABLE=VALUE]…`; with TLS on all links by the certificate.pem and key.pem of a directory; repeated, rates are compared with those of the last", func(text string) error {
		s, err := parsePrograms(text)
		p.subjects = append(p.subjects, s)
		return err
	})
	flags.StringVar(&p.kafka, "kafka", "", "address of a real broker: `HOST:PORT`")
	flags.StringVar(&p.kafkaTLS, "kafka-tls", "", "address of the same broker with TLS, for programs with tls=DIR: `HOST:PORT`")
	flags.Func("mariadb", "`DSN` of a real server, whose user may create databases named tricycle_test_…", func(text string) (err error) {
		p.database, err = mysql.ParseDSN(text)
		return err
	})
	flags.Func("process", "also take the processor time of a server: `NAME=PID`", func(text string) error {
		name, pid, _ := strings.Cut(text, "=")
		n, err := strconv.Atoi(pid)
		p.processes[name] = n
		return err
	})
	flags.StringVar(&p.collector, "otlp", "", "`URL` of an OTLP/HTTP collector; default: one in this program, which keeps nothing")
	flags.StringVar(&p.servers, "servers", "", "description of the servers for the report")
	flags.StringVar(&p.out, "out", "", "write results to `FILE`.json, and the plot beside it")
	flags.IntVar(&p.seconds, "seconds", 3, "length of each trial")
	flags.IntVar(&p.warmUp, "warm-up", 10, "length of a session before the first trial in seconds, 0 for none")
	flags.IntVar(&p.repetitions, "repetitions", 5, "how often everything is measured")
	parts := flags.String("parts", "", "real, embedded or both with a comma; default: embedded, and real if servers are given")
	tracing := flags.String("tracing", "off,on", "off, on or both; embedded parts run with off if it is there")
	inFlight := flags.String("in-flight", "1,8,64,256,1024", "messages in flight, a trial for each")
	if err := flags.Parse(args); err != nil {
		return p, err
	}
	if (p.kafka == "") != (p.database == nil) {
		return p, errors.New("-kafka and -mariadb: must be given together")
	}
	if *parts == "" {
		*parts = "embedded"
		if p.kafka != "" {
			*parts = "real,embedded"
		}
	}
	p.parts, p.tracing = strings.Split(*parts, ","), strings.Split(*tracing, ",")
	for _, text := range strings.Split(*inFlight, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return p, fmt.Errorf("-in-flight: expected positive numbers, found %q", *inFlight)
		}
		p.inFlight = append(p.inFlight, n)
	}
	switch {
	case flags.NArg() > 0:
		return p, fmt.Errorf("expected flags, report or compare, found %q", flags.Arg(0))
	case p.seconds < 1 || p.repetitions < 1:
		return p, errors.New("-seconds and -repetitions: must be at least 1")
	case slices.Contains(p.parts, "real") && p.kafka == "":
		return p, errors.New("-parts: real needs -kafka and -mariadb")
	case slices.ContainsFunc(p.subjects, func(s programs) bool { return s.tls != "" }) && (p.kafkaTLS == "" || slices.Contains(p.parts, "embedded")):
		return p, errors.New("-programs: tls=DIR needs -kafka-tls and -parts real")
	}
	return p, nil
}

func cores() int { return runtime.NumCPU() }

// unit is what is started together and measured once in each repetition.
type unit func(ctx context.Context) ([]Trial, error)

// run measures everything, in turns: each repetition begins with another unit,
// so that none always has the same neighbours or the warmest machine.
func (p plan) run(ctx context.Context, progress io.Writer) (Results, error) {
	r := Results{Date: time.Now().UTC().Truncate(time.Second), Machine: machine() + ", " + runtime.Version(), Seconds: p.seconds,
		Revisions: map[string]string{}, Servers: p.servers}
	for _, s := range p.subjects {
		if revision := s.revision(); revision != "" {
			r.Revisions[s.name] = revision
		}
	}
	if p.collector == "" {
		// It answers an empty ExportTraceServiceResponse: everything was taken.
		sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/x-protobuf")
		}))
		defer sink.Close()
		p.collector = sink.URL
	}
	units := p.units()
	if len(p.subjects) > 0 && p.warmUp > 0 {
		warm := p
		warm.seconds = p.warmUp
		for _, parts := range p.parts {
			if _, err := warm.services(ctx, p.environment(parts), p.subjects[0], "", []int{slices.Max(p.inFlight)}); err != nil {
				return r, fmt.Errorf("warm up: %w", err)
			}
		}
	}
	for repetition := range p.repetitions {
		for i := range units {
			trials, err := units[(i+repetition)%len(units)](ctx)
			if err != nil {
				return r, err
			}
			for _, t := range trials {
				t.Repetition = repetition + 1
				r.Trials = append(r.Trials, t)
				fmt.Fprintf(progress, "%d/%d %s, %s, tracing %s, %d in flight: %.0f/s, round %.3f ms, next %.3f ms\n", t.Repetition, p.repetitions,
					t.Subject, t.Parts, onOff(t.Tracing), t.InFlight, t.PerSecond, t.Times[round].P50/1e3, t.Times[next].P50/1e3)
			}
		}
		if p.out != "" { // after each repetition: a run that is cut short has results too
			if err := r.write(p.out); err != nil {
				return r, err
			}
		}
	}
	if p.out != "" {
		return r, writePlot(r, plotFile(p.out))
	}
	return r, nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (p plan) environment(parts string) environment {
	if parts == "real" {
		return environment{parts: parts, brokers: []string{p.kafka}, tlsBroker: p.kafkaTLS, database: p.database, processes: p.processes}
	}
	return environment{parts: parts}
}

// units returns everything that is measured in a repetition.
func (p plan) units() (units []unit) {
	for _, parts := range p.parts {
		e := p.environment(parts)
		units = append(units, func(ctx context.Context) ([]Trial, error) { return p.bare(ctx, e) })
		tracings := p.tracing
		if parts == "embedded" && slices.Contains(tracings, "off") {
			tracings = []string{"off"} // for a try-out; it keeps the run short
		}
		for _, tracing := range tracings {
			collector := ""
			if tracing == "on" {
				collector = p.collector
			}
			for _, s := range p.subjects {
				units = append(units, func(ctx context.Context) ([]Trial, error) { return p.services(ctx, e, s, collector, p.inFlight) })
			}
		}
	}
	return units
}

// services starts programs, gives them a second to warm up, and runs a session
// for each number of messages in flight.
func (p plan) services(ctx context.Context, e environment, s programs, collector string, inFlight []int) (trials []Trial, err error) {
	about := fmt.Sprintf("%s, %s", s.name, e.parts)
	running, err := start(ctx, e, s, collector)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", about, err)
	}
	defer func() {
		if stopErr := running.stop(); stopErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", about, stopErr))
		}
	}()
	if _, err := running.trial(ctx, 1, 8); err != nil {
		return nil, fmt.Errorf("%s: warm up: %w", about, err)
	}
	for _, n := range inFlight {
		t, err := running.trial(ctx, p.seconds, n)
		if err != nil {
			return nil, fmt.Errorf("%s, %d in flight: %w", about, n, err)
		}
		t.Subject, t.Parts, t.Tracing = s.name, e.parts, collector != ""
		trials = append(trials, t)
	}
	return trials, nil
}

// bare measures floor and bare loops.
func (p plan) bare(ctx context.Context, e environment) (trials []Trial, err error) {
	dir, err := os.MkdirTemp("", "tricycle-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	brokers := e.brokers
	if len(brokers) == 0 { // as allinone has it
		cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DataDir(filepath.Join(dir, "broker")))
		if err != nil {
			return nil, err
		}
		defer cluster.Close()
		brokers = cluster.ListenAddrs()
	}
	driver, dsn := "sqlite", "file:"+filepath.Join(dir, "bare.db")+"?_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)"
	if e.database != nil {
		config, drop, err := createDatabase(ctx, e.database)
		if err != nil {
			return nil, err
		}
		defer drop()
		config.InterpolateParams = true // as MS1 has it
		driver, dsn = "mysql", config.FormatDSN()
	}
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, apart := range []bool{false, true} {
		some, err := p.bareLoop(ctx, brokers, db, e, apart)
		if err != nil {
			return nil, err
		}
		trials = append(trials, some...)
	}
	return trials, nil
}

// bareLoop measures the bare loop, in one process also the floor.
func (p plan) bareLoop(ctx context.Context, brokers []string, db *sql.DB, e environment, apart bool) (trials []Trial, err error) {
	b, err := newBare(ctx, brokers, db, e.processes, apart)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	measures := []func(context.Context, time.Duration) (Trial, error){b.floor, b.loop}
	if apart {
		measures = measures[1:]
	}
	if _, err := b.loop(ctx, time.Second/2); err != nil { // warm up
		return nil, err
	}
	for _, measure := range measures {
		t, err := measure(ctx, time.Duration(p.seconds)*time.Second)
		if err != nil {
			return nil, err
		}
		t.Parts = e.parts
		trials = append(trials, t)
	}
	return trials, nil
}

package main

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
	"github.com/tricycle-relay/tricycle/services/allinone"
)

// delay is what a hop is slowed down by: far more than any hop takes.
const delay = 50 * time.Millisecond

// TestMain is also the processes of a bare loop and, under its name, allinone:
// to link the program itself takes longer than the tests.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "allinone" {
		os.Exit(program.Main(context.Background(), allinone.Program(), os.Args[1:], os.Stdout, os.Stderr))
	}
	if len(os.Args) > 1 && os.Args[1] == "bare" {
		main()
		return
	}
	os.Exit(m.Run())
}

func built(t *testing.T) programs {
	t.Helper()
	dir, err := servicetest.Build(t.TempDir(), "../services/ms1/cmd/ms1", "../services/ms2/cmd/ms2", "../services/ms3/cmd/ms3")
	if err != nil {
		t.Fatal(err)
	}
	return programs{name: "now", dir: dir, ms3: 1}
}

func TestEmbeddedParts(t *testing.T) {
	p := programs{name: "now", dir: os.Getenv("TRICYCLE_TEST_PROGRAMS"), ms3: 1}
	if p.dir == "" {
		p.dir = t.TempDir()
		if err := os.Symlink(os.Args[0], filepath.Join(p.dir, "allinone")); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a run", func(t *testing.T) {
		t.Parallel()
		runWithEmbeddedParts(t, p)
	})
	t.Run("a slow broker shows in its hop", func(t *testing.T) {
		t.Parallel()
		cluster, address := topictest.Cluster(t)
		slow(cluster)
		slower(t, measure(t, environment{parts: "embedded", brokers: []string{address}}, p), toMS3)
	})
}

func runWithEmbeddedParts(t *testing.T, p programs) {
	file := filepath.Join(t.TempDir(), "results.json")
	var out, progress bytes.Buffer
	err := command(t.Context(), []string{
		"-programs", "now=" + p.dir, "-programs", "then=" + p.dir, "-out", file, "-seconds", "1", "-warm-up", "0",
		"-repetitions", "1", "-in-flight", "16", "-tracing", "on",
	}, &out, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	r, err := readResults(file)
	if err != nil {
		t.Fatal(err)
	}
	subjects := map[string]Trial{}
	for _, trial := range r.Trials {
		subjects[trial.Subject] = trial
		if trial.Messages == 0 || trial.Lost != 0 || trial.Parts != "embedded" {
			t.Errorf("%+v: want messages and none lost", trial)
		}
	}
	for name, times := range map[string][]string{
		floorSubject: {toMS2, toMS3, toMS1, commit}, bareSubject: {next, corrected}, apartSubject: {next, corrected},
		"now": {toMS2, toMS3, toMS1, round, next, corrected}, "then": {round},
	} {
		for _, hop := range times {
			if p := subjects[name].Times[hop]; p.P50 <= 0 || p.P95 < p.P50 || p.P99 < p.P95 || p.P999 < p.P99 || p.Max < p.P999 {
				t.Errorf("%s, %s: %+v, want growing times", name, hop, p)
			}
		}
	}
	if now := subjects["now"]; !now.Tracing || now.CPU["allinone"] <= 0 || now.Memory["allinone"] <= 0 || now.PerSecond <= 0 {
		t.Errorf("%+v: want processor time, memory and a rate", now)
	}
	if !strings.Contains(out.String(), "| 16 | then, tracing on |") {
		t.Errorf("expected a row for each subject in:\n%s", &out)
	}
	if _, err := os.Stat(plotFile(file)); err != nil {
		t.Error(err)
	}
}

// A process of the bare loop that dies ends the measurement.
func TestABareProcessThatDies(t *testing.T) {
	_, address := topictest.Cluster(t)
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "bare.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, name := range []string{"ms2", "ms3"} {
		b, err := newBare(t.Context(), []string{address}, db, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(b.processes[name][0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := b.loop(t.Context(), 10*time.Second); err == nil {
			t.Errorf("%s was killed, and the loop goes on", name)
		}
		b.Close()
	}
}

// slower checks that the delay is in one time of a trial, and in no other hop.
func slower(t *testing.T, trial Trial, hop string) {
	t.Helper()
	for _, name := range []string{toMS2, toMS3, toMS1, commit} {
		took := time.Duration(trial.Times[name].P50 * float64(time.Microsecond))
		if (took >= delay) != (name == hop) {
			t.Errorf("median of %s: %v, want the delay of %v in %s alone", name, took, delay, hop)
		}
	}
	if got := trial.Times[next].P50; got < micros(delay) {
		t.Errorf("median from message to message: %v µs, want at least %v", got, micros(delay))
	}
}

// measure runs one session with one message in flight.
func measure(t *testing.T, e environment, p programs) Trial {
	t.Helper()
	s, err := start(t.Context(), e, p, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	trial, err := s.trial(t.Context(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	return trial
}

// slow makes a broker answer every request to produce late.
func slow(cluster *kfake.Cluster) {
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		time.Sleep(delay)
		return nil, nil, false
	})
}

func TestASlowLinkShowsInItsHop(t *testing.T) {
	dsn := os.Getenv("TRICYCLE_TEST_MARIADB")
	if dsn == "" {
		t.Skip("TRICYCLE_TEST_MARIADB is not set: needs a MariaDB server")
	}
	database, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := built(t)
	for _, hop := range []string{toMS2, toMS1, commit} {
		t.Run(hop, func(t *testing.T) {
			t.Parallel()
			slower(t, measure(t, environment{
				parts: "real", brokers: []string{topictest.Config(t).Brokers[0]}, database: database,
				link: func(name, address string) string {
					if name != hop {
						return address
					}
					return slowLink(t, address)
				},
			}, p), hop)
		})
	}
}

// The servers refuse everything else, and so do the services' listeners.
func TestTLSOnAllLinks(t *testing.T) {
	pair := credentialstest.New(t).Issue("127.0.0.1")
	server := servertest.MariaDB(t, "--require-secure-transport=ON", "--ssl-cert="+pair.CertificateFile, "--ssl-key="+pair.KeyFile)
	database, err := mysql.ParseDSN(server.User + ":" + server.Password + "@tcp(" + server.Address + ")/?tls=skip-verify")
	if err != nil {
		t.Fatal(err)
	}
	config, err := pair.Server("broker", func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	_, broker := topictest.Cluster(t, kfake.TLS(config))
	p := built(t)
	p.tls = filepath.Dir(pair.CertificateFile)
	trial := measure(t, environment{parts: "real", brokers: []string{broker}, tlsBroker: broker, database: database}, p)
	if trial.Messages == 0 || trial.Lost != 0 {
		t.Errorf("%+v: want messages and none lost", trial)
	}
}

// slowLink passes on what clients send to an address, late, and what comes back
// at once.
func slowLink(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := net.Dial("tcp", address)
				if err != nil {
					return
				}
				defer server.Close()
				go func() { _, _ = io.Copy(client, server); client.Close() }()
				buffer := make([]byte, 64<<10)
				for {
					n, err := client.Read(buffer)
					if err != nil {
						return
					}
					time.Sleep(delay)
					if _, err := server.Write(buffer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

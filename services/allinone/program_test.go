package allinone

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// programVariable makes this binary the program itself: to link the one that is
// delivered takes longer than most of the tests.
const programVariable = "TRICYCLE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		os.Exit(program.Main(context.Background(), Program(), os.Args[1:], os.Stdout, os.Stderr))
	}
	_ = os.Setenv(programVariable, "yes") // of the processes that the tests start
	servicetest.Main(m, nil)
}

// TestProgram is about the program in processes of its own.
func TestProgram(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T){
		"killed in the middle of a session": killed,
		"interrupted by a person":           ended(syscall.SIGINT),
		"a terminal that closes":            ended(syscall.SIGHUP),
		"its console disappears":            consoleGone,
		"nobody reads its console":          consoleFull,
		"healthcheck":                       healthcheck,
		"exit status":                       exitStatus,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// child starts the program as a process of its own, and returns it and its URL.
func child(t *testing.T, args ...string) (*servicetest.Process, string) {
	t.Helper()
	p := servicetest.Launch(t, exec.Command(os.Args[0], args...))
	return p, p.Out.Find(t, `MS1 listens on (http://\S+)`)[1]
}

// lockDatabase keeps the program from storing messages.
func lockDatabase(t *testing.T, data string) (release func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(data, "tricycle.db")+"?_pragma=busy_timeout(60000)")
	servicetest.NoError(t, err)
	db.SetMaxOpenConns(1)
	_, err = db.Exec("BEGIN IMMEDIATE")
	servicetest.NoError(t, err)
	return func() { servicetest.NoError(t, db.Close()) }
}

// records returns the number of messages in the log of the broker.
func records(t *testing.T, data string) (n int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "broker", "partitions", "tricycle.messages-*", "*.dat"))
	servicetest.NoError(t, err)
	for _, file := range files {
		n += int64(strings.Count(servicetest.Text(t, file), `"service1_timestamp"`))
	}
	return n
}

func killed(t *testing.T) {
	data := t.TempDir()
	args := []string{"-listen", anyPort, "-data", data, "-interval", "600", "-in-flight", "256"}
	db := look(t, data)
	rows := func(session int64) int64 {
		return number(t, db, "SELECT COUNT(*) FROM messages WHERE session_id = ?", session)
	}

	p, url := child(t, args...)
	expect(t, http.StatusAccepted, url+"/start")
	servicetest.Eventually(t, time.Minute, "rows", func() bool { return rows(1) > 500 })
	release := lockDatabase(t, data)
	before := rows(1)
	servicetest.Eventually(t, time.Minute, "messages wait in the broker", func() bool { return records(t, data) > before })
	p.Signal(syscall.SIGKILL)
	release()

	p, url = child(t, args...)
	servicetest.Eventually(t, time.Minute, "session 1 is closed", func() bool { return sessionRow(t, db, 1).reason.Valid })
	// Records that the broker had acknowledged and MS3 had not posted arrive now.
	servicetest.Eventually(t, time.Minute, "messages that were in the broker are stored", func() bool { return rows(1) > before })
	servicetest.Eventually(t, time.Minute, "the stored count is that of the rows", func() bool { return sessionRow(t, db, 1).stored.Int64 == rows(1) })
	t.Logf("%d rows when it was killed, %d later", before, rows(1))

	if status, body := get(t, url+"/start?interval=1"); status != http.StatusAccepted || body["session_id"] != 2.0 {
		t.Fatalf("/start: %d %v, want session 2", status, body)
	}
	servicetest.Eventually(t, time.Minute, "session 2 ends", func() bool { return sessionRow(t, db, 2).reason.Valid })
	if p.Signal(syscall.SIGTERM); p.Status() != 0 {
		t.Errorf("after SIGTERM: exit status %d, want 0", p.Status())
	}
	one, two := sessionRow(t, db, 1), sessionRow(t, db, 2)
	if one.reason.String != "interrupted" || one.generated.Valid || one.lost.Valid {
		t.Errorf("session 1: %+v, want interrupted and unknown figures", one)
	}
	if two.reason.String != "interval elapsed" || two.lost.Int64 != 0 || two.stored.Int64 == 0 {
		t.Errorf("session 2: %+v, want all stored", two)
	}
	checkRows(t, db, 1, one.stored.Int64)
	checkRows(t, db, 2, two.stored.Int64)
	for _, log := range []string{"ms1.log", "ms3.log"} {
		if text, err := os.ReadFile(filepath.Join(data, log)); err != nil || bytes.Contains(text, []byte("dead letter")) {
			t.Errorf("%s: %v, and it tells of dead letters:\n%s", log, err, text)
		}
	}
}

func exitStatus(t *testing.T) {
	file := servicetest.File(t, "wrong.yaml", "kafka:\n  broker: here\n")
	for name, test := range map[string]struct {
		args       []string
		status     int
		out, error string // the beginnings of standard output and standard error
	}{
		"one session": {[]string{"-once", "-interval", "1"}, 0, "GET http://127.0.0.1:", ""},
		"version":     {[]string{"-version"}, 0, "allinone ", ""},
		"bad flag":    {[]string{"-twice"}, 2, "", "flag provided but not defined: -twice\n"},
		"bad range":   {[]string{"-once", "-interval", "0"}, 1, "", "allinone: check configuration: interaction.interval_seconds: must be between 1 and 86400, got 0 (flag -interval)\n"},
		"bad key":     {[]string{"-config", file}, 1, "", "allinone: read configuration: " + file + ": line 2: unknown key kafka.broker, expected one of brokers, "},
		"not running": {[]string{"-healthcheck", "-listen", "127.0.0.1:1"}, 1, "", "allinone: check readiness: "},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			var out, complaints strings.Builder
			p := exec.CommandContext(ctx, os.Args[0], append([]string{"-listen", anyPort, "-data", filepath.Join(t.TempDir(), "data")}, test.args...)...)
			p.Stdout, p.Stderr = &out, &complaints
			err := p.Run()
			if got := p.ProcessState.ExitCode(); got != test.status {
				t.Errorf("exit status %d, want %d: %v", got, test.status, err)
			}
			if !strings.HasPrefix(out.String(), test.out) || (test.out == "") != (out.Len() == 0) {
				t.Errorf("got %q, want %q", &out, test.out)
			}
			if !strings.HasPrefix(complaints.String(), test.error) || (test.error == "") != (complaints.Len() == 0) {
				t.Errorf("it complained %q, want %q", &complaints, test.error)
			}
		})
	}
}

func healthcheck(t *testing.T) {
	c := usual(t)
	c.Listen = servertest.FreeAddress(t)
	serve(t, c)
	if out, err := exec.Command(os.Args[0], "-healthcheck", "-listen", c.Listen).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("got %v and output %s, want neither", err, out)
	}
}

func consoleGone(t *testing.T) {
	data := t.TempDir()
	r, w, err := os.Pipe()
	servicetest.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-once", "-interval", "1", "-listen", anyPort, "-data", data)
	cmd.Stdout, cmd.Stderr = w, w
	p := servicetest.Launch(t, cmd)
	w.Close()
	_, err = r.Read(make([]byte, 1)) // GET /start
	r.Close()
	if err != nil || p.Status() != 0 {
		t.Errorf("%v, exit status %d, want 0", err, p.Status())
	}
	if row := sessionRow(t, look(t, data), 1); row.reason.String != "interval elapsed" {
		t.Errorf("got %+v, want a session that has ended by itself", row)
	}
}

func consoleFull(t *testing.T) {
	r, w, err := os.Pipe()
	servicetest.NoError(t, err)
	defer r.Close()
	defer w.Close()
	_ = w.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := w.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v, want a full pipe", err)
	}
	address, data := servertest.FreeAddress(t), t.TempDir()
	cmd := exec.Command(os.Args[0], "-listen", address, "-data", data)
	cmd.Stdout, cmd.Stderr = w, w
	p := servicetest.Launch(t, cmd)
	url := "http://" + address
	openapitest.At(t, "ms1", url).Ready()
	for range 3 {
		began := time.Now()
		expect(t, http.StatusAccepted, url+"/start")
		expect(t, http.StatusOK, url+"/stop")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a session took %s, want it at once", took)
		}
	}
	began := time.Now()
	if p.Signal(syscall.SIGTERM); p.Status() != 0 || time.Since(began) > 8*time.Second {
		t.Errorf("after SIGTERM: exit status %d after %s, want 0 within 8 s", p.Status(), time.Since(began))
	}
	text, err := os.ReadFile(filepath.Join(data, "ms1.log"))
	if err != nil || !strings.Contains(string(text), "session 3: messages generated: ") || !strings.Contains(string(text), "stopped") {
		t.Errorf("%v, and the log has no summary of the last session:\n%s", err, text)
	}
}

// ended ends the command with a signal during its session.
func ended(s syscall.Signal) func(t *testing.T) {
	return func(t *testing.T) {
		data, complained := t.TempDir(), &servicetest.Console{}
		cmd := exec.Command(os.Args[0], "-once", "-interval", "600", "-listen", anyPort, "-data", data)
		cmd.Stderr = complained
		own := make(chan os.Signal, 1)
		signal.Notify(own, s) // else the program inherits that nohup ignores it
		defer signal.Stop(own)
		p := servicetest.Launch(t, cmd)
		p.Out.Find(t, `lost 0  p50 [0-9.]+ p99`)
		began := time.Now()
		if p.Signal(s); p.Status() != 0 || time.Since(began) > 8*time.Second || complained.String() != "" {
			t.Errorf("exit status %d after %s, and it complained %q; want 0 within 8 s and no complaint", p.Status(), time.Since(began), complained)
		}
		stored := p.Out.Find(t, `session 1 \(stopped\)(?s:.*)stored (\d+), .*lost 0`)[1]
		db := look(t, data)
		row := sessionRow(t, db, 1)
		if fmt.Sprint(row.stored.Int64) != stored || row.reason.String != "stopped" {
			t.Errorf("the database has %+v, want %s stored as in the summary", row, stored)
		}
		checkRows(t, db, 1, row.stored.Int64)
	}
}

func TestEveryKeyHasAVariable(t *testing.T) { programtest.Variables(t, Program()) }

func TestWrongFlags(t *testing.T) {
	t.Parallel()
	refused := func(want int, text, flag, value string) {
		t.Helper()
		c := programtest.Run(t, Program(), flag, value)
		if status := c.Wait(); status != want || !c.Err.Has(text) {
			t.Errorf("%s %q: exit status %d: %s", flag, value, status, &c.Err)
		}
	}
	for _, flag := range []string{"-interval", "-in-flight"} {
		for _, value := range []string{"", "few", "1.5", "0x10", "010", "+1", "99999999999999999999"} { // 010 could be 8 or 10
			refused(2, fmt.Sprintf("invalid value %q for flag %s: expected a whole number", value, flag), flag, value)
		}
	}
	for flag, value := range map[string]string{"-interval": "0", "-in-flight": "4097", "-listen": "8080"} {
		refused(1, value, flag, value)
	}
}

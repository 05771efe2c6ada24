package allinone

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
)

// usual is the configuration of a short session on free ports.
func usual(t *testing.T) Config {
	t.Helper()
	c := Defaults()
	c.Listen = anyPort
	c.Data = filepath.Join(t.TempDir(), "made at start", "data")
	c.Interaction.IntervalSeconds = 1
	c.Interaction.InFlight = 8
	return c
}

// start runs the program and returns its console, and a function that stops it
// and returns its error, at the end of the test at the latest.
func start(t *testing.T, c Config) (*servicetest.Console, func() error) {
	return startWith(t, c, limits{time.Second, 5 * time.Second})
}

func startWith(t *testing.T, c Config, most limits) (*servicetest.Console, func() error) {
	t.Helper()
	said := &servicetest.Console{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, c, said, most) }()
	stop := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(60 * time.Second):
			return fmt.Errorf("allinone did not stop:\n%s", said)
		}
	})
	t.Cleanup(func() { _ = stop() })
	return said, stop
}

// serve runs the program until the test or the function stops it, and returns
// its URL.
func serve(t *testing.T, c Config) (url string, stop func() error) {
	t.Helper()
	said, stop := start(t, c)
	return said.Find(t, `MS1 listens on (http://\S+)`)[1], stop
}

// get reads the answer to a GET request.
func get(t *testing.T, url string) (status int, body map[string]any) {
	t.Helper()
	base, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	status, text := openapitest.At(t, "ms1", "http://"+base).Get("/" + path)
	if status == 0 {
		return 0, nil
	}
	if err := json.Unmarshal([]byte(text), &body); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return status, body
}

// expect makes a GET request whose answer must have the status.
func expect(t *testing.T, want int, url string) {
	t.Helper()
	if status, body := get(t, url); status != want {
		t.Fatalf("%s: got %d %v, want %d", url, status, body, want)
	}
}

// look opens the database of the directory for reading, as another program would.
func look(t *testing.T, data string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: filepath.Join(data, "tricycle.db"), RawQuery: "mode=ro&_pragma=busy_timeout(5000)"}).String())
	servicetest.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

func number(t *testing.T, db *sql.DB, query string, args ...any) (n int64) {
	t.Helper()
	if err := db.QueryRow(query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// session is a row of the table sessions.
type session struct {
	id, generated, stored, lost sql.NullInt64
	reason                      sql.NullString
}

func sessionRow(t *testing.T, db *sql.DB, id int64) (s session) {
	t.Helper()
	err := db.QueryRow("SELECT id, generated, stored, lost, end_reason FROM sessions WHERE id = ?", id).Scan(&s.id, &s.generated, &s.stored, &s.lost, &s.reason)
	if err != nil {
		t.Fatalf("session %d: %v", id, err)
	}
	return s
}

// checkRows checks that the session has that many rows, every one with four
// stamps in order and none twice.
func checkRows(t *testing.T, db *sql.DB, sessionID, want int64) {
	t.Helper()
	var rows, keys, ordered int64
	err := db.QueryRow(`SELECT COUNT(*), COUNT(DISTINCT service1_timestamp),
		COUNT(CASE WHEN service1_timestamp <= service2_timestamp AND service2_timestamp <= service3_timestamp AND service3_timestamp <= end_timestamp THEN 1 END)
		FROM messages WHERE session_id = ?`, sessionID).Scan(&rows, &keys, &ordered)
	if err != nil || rows != want || keys != want || ordered != want {
		t.Errorf("session %d: %v, %d rows of %d keys, %d with their stamps in order, want %d", sessionID, err, rows, keys, ordered, want)
	}
}

// The printed commands can be pasted.
func TestCommandsWithAToken(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.TokenFile = servicetest.File(t, "my token", "secret\n")
	said, _ := start(t, c)
	url := said.Find(t, `MS1 listens on (http://\S+)`)[1]
	said.Find(t, "The rows")
	header := `-H "Authorization: Bearer $(cat '` + c.TokenFile + `')" `
	want := fmt.Sprintf("  curl %[1]s%[2]s/start\n  curl %[1]s'%[2]s/start?interval=5&in_flight=64'\n  curl %[2]s/status\n  curl %[1]s%[2]s/stop\n", header, url)
	if !strings.Contains(said.String(), want) {
		t.Errorf("got\n%s\nwant in it\n%s", said, want)
	}
}

func TestOnceStoresWhatItSays(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Once, c.TokenFile = true, servicetest.File(t, "token", "secret\n")
	c.Kafka.TLS.Enabled, c.Kafka.SASL = true, topic.SASL{Mechanism: "PLAIN", User: "a", PasswordFile: "none"} // the embedded broker has neither
	said := &servicetest.Console{}
	if err := Run(t.Context(), c, said); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	want := regexp.MustCompile(`(?s)^GET http://127\.0\.0\.1:\d+/start
(?:[01]\.\d s left  \d+/s  in flight \d+  lost 0[^\n]*
)+0\.\d s left  \d+/s  in flight \d+  lost 0  p50 [^\n]*

session 1 \(interval elapsed\)
  total time of the interaction  \d+\.\d{3} s
  messages generated             (\d+)
  stored (\d+), resent \d+, duplicates \d+, lost 0
  ms1 to ms2   p50 [^\n]*
  ms2 to ms3   p50 [^\n]*
  ms3 to ms1   p50 [^\n]*
  whole round  p50 [0-9.]+ ms, p95 [0-9.]+ ms, p99 [0-9.]+ ms, max [0-9.]+ ms
  commit       p50 [^\n]*

The rows: (sqlite3 [^\n]*)
The log:  ([^\n]*)
$`)
	groups := want.FindStringSubmatch(said.String())
	if groups == nil {
		t.Fatalf("got\n%s\nwant %s", said, want)
	}
	generated, stored, command, log := groups[1], groups[2], groups[3], groups[4]
	if generated != stored || stored == "0" {
		t.Errorf("generated %s and stored %s, want the same and some", generated, stored)
	}
	db := look(t, c.Data)
	row := sessionRow(t, db, 1)
	if got := fmt.Sprint(row.stored.Int64); got != stored || row.generated != row.stored || row.lost.Int64 != 0 {
		t.Errorf("the database has %+v, the summary %s stored", row, stored)
	}
	checkRows(t, db, 1, row.stored.Int64)

	if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), `"message":"GET /start"`) || !strings.Contains(string(text), "messages generated: "+generated) {
		t.Errorf("the log lacks a line of MS1: %v\n%s", err, text)
	}
	for _, name := range []string{"ms2.log", "ms3.log"} {
		if info, err := os.Stat(filepath.Join(c.Data, name)); err != nil || info.Size() == 0 {
			t.Errorf("the log %s is empty: %v", name, err)
		}
	}
	ownerOnly(t, c.Data)
	if _, err := exec.LookPath("sqlite3"); err == nil {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if n := strings.Count(string(out), "\n"); err != nil || int64(n) != min(row.stored.Int64, 10) {
			t.Errorf("%s printed %d lines of %s, at most 10: %v\n%s", command, n, stored, err, out)
		}
	}
}

// ownerOnly checks that only the owner may use what the program has created.
func ownerOnly(t *testing.T, data string) {
	t.Helper()
	for _, directory := range []string{"", "broker"} {
		if info, err := os.Stat(filepath.Join(data, directory)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v, want mode 700", directory, info, err)
		}
	}
	entries, err := os.ReadDir(data)
	servicetest.NoError(t, err)
	for _, e := range entries {
		if info, err := e.Info(); err != nil || !e.IsDir() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v, want mode 600", e.Name(), info, err)
		}
	}
}

func TestReadyOnlyWhenEverythingIs(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Listen = servertest.FreeAddress(t)
	_, _ = start(t, c)
	missed := ""
	servicetest.Eventually(t, time.Minute, "/readyz answers 200", func() bool {
		status, body := get(t, "http://"+c.Listen+"/readyz")
		if status == http.StatusServiceUnavailable && missed == "" {
			missed = fmt.Sprint(body["checks"].(map[string]any)["ms3"])
		}
		return status == http.StatusOK
	})
	if missed == "" || missed == "ok" {
		t.Errorf("before it was ready: got %q for ms3 in /readyz, want the missing part", missed)
	}
	expect(t, http.StatusAccepted, "http://"+c.Listen+"/start")
}

func TestMS3IsMissedUntilItHasStarted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&trio{ms3: make(known[string], 1)}).probeMS3(ctx); err == nil {
		t.Error("MS3 that has not started is ready")
	}
}

func TestStopBeforeTheSessionBeginsIsNoError(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Once = true
	said, stop := start(t, c)
	if err := stop(); err != nil || said.String() != "" {
		t.Errorf("got %v and output %q, want neither", err, said)
	}
}

func TestStopInTheMiddleOfASessionDrains(t *testing.T) {
	t.Parallel()
	c := usual(t)
	url, stop := serve(t, c)
	expect(t, http.StatusAccepted, url+"/start?interval=600&in_flight=64")
	db := look(t, c.Data)
	servicetest.Eventually(t, time.Minute, "rows", func() bool { return number(t, db, "SELECT COUNT(*) FROM messages") > 100 })
	began := time.Now()
	servicetest.NoError(t, stop())
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("stopping took %s, want at most 8 s", took)
	}
	row := sessionRow(t, db, 1)
	if row.reason.String != "shutdown" || row.lost.Int64 != 0 || row.generated != row.stored {
		t.Errorf("session row %+v, want shutdown and nothing lost", row)
	}
	checkRows(t, db, 1, row.stored.Int64)
}

func TestErrorsAreOneLine(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", anyPort)
	servicetest.NoError(t, err)
	defer taken.Close()
	file := servicetest.File(t, "file", "")
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"port taken":       {func(c *Config) { c.Listen = taken.Addr().String() }, "ms1: listen tcp " + taken.Addr().String() + ": bind: address already in use"},
		"data is a file":   {func(c *Config) { c.Data = file }, "create data directory: mkdir " + file + ": not a directory"},
		"no password file": {func(c *Config) { c.Database.Address, c.Database.PasswordFile = "127.0.0.1:1", file+".not" }, "ms1: database.password_file: open " + file + ".not: no such file or directory"},
		"a ruined broker": {func(c *Config) {
			mkdir(t, c.Data, "broker")
			servicetest.File(t, filepath.Join(c.Data, "broker", "meta.json"), "{")
		}, "broker: start on "},
		"a log in the way": {func(c *Config) { mkdir(t, c.Data, "ms2.log") }, "ms2: logging.file: open "},
	} {
		t.Run(name, func(t *testing.T) {
			c := usual(t)
			c.Once = true
			test.change(&c)
			said := &servicetest.Console{}
			err := Run(t.Context(), c, said)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %s", err, test.want)
			}
			if said.String() != "" {
				t.Errorf("got output %q, want none", said)
			}
		})
	}
}

func mkdir(t *testing.T, path ...string) {
	t.Helper()
	servicetest.NoError(t, os.MkdirAll(filepath.Join(path...), 0o755))
}

func TestASecondProgramOnTheSameDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	c := usual(t)
	url, _ := serve(t, c)
	err := Run(t.Context(), c, &servicetest.Console{})
	if err == nil || !strings.Contains(err.Error(), "lock data directory "+c.Data) || !strings.Contains(err.Error(), "locked by another program") {
		t.Errorf("the second program: got %v, want an error that the directory is in use", err)
	}
	expect(t, http.StatusAccepted, url+"/start")
}

// takeOnly makes the broker refuse what is produced after n requests.
func takeOnly(n int64, cluster *kfake.Cluster) {
	var produced atomic.Int64
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if produced.Add(1) <= n {
			return nil, nil, false
		}
		return nil, fmt.Errorf("the broker has had enough"), true
	})
}

func TestStopOfOnceWaitsForTheWholeDrain(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	c := usual(t)
	c.Once = true
	c.Interaction.IntervalSeconds, c.Interaction.DrainSeconds = 600, 2
	c.Kafka = topictest.For(t, address)
	takeOnly(1, cluster)
	said, stop := startWith(t, c, limits{time.Second, 1900 * time.Millisecond}) // alone too short for the drain
	said.Find(t, " WRN ms2 produce request failed, retrying")
	if err := stop(); err == nil || !strings.HasPrefix(err.Error(), "interaction: session 1: lost ") {
		t.Errorf("stopped: %v, want that a message was lost", err)
	}
}

func TestADatabaseThatIsDeletedEndsOnce(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Once = true
	c.Interaction.IntervalSeconds, c.Interaction.DrainSeconds = 600, 1
	said, ended := &servicetest.Console{}, make(chan error, 1)
	go func() { ended <- run(t.Context(), c, said, limits{time.Second, 5 * time.Second}) }()
	said.Find(t, `lost 0  p50 [0-9.]+ p99`)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		servicetest.NoError(t, os.Remove(filepath.Join(c.Data, "tricycle.db"+suffix)))
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "database file is gone") {
		t.Errorf("error %v, want that the file is gone", err)
	}
	if !strings.Contains(said.String(), "  ERROR  ") {
		t.Errorf("got\n%s\nwant a report that the figures are not recorded", said)
	}
}

func TestLostMessagesAreAnError(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	c := usual(t)
	c.Once = true
	c.Interaction.GiveUpAfterSeconds, c.Interaction.InFlight = 1, 3
	c.Kafka = topictest.For(t, address)
	takeOnly(0, cluster)
	said := &servicetest.Console{}
	err := Run(t.Context(), c, said)
	groups := said.Find(t, `messages generated +(\d+)\n  stored \d+, resent \d+, duplicates 0, lost (\d+)`)
	if want := fmt.Sprintf("interaction: session 1: lost %s of %s messages", groups[2], groups[1]); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if !strings.Contains(said.String(), " WRN ms2 ") || strings.Contains(said.String(), " INF ") {
		t.Errorf("got\n%s\nwant the warnings of MS2 and no other lines of a log", said)
	}
	summary, err := strconv.ParseInt(groups[2], 10, 64)
	servicetest.NoError(t, err)
	// A message that is too late for the summary is stored and not lost.
	row := sessionRow(t, look(t, c.Data), 1)
	if lost := row.lost.Int64; lost < 1 || lost > summary || row.generated.Int64-row.stored.Int64 != lost {
		t.Errorf("the database has %+v, the summary %d lost", row, summary)
	}
}

func TestRealBrokerAndDatabase(t *testing.T) {
	t.Parallel()
	broker := os.Getenv("TRICYCLE_TEST_KAFKA")
	if broker == "" {
		t.Skip("TRICYCLE_TEST_KAFKA is not set: needs a Kafka broker")
	}
	server := mariadbtest.New(t)
	c := usual(t)
	c.Once = true
	c.Kafka = topictest.For(t, broker)
	c.GroupID = "test." + rand.Text()
	c.Database.Address, c.Database.Name, c.Database.User, c.Database.PasswordFile = server.Address, server.Name, server.User, server.PasswordFile
	said := &servicetest.Console{}
	if err := Run(t.Context(), c, said); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	groups := said.Find(t, `stored (\d+), `)
	stored := number(t, server.DB, "SELECT stored FROM sessions WHERE id = 1")
	if fmt.Sprint(stored) != groups[1] || stored == 0 {
		t.Errorf("the database has %d stored, the summary %s", stored, groups[1])
	}
	checkRows(t, server.DB, 1, stored)
	for _, embedded := range []string{"broker", "tricycle.db"} {
		if _, err := os.Stat(filepath.Join(c.Data, embedded)); err == nil {
			t.Errorf("%s was made beside the real one", embedded)
		}
	}
	command := said.Find(t, `(?m)^The rows: (mariadb .*)$`)[1]
	if _, err := exec.LookPath("mariadb"); err == nil {
		password := servicetest.Text(t, server.PasswordFile)
		show := exec.Command("sh", "-c", command)
		show.Env = append(os.Environ(), "MYSQL_PWD="+strings.TrimSpace(password))
		show.Args[2] = strings.Replace(command, "--password ", "", 1) // which asks a person
		out, err := show.CombinedOutput()
		if n := strings.Count(string(out), "\n"); err != nil || n != 11 { // with the names of the columns
			t.Errorf("%s printed %d lines, want 11: %v\n%s", command, n, err, out)
		}
	}
}

func TestTheBrokerKeepsItsLogWithinTheRetention(t *testing.T) {
	t.Parallel()
	directory, c := filepath.Join(t.TempDir(), "broker"), Defaults().Kafka
	c.RetentionMegabytes, c.Partitions = 1, 1
	const records = 4000
	value := bytes.Repeat([]byte("x"), 4096) // 16 MB in all
	open := func() *kfake.Cluster {
		b, err := openBroker(directory, c, t.Output())
		servicetest.NoError(t, err)
		t.Cleanup(b.Close)
		return b
	}
	b := open()
	produce(t, b, c.Topic, records, value)
	if size := sizeOf(t, directory); size < 16_000_000 {
		t.Fatalf("the log has %d bytes, want all records on the disk before the retention is applied", size)
	}
	b.Close()

	b = open() // kfake's own retention does not run after a restart
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); serveBroker(ctx, b) }()
	servicetest.Eventually(t, time.Minute, "the log is within the retention and one file more", func() bool {
		return sizeOf(t, directory) < 1<<20+segmentBytes+1<<20
	})
	var killed string
	servicetest.Eventually(t, time.Minute, "a copy, as after a kill, while nothing is removed", func() bool {
		killed = filepath.Join(t.TempDir(), "killed")
		return os.CopyFS(killed, os.DirFS(directory)) == nil
	})
	cancel()
	<-done
	for how, left := range map[string]string{"stopped": directory, "killed": killed} {
		directory = left
		if got := open().PartitionInfo(c.Topic, 0).HighWatermark; got != records {
			t.Errorf("after it was %s the next record gets offset %d, want %d", how, got, records)
		}
	}
}

// produce writes n records, all a year old, to the topic's only partition.
func produce(t *testing.T, b *kfake.Cluster, topic string, n int, value []byte) {
	t.Helper()
	transport := &kafka.Transport{}
	w := &kafka.Writer{Addr: kafka.TCP(b.ListenAddrs()...), Topic: topic, RequiredAcks: kafka.RequireAll, BatchSize: 100, BatchTimeout: time.Millisecond, Transport: transport}
	defer transport.CloseIdleConnections()
	defer w.Close()
	batch := make([]kafka.Message, n)
	for i := range batch {
		batch[i].Value, batch[i].Time = value, time.Now().AddDate(-1, 0, 0)
	}
	servicetest.NoError(t, w.WriteMessages(t.Context(), batch...))
}

func sizeOf(t *testing.T, directory string) (bytes int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(directory, "partitions", "*", "*.dat"))
	servicetest.NoError(t, err)
	for _, f := range files {
		if info, err := os.Stat(f); err == nil {
			bytes += info.Size()
		}
	}
	return bytes
}

func TestADataDirectoryOfOthersIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(data string) error
		want  string
	}{
		"writable by others": {func(data string) error { return os.Chmod(data, 0o777) }, "create data directory: "},
		"of another owner":   {func(data string) error { return os.Chown(data, 65532, 65532) }, "create data directory: "},
		"a log is a link":    {func(data string) error { return os.Symlink("../victim", filepath.Join(data, "ms1.log")) }, "ms1: logging.file: "},
		"the database is":    {func(data string) error { return os.Symlink("../victim", filepath.Join(data, "tricycle.db")) }, "ms1: database: "},
		"the lock is":        {func(data string) error { return os.Symlink("../victim", filepath.Join(data, "lock")) }, "lock data directory "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if os.Geteuid() != 0 && name == "of another owner" {
				t.Skip("needs root to give a directory away")
			}
			config := usual(t)
			config.Once = true
			mkdir(t, config.Data)
			servicetest.NoError(t, c.spoil(config.Data))
			said := &servicetest.Console{}
			if err := Run(t.Context(), config, said); err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %v, want %s; output %s", err, c.want, said)
			}
			if _, err := os.Stat(filepath.Join(config.Data, "..", "victim")); err == nil {
				t.Error("the link was followed")
			}
		})
	}
}

func TestOnceIsAboutItsOwnSession(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Once = true
	c.Interaction.IntervalSeconds = 600
	c.Listen = servertest.FreeAddress(t)
	said, stop := start(t, c)
	said.Find(t, `lost 0  p50 [0-9.]+ p99`)
	url := "http://" + c.Listen
	// Another client stops the session and begins its own, which lasts.
	expect(t, http.StatusOK, url+"/stop")
	_, body := get(t, url+"/start?interval=600") // refused if MS1 stops already
	groups := said.Find(t, `\nsession (\d+) \((.*)\)\n`)
	if groups[1] != "1" || groups[2] != "stopped" {
		t.Errorf("it sums up session %s (%s), want session 1 (stopped); the other start: %v", groups[1], groups[2], body)
	}
	servicetest.NoError(t, stop())
	db := look(t, c.Data)
	if row := sessionRow(t, db, 1); !strings.Contains(said.String(), fmt.Sprintf("messages generated             %d\n", row.generated.Int64)) {
		t.Errorf("got\n%s\nwant the figures of %+v", said, row)
	}
}

func TestOnceWaitsForTheSessionOfAnotherClient(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Once = true
	c.Interaction.IntervalSeconds = 1
	c.Listen = servertest.FreeAddress(t)
	said, stop := start(t, c)
	// MS1 accepts a session before MS3 has its partitions, which -once waits for.
	servicetest.Eventually(t, 30*time.Second, "another client's session", func() bool {
		status, _ := get(t, "http://"+c.Listen+"/start?interval=600")
		return status == http.StatusAccepted
	})
	said.Find(t, `waiting for another client: session 1 is running`)
	expect(t, http.StatusOK, "http://"+c.Listen+"/stop")
	if groups := said.Find(t, `\nsession (\d+) \((.*)\)\n`); groups[1] != "2" || groups[2] != "interval elapsed" {
		t.Errorf("it sums up session %s (%s), want session 2 (interval elapsed)", groups[1], groups[2])
	}
	servicetest.NoError(t, stop())
	if n := number(t, look(t, c.Data), "SELECT COUNT(*) FROM sessions WHERE end_reason = 'stopped' AND id = 1"); n != 1 {
		t.Error("session 1 was not stopped by its client")
	}
}

func TestASummaryOutlivesAFloodOfRequests(t *testing.T) {
	t.Parallel()
	c := usual(t)
	c.Logging.MaxSizeMegabytes, c.Logging.MaxFiles = 1, 1
	url, _ := serve(t, c)
	expect(t, http.StatusAccepted, url+"/start?interval=600")
	expect(t, http.StatusOK, url+"/stop")
	query := strings.Repeat("x", 8_000)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 200 { // 12 MB as they once were logged
				resp, err := (&http.Client{Transport: transport}).Get(url + "/start?" + query)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
			}
		})
	}
	clients.Wait()
	text, err := os.ReadFile(filepath.Join(c.Data, "ms1.log"))
	if err != nil || !strings.Contains(string(text), "session 1: messages generated: ") || len(text) > 200_000 {
		t.Errorf("%v, and the log of %d bytes has no summary, or too much beside it", err, len(text))
	}
}

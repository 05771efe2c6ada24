package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/segmentio/kafka-go"
	_ "modernc.org/sqlite"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/message"
)

const (
	readyTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
	pollEvery    = 100 * time.Millisecond
	mariadbTime  = "2006-01-02 15:04:05.000000"
)

// programs is a directory of binaries to measure: ms1, ms2 and ms3 between real
// servers, allinone with embedded ones.
type programs struct {
	name, dir string
	ms3       int    // processes of ms3
	tls       string // directory of certificate.pem and key.pem for all links; empty: no TLS
	env       string // variables of ms1, ms2 and ms3 with their values, separated by spaces
}

// parsePrograms parses NAME=DIR[,ms3=N][,tls=DIR][,VARIABLE=VALUE]….
func parsePrograms(text string) (programs, error) {
	name, dir, ok := strings.Cut(text, "=")
	if !ok || name == "" || dir == "" {
		return programs{}, fmt.Errorf("expected NAME=DIR, found %q", text)
	}
	p := programs{name: name, dir: dir, ms3: 1}
	for {
		at := strings.LastIndex(p.dir, ",")
		option, value, ok := strings.Cut(p.dir[at+1:], "=")
		switch {
		case at < 0 || !ok:
			return p, nil
		case option == "ms3":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 {
				return p, fmt.Errorf("expected NAME=DIR,ms3=N, found %q", text)
			}
			p.ms3 = n
		case option == "tls":
			if p.tls, _ = filepath.Abs(value); value == "" { // the programs run elsewhere
				return p, fmt.Errorf("expected NAME=DIR,tls=DIR, found %q", text)
			}
		default:
			p.env = strings.TrimSpace(option + "=" + value + " " + p.env)
		}
		p.dir = p.dir[:at]
	}
}

// revision returns the commit that a directory of binaries was built from, ""
// if they do not know it.
func (p programs) revision() string {
	for _, name := range []string{"ms1", "allinone"} {
		info, err := buildinfo.ReadFile(filepath.Join(p.dir, name))
		if err != nil {
			continue
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return ""
}

// environment is the parts between which the services run.
type environment struct {
	parts     string // real or embedded
	brokers   []string
	tlsBroker string         // where the first of them speaks TLS
	database  *mysql.Config  // nil: embedded
	processes map[string]int // broker and database, keyed by their names
	// link returns the address by which a service reaches another, given that
	// at which the other listens. A test puts a slow proxy in between.
	link func(hop, address string) string
}

// system is the services while they run.
type system struct {
	dir       string
	running   []*process
	processes map[string][]int
	client    *http.Client
	scheme    string // of all services: http or https
	ms1       string
	metrics   []string // addresses
	rows      string   // the query of a session's stamps
	layout    string   // of a stamp in it
	db        *sql.DB
	close     []func()
}

type process struct {
	name string
	cmd  *exec.Cmd
	log  string // file
	done chan struct{}
}

// start starts the programs and waits until a session can be started. Spans go
// to the collector, if there is one.
func start(ctx context.Context, e environment, p programs, collector string) (s *system, err error) {
	dir, err := os.MkdirTemp("", "tricycle-bench-")
	if err != nil {
		return nil, err
	}
	s = &system{dir: dir, client: http.DefaultClient, scheme: "http", processes: map[string][]int{}, close: []func(){func() { _ = os.RemoveAll(dir) }}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	for name, pid := range e.processes {
		s.processes[name] = []int{pid}
	}
	tracing := map[string]any{"endpoint": collector}
	if e.database == nil {
		err = s.startAllinone(ctx, e, p, tracing)
	} else {
		err = s.startServices(ctx, e, p, tracing)
	}
	return s, err
}

func (s *system) startAllinone(ctx context.Context, e environment, p programs, tracing map[string]any) (err error) {
	s.ms1 = freeAddress()
	settings := map[string]any{"tracing": tracing}
	if len(e.brokers) > 0 {
		settings["kafka"] = map[string]any{"brokers": e.brokers, "topic": "bench." + rand.Text()}
	}
	if err := s.run(p, "allinone", "allinone", settings, "-listen", s.ms1, "-data", s.dir); err != nil {
		return err
	}
	if err := s.ready(ctx, s.ms1); err != nil {
		return err
	}
	s.metrics = []string{s.ms1}
	for _, name := range []string{"ms2", "ms3"} {
		address, err := loggedAddress(filepath.Join(s.dir, name+".log"))
		if err != nil {
			return err
		}
		s.metrics = append(s.metrics, address)
	}
	s.layout = message.Layout
	return s.openDatabase("sqlite", "file:"+filepath.Join(s.dir, "tricycle.db")+"?mode=ro")
}

func (s *system) startServices(ctx context.Context, e environment, p programs, tracing map[string]any) error {
	config, drop, err := createDatabase(ctx, e.database)
	if err != nil {
		return err
	}
	s.close = append(s.close, drop)
	password := filepath.Join(s.dir, "password")
	if err := os.WriteFile(password, []byte(config.Passwd+"\n"), 0o600); err != nil {
		return err
	}
	via := func(hop, address string) string {
		if e.link != nil {
			return e.link(hop, address)
		}
		return address
	}
	topic := "bench." + rand.Text()
	client := &kafka.Client{Addr: kafka.TCP(e.brokers...), Transport: &kafka.Transport{}}
	s.close = append(s.close, client.Transport.(*kafka.Transport).CloseIdleConnections, func() { deleteTopics(client, topic, topic+".dead") })
	broker := map[string]any{"brokers": e.brokers, "topic": topic, "dead_letter_topic": topic + ".dead"}
	database := map[string]any{"address": via(commit, config.Addr), "name": config.DBName, "user": config.User, "password_file": password}
	ms1, ms2 := freeAddress(), freeAddress()
	s.ms1, s.metrics = ms1, []string{ms1, ms2}
	with := func(own, more map[string]any) map[string]any { maps.Copy(own, more); return own }
	services, links, webSocket := map[string]any{"tracing": tracing}, map[string]any{}, "ws"
	if p.tls != "" { // older revisions have no such keys
		ca := filepath.Join(p.tls, "certificate.pem")
		client, err := credentials.Certificates{CAFile: ca}.Client("tls")
		if err != nil {
			return err
		}
		s.client, s.scheme, webSocket = &http.Client{Transport: &http.Transport{TLSClientConfig: client}}, "https", "wss"
		s.close = append(s.close, s.client.CloseIdleConnections)
		broker["brokers"], broker["tls"] = []string{e.tlsBroker}, map[string]any{"enabled": true, "ca_file": ca}
		database["tls"] = map[string]any{"mode": "verify-ca", "ca_file": ca}
		services["tls"] = map[string]any{"certificate_file": ca, "key_file": filepath.Join(p.tls, "key.pem")}
		links["ca_file"] = ca
	}
	if err := s.run(p, "ms2", "ms2", with(map[string]any{"listen": ms2, "kafka": broker}, services)); err != nil {
		return err
	}
	for i := range p.ms3 {
		address := freeAddress()
		s.metrics = append(s.metrics, address)
		if err := s.run(p, "ms3", fmt.Sprintf("ms3-%d", i+1), with(map[string]any{
			"listen": address, "kafka": broker, "group_id": topic,
			"ms1": with(map[string]any{"url": s.scheme + "://" + via(toMS1, ms1) + "/store"}, links),
		}, services)); err != nil {
			return err
		}
	}
	if err := s.run(p, "ms1", "ms1", with(map[string]any{
		"listen": ms1, "ms2": with(map[string]any{"url": webSocket + "://" + via(toMS2, ms2) + "/ws"}, links), "database": database,
	}, services)); err != nil {
		return err
	}
	for _, address := range s.metrics {
		if err := s.ready(ctx, address); err != nil {
			return err
		}
	}
	s.layout = mariadbTime
	return s.openDatabase("mysql", config.FormatDSN())
}

func (s *system) openDatabase(driver, dsn string) (err error) {
	s.rows = "SELECT service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp FROM messages WHERE session_id = ? ORDER BY 1"
	s.db, err = sql.Open(driver, dsn)
	if err == nil {
		s.close = append(s.close, func() { _ = s.db.Close() })
	}
	return err
}

// run starts a program with settings, as JSON, which is YAML too.
func (s *system) run(p programs, name, as string, settings map[string]any, args ...string) error {
	text, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	file := filepath.Join(s.dir, as+".yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	console, err := os.Create(filepath.Join(s.dir, as+".console"))
	if err != nil {
		return err
	}
	defer console.Close()
	path, err := filepath.Abs(filepath.Join(p.dir, name))
	if err != nil {
		return err
	}
	cmd := exec.Command(path, append([]string{"-config", file}, args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, console, console
	if name != "allinone" {
		cmd.Env = append(os.Environ(), strings.Fields(p.env)...)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	started := &process{name: name, cmd: cmd, log: console.Name(), done: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(started.done) }()
	s.running = append(s.running, started)
	s.processes[name] = append(s.processes[name], cmd.Process.Pid)
	return nil
}

// stop stops the programs in the reverse order of their start, and deletes
// everything that they have written.
func (s *system) stop() (err error) {
	for i := len(s.running) - 1; i >= 0; i-- {
		p := s.running[i]
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		if !p.cmd.ProcessState.Success() {
			err = errors.Join(err, fmt.Errorf("%s: %s: %s", p.name, p.cmd.ProcessState, lastLines(p.log)))
		}
	}
	for i := len(s.close) - 1; i >= 0; i-- {
		s.close[i]()
	}
	return err
}

func lastLines(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	text = bytes.TrimSpace(text)
	return string(text[max(0, len(text)-1000):])
}

// ready waits until a service is ready.
func (s *system) ready(ctx context.Context, address string) error {
	return s.poll(ctx, readyTimeout, "readiness of "+address, func() bool {
		status, err := get(ctx, s.client, s.scheme+"://"+address+"/readyz", nil)
		return err == nil && status == http.StatusOK
	})
}

// poll waits for a condition while the programs run.
func (s *system) poll(ctx context.Context, long time.Duration, what string, condition func() bool) error {
	for begin := time.Now(); !condition(); {
		for _, p := range s.running {
			select {
			case <-p.done:
				return fmt.Errorf("wait for %s: %s has ended: %s", what, p.name, lastLines(p.log))
			default:
			}
		}
		if time.Since(begin) > long {
			return fmt.Errorf("wait for %s: %s: %w", what, long, context.DeadlineExceeded)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
	return nil
}

// trial runs a session and returns its figures.
func (s *system) trial(ctx context.Context, seconds, inFlight int) (t Trial, err error) {
	before, err := cpuTimes(s.processes)
	if err != nil {
		return t, err
	}
	dropped, err := s.dropped(ctx)
	if err != nil {
		return t, err
	}
	query := url.Values{"interval": {strconv.Itoa(seconds)}, "in_flight": {strconv.Itoa(inFlight)}}
	var started struct {
		SessionID int64 `json:"session_id"`
	}
	if status, err := get(ctx, s.client, s.scheme+"://"+s.ms1+"/start?"+query.Encode(), &started); err != nil || status != http.StatusAccepted {
		return t, errors.Join(fmt.Errorf("start a session: status %d", status), err)
	}
	var answer struct {
		State   string `json:"state"`
		Session struct {
			Stored int64 `json:"stored"`
			Lost   int64 `json:"lost"`
			Resent int64 `json:"resent"`
		} `json:"session"`
	}
	select { // questions cost MS1 time
	case <-time.After(time.Duration(seconds) * time.Second):
	case <-ctx.Done():
		return t, ctx.Err()
	}
	if err := s.poll(ctx, 2*time.Minute, "the end of the session", func() bool {
		_, err := get(ctx, s.client, s.scheme+"://"+s.ms1+"/status", &answer)
		return err == nil && answer.State == "idle"
	}); err != nil {
		return t, err
	}
	after, err := cpuTimes(s.processes)
	if err != nil {
		return t, err
	}
	rows, err := s.stamps(ctx, started.SessionID)
	if err == nil && (len(rows) == 0 || int64(len(rows)) != answer.Session.Stored) {
		err = fmt.Errorf("session %d: %d rows, expected %d", started.SessionID, len(rows), answer.Session.Stored)
	}
	if err != nil {
		return t, err
	}
	t = Trial{
		InFlight: inFlight, Messages: answer.Session.Stored, Lost: answer.Session.Lost, Resent: answer.Session.Resent,
		PerSecond: perSecond(rows), Times: timesOf(rows, inFlight), CPU: map[string]float64{}, Memory: map[string]float64{},
	}
	for name := range after {
		t.CPU[name] = micros(after[name]-before[name]) / float64(len(rows))
	}
	for name, pids := range s.processes {
		for _, pid := range pids {
			peak, err := peakMemory(pid)
			if err != nil {
				return t, err
			}
			t.Memory[name] = max(t.Memory[name], peak)
		}
	}
	t.SpansDropped, err = s.dropped(ctx)
	t.SpansDropped -= dropped
	return t, err
}

// dropped returns the spans that were dropped so far.
func (s *system) dropped(ctx context.Context) (sum float64, err error) {
	for _, address := range s.metrics {
		n, err := counter(ctx, s.client, s.scheme+"://"+address+"/metrics", "tricycle_spans_dropped_total")
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// stamps returns the rows of a session.
func (s *system) stamps(ctx context.Context, session int64) (all []row, err error) {
	found, err := s.db.QueryContext(ctx, s.rows, session)
	if err != nil {
		return nil, fmt.Errorf("read the rows: %w", err)
	}
	defer found.Close()
	for found.Next() {
		var text [4]string
		var r row
		if err := found.Scan(&text[0], &text[1], &text[2], &text[3]); err != nil {
			return nil, fmt.Errorf("read the rows: %w", err)
		}
		for i := range r {
			if r[i], err = time.Parse(s.layout, text[i]); err != nil {
				return nil, fmt.Errorf("read the rows: %w", err)
			}
		}
		all = append(all, r)
	}
	return all, found.Err()
}

// createDatabase creates a database of this run's own and returns how to
// connect to it, and a function that drops it.
func createDatabase(ctx context.Context, server *mysql.Config) (*mysql.Config, func(), error) {
	// The account of .ci/servers may create databases of this prefix.
	name := "tricycle_test_bench_" + strings.ToLower(rand.Text()[:8])
	admin, err := sql.Open("mysql", server.FormatDSN())
	if err != nil {
		return nil, nil, err
	}
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("create a database: %w", err), admin.Close())
	}
	config := server.Clone()
	config.DBName = name
	return config, func() {
		_, _ = admin.Exec("DROP DATABASE " + name) // the server is for tests, or ends with the run
		_ = admin.Close()
	}, nil
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0" // the service that listens there reports the error
	}
	defer l.Close()
	return l.Addr().String()
}

// loggedAddress returns the address of the service that its log reports.
func loggedAddress(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(text) {
		var entry struct {
			Address string `json:"address"`
		}
		if json.Unmarshal(line, &entry) == nil && entry.Address != "" {
			return entry.Address, nil
		}
	}
	return "", fmt.Errorf("log %s: expected a line with an address", file)
}

// get reads the JSON answer to a GET request.
func get(ctx context.Context, client *http.Client, url string, answer any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if answer != nil {
		err = json.NewDecoder(resp.Body).Decode(answer)
	}
	return resp.StatusCode, err
}

// Package e2e tests the stack that `docker compose up` starts: real containers,
// from the first health check to the database that outlives them.
package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// stack is a Compose project in a copy of compose.yaml and the directory compose.
// A test may change its files without effect on those of the user.
type stack struct {
	t         *testing.T
	directory string   // the copy
	files     []string // Compose files in the copy, instead of compose.yaml
	project   string
	env       []string
	ms1       string // http://host:port
	jaeger    string
}

// newStack creates the copy, and starts nothing. The cleanup of
// the test removes everything, including volumes.
func newStack(t *testing.T) *stack {
	t.Helper()
	if os.Getenv("TRICYCLE_TEST_COMPOSE") == "" {
		t.Skip("TRICYCLE_TEST_COMPOSE: must be 1, with a Docker engine, Compose and the images")
	}
	s := &stack{t: t, directory: t.TempDir()}
	s.run("cp", "-rL", "../../compose.yaml", "../../compose", s.directory) // through links: under Bazel a directory consists of them
	s.run("chmod", "-R", "a+rX", s.directory)
	s.project = fmt.Sprintf("tricycle-e2e-%d-%d", os.Getpid(), time.Now().UnixNano())
	s.env = os.Environ()
	for name, url := range map[string]*string{"MS1": &s.ms1, "JAEGER": &s.jaeger, "MARIADB": new(string)} {
		address := servertest.FreeAddress(t)
		*url = "http://" + address
		s.env = append(s.env, "TRICYCLE_"+name+"_PORT="+address[strings.Index(address, ":")+1:])
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.try("docker", s.compose("logs", "--no-color", "--tail", "12")...)
			t.Logf("the last lines of every container:\n%s", out)
		}
		if out, err := s.try("docker", s.compose("--profile", "inspect", "down", "--volumes", "--timeout", "20")...); err != nil {
			t.Errorf("removing the stack: %v\n%s", err, out)
		}
	})
	return s
}

// override adds a file compose.override.yaml, as a user does who changes settings.
func (s *stack) override(text string) {
	s.t.Helper()
	servicetest.File(s.t, filepath.Join(s.directory, "compose.override.yaml"), text)
}

// proxy gives the Docker client a proxy for its containers, which nobody
// answers.
func (s *stack) proxy() {
	s.t.Helper()
	const nobody = "http://127.0.0.1:9"
	text := fmt.Sprintf(`{"proxies": {"default": {"httpProxy": %[1]q, "httpsProxy": %[1]q, "allProxy": %[1]q, "noProxy": "localhost,127.0.0.1"}}}`, nobody)
	s.env = append(s.env, "DOCKER_CONFIG="+filepath.Dir(servicetest.File(s.t, "config.json", text)))
}

// compose returns the arguments of docker for a command of Compose.
func (s *stack) compose(args ...string) []string {
	all := []string{"compose", "-p", s.project}
	if s.files == nil {
		all = append(all, "--project-directory", s.directory)
	}
	for _, name := range s.files {
		all = append(all, "-f", filepath.Join(s.directory, name))
	}
	return append(all, args...)
}

// try runs a command and returns what it prints, stderr behind stdout.
func (s *stack) try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = s.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	timer := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Run()
	return stdout.String() + stderr.String(), err
}

// run runs a command that has to succeed.
func (s *stack) run(name string, args ...string) string {
	s.t.Helper()
	out, err := s.try(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (s *stack) docker(args ...string) string {
	s.t.Helper()
	return s.run("docker", args...)
}

// up starts the stack, or the services named, and returns how long it took
// until all were healthy.
func (s *stack) up(args ...string) time.Duration {
	s.t.Helper()
	from := time.Now()
	s.docker(s.compose(append([]string{"up", "-d", "--wait", "--wait-timeout", "180"}, args...)...)...)
	return time.Since(from)
}

// container is the id of the service's only container.
func (s *stack) container(service string) string {
	s.t.Helper()
	ids := strings.Fields(s.docker(s.compose("ps", "-a", "-q", service)...))
	if len(ids) != 1 {
		s.t.Fatalf("%d containers of %s, want one", len(ids), service)
	}
	return ids[0]
}

// session is the session in /status.
type session struct {
	ID         int64   `json:"id"`
	Generated  int     `json:"generated"`
	Stored     int     `json:"stored"`
	Resent     int     `json:"resent"`
	Duplicates int     `json:"duplicates"`
	Lost       int     `json:"lost"`
	EndReason  string  `json:"end_reason"`
	Seconds    float64 `json:"total_seconds"`
}

// get asks MS1 and returns the status code, 0 if it does not answer.
func (s *stack) get(path string, answer any) (int, string) {
	code, body := openapitest.At(s.t, "ms1", s.ms1).Get(path)
	if answer != nil && code > 0 && code < 300 {
		if err := json.Unmarshal([]byte(body), answer); err != nil {
			return 0, err.Error()
		}
	}
	return code, body
}

// begin starts a session and returns its number.
func (s *stack) begin(seconds, inFlight int) int64 {
	s.t.Helper()
	var answer struct {
		ID int64 `json:"session_id"`
	}
	if code, body := s.get(fmt.Sprintf("/start?interval=%d&in_flight=%d", seconds, inFlight), &answer); code != http.StatusAccepted {
		s.t.Fatalf("/start: %d %s", code, body)
	}
	return answer.ID
}

func (s *stack) status() (state string, last session) {
	var answer struct {
		State   string  `json:"state"`
		Session session `json:"session"`
	}
	s.get("/status", &answer)
	return answer.State, answer.Session
}

// load starts a session and waits until 500 of its messages have come round.
// It logs their rate, which the machine decides.
func (s *stack) load(seconds, inFlight int) int64 {
	s.t.Helper()
	id, from := s.begin(seconds, inFlight), time.Now()
	s.eventually(20*time.Second, "the session is under load", func() bool {
		_, now := s.status()
		return now.ID == id && now.Stored >= 500
	})
	s.t.Logf("%.0f messages a second", 500/time.Since(from).Seconds())
	return id
}

// end waits until the session ends by itself.
func (s *stack) end(id int64) (last session) {
	s.t.Helper()
	s.eventually(2*time.Minute, "the session has ended", func() bool {
		var state string
		state, last = s.status()
		return state == "idle" && last.ID == id
	})
	return last
}

func (s *stack) eventually(d time.Duration, what string, met func() bool) {
	s.t.Helper()
	servicetest.Eventually(s.t, d, what, met)
}

// sql asks MariaDB in its container with its own client, as the user of the
// services.
func (s *stack) sql(query string) string {
	s.t.Helper()
	return strings.TrimSpace(s.docker(s.compose("exec", "-T", "mariadb", "bash", "-c",
		`MYSQL_PWD=$(</run/secrets/database_password) exec mariadb --user=tricycle --database=tricycle -N -e "$0"`, query)...))
}

// noneLost compares the figures of a session that has ended, and the rows.
func (s *stack) noneLost(id int64, last session) {
	s.t.Helper()
	s.t.Logf("%+v", last)
	if last.Generated != last.Stored+last.Lost || last.Lost != 0 {
		s.t.Errorf("generated %d, stored %d, lost %d: want none lost", last.Generated, last.Stored, last.Lost)
	}
	want := fmt.Sprintf("%d\t%d", last.Stored, last.Stored)
	if got := s.sql(fmt.Sprintf("SELECT COUNT(*), COUNT(DISTINCT service1_timestamp) FROM messages WHERE session_id = %d", id)); got != want {
		s.t.Errorf("rows and keys: got %q, want %q as in the summary", got, want)
	}
}

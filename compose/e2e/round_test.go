package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRound follows the README: start everything, run a session, read the
// summary, stop everything, and read the rows.
func TestRound(t *testing.T) {
	s := newStack(t)
	s.proxy() // as behind a company's proxy, which must not be used
	if out, err := s.try("docker", s.compose("--profile", "inspect", "config", "--quiet")...); err != nil || out != "" {
		t.Fatalf("docker compose config: %v, prints %q, want nothing", err, out)
	}
	t.Logf("healthy after %.1f s", s.up().Seconds())

	id := s.begin(5, 1)
	last := s.end(id)
	if last.Generated == 0 || last.Generated != last.Stored || last.Lost != 0 {
		t.Errorf("%+v: want as many stored as generated, and none lost", last)
	}
	logs := s.docker(s.compose("logs", "--no-log-prefix", "ms1")...)
	for _, line := range []string{
		"GET /start?interval=5&in_flight=1",
		fmt.Sprintf("session %d: total time of the interaction: %.3f s", id, last.Seconds),
		fmt.Sprintf("session %d: messages generated: %d", id, last.Generated),
	} {
		if !strings.Contains(logs, line) {
			t.Errorf("the log of ms1 has no line %q:\n%s", line, logs)
		}
	}
	s.traced(id)
	s.hardened()
	s.separated()

	// In the foreground the lines of Kafka would hide those of the services.
	out, _ := s.try("timeout", append([]string{"--signal=INT", "5", "docker"}, s.compose("up")...)...)
	if attached := lastLine(out, "^Attaching to "); !strings.Contains(attached, "ms2-1") || strings.Contains(attached, "kafka-1") {
		t.Errorf("up prints %q, want the services without kafka:\n%s", attached, out)
	}
	s.docker(s.compose("down")...)
	if out := s.docker(s.compose("ps", "-a", "-q")...); out != "" {
		t.Fatalf("containers after down: %s", out)
	}
	count := strings.TrimSpace(s.docker(s.compose("run", "--rm", "-T", "--quiet-pull", "inspect", "-N", "-e",
		fmt.Sprintf("SELECT COUNT(*) FROM messages WHERE session_id = %d", id))...))
	if got := lastLine(count, `^\d+$`); got != fmt.Sprint(last.Stored) {
		t.Errorf("inspect prints %q rows, want %d as in the summary", count, last.Stored)
	}
	overview := s.docker(s.compose("run", "--rm", "-T", "inspect")...)
	// The row of the session, without the padding of the columns.
	row := fmt.Sprintf("| 1 | %d | %d | %d | %d | 0 | interval elapsed | %d |", last.Generated, last.Stored, last.Resent, last.Duplicates, last.Stored)
	if !strings.Contains(strings.Join(strings.Fields(overview), " "), row) || !strings.Contains(overview, "p99_ms") || !strings.Contains(overview, "trace_id") {
		t.Errorf("inspect prints no row %q, or no hops, or no traces:\n%s", row, overview)
	}
	if log := s.docker(s.compose("run", "--rm", "-T", "log")...); !strings.Contains(log, `"message":"GET /start?interval=5&in_flight=1"`) {
		t.Errorf("the log file has no line of /start:\n%s", log)
	}

	// A GUI tool connects to the database alone, through the published port.
	s.up("mariadb")
	if services := strings.Fields(s.docker(s.compose("ps", "--services")...)); len(services) != 1 {
		t.Errorf("%v are running, want mariadb alone", services)
	}
	if rows := s.sql("SELECT COUNT(*) FROM messages"); rows != fmt.Sprint(last.Stored) {
		t.Errorf("%s rows after the database alone was started, want %d", rows, last.Stored)
	}
}

// TestReadme gives a shell the block of the README as one text, as it is pasted.
func TestReadme(t *testing.T) {
	s := newStack(t)
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	const load, up = "```sh\nbazel run //:load\n", "docker compose up -d --wait\n"
	_, block, found := strings.Cut(string(readme), load+up)
	if !found {
		t.Fatalf("README.md must have a block that begins %q", load+up)
	}
	block, _, _ = strings.Cut(up+block, "```") // the images are there
	block = strings.ReplaceAll(block, "http://127.0.0.1:8080", s.ms1)
	s.env = append(s.env, "COMPOSE_PROJECT_NAME="+s.project)
	out := s.run("sh", "-ec", "cd "+s.directory+"\n"+block)
	for _, text := range []string{"total time of the interaction", "messages generated", "interval elapsed", "p99_ms"} {
		if !strings.Contains(out, text) {
			t.Errorf("the README's commands print no %q:\n%s", text, out)
		}
	}
}

// lastLine returns the last line of the text that the pattern matches, because
// Compose also prints its own messages.
func lastLine(text, pattern string) (found string) {
	matches := regexp.MustCompile(pattern)
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); matches.MatchString(line) {
			found = line
		}
	}
	return found
}

// traced looks for the traces of some rows of a session in Jaeger.
func (s *stack) traced(id int64) {
	s.t.Helper()
	ids := strings.Fields(s.sql(fmt.Sprintf(`SELECT LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/',
		DATE_FORMAT(service1_timestamp, '%%Y-%%m-%%dT%%H:%%i:%%s.%%fZ')), 256), 32)
		FROM messages WHERE session_id = %d ORDER BY RAND() LIMIT 20`, id)))
	if len(ids) == 0 {
		s.t.Fatal("the session has no rows")
	}
	for _, trace := range ids {
		var found string
		s.eventually(30*time.Second, "Jaeger has the five spans of the trace "+trace, func() bool {
			found = s.spans(trace)
			return found == "ms1 INSERT messages, ms1 POST /store, ms1 round, ms2 receive tricycle.messages, ms3 process tricycle.messages"
		})
	}
}

// spans names the services and the spans of a trace, sorted.
func (s *stack) spans(trace string) string {
	resp, err := http.Get(s.jaeger + "/api/traces/" + trace)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	var answer struct {
		Data []struct {
			Spans []struct {
				Name    string `json:"operationName"`
				Process string `json:"processID"`
			} `json:"spans"`
			Processes map[string]struct {
				Service string `json:"serviceName"`
			} `json:"processes"`
		} `json:"data"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Data) != 1 {
		return fmt.Sprintf("%d traces, %v", len(answer.Data), err)
	}
	var names []string
	for _, span := range answer.Data[0].Spans {
		names = append(names, answer.Data[0].Processes[span.Process].Service+" "+span.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
)

// A session of this length is under load when the fault strikes, and still
// when it is over.
const (
	faultSession  = 20 // seconds
	faultInFlight = 64
	outage        = 10 * time.Second
)

func TestFaults(t *testing.T) {
	s := newStack(t)
	s.up()
	under := func(name string, fault func(s *stack)) {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			id := s.load(faultSession, faultInFlight)
			fault(&s)
			last := s.end(id)
			s.noneLost(id, last)
			s.up() // all healthy again
		})
	}

	for _, service := range []string{"ms2", "ms3", "kafka", "mariadb"} {
		under(service+" is killed and started again", func(s *stack) {
			s.docker("kill", s.container(service))
			time.Sleep(2 * time.Second) // the length of the outage is part of the test
			s.docker("start", s.container(service))
		})
	}
	for _, service := range []string{"ms2", "ms3", "kafka", "mariadb", "ms1"} {
		under(service+" is cut off for 10 s", func(s *stack) {
			container := s.container(service)
			networks := strings.Fields(s.docker("inspect", "-f", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", container))
			for _, network := range networks {
				s.docker("network", "disconnect", network, container)
			}
			time.Sleep(outage)
			for _, network := range networks {
				s.docker("network", "connect", "--alias", service, network, container)
			}
		})
	}
	under("jaeger is stopped", func(s *stack) {
		s.docker(s.compose("stop", "jaeger")...)
	})

	t.Run("ms1 is killed and started again", func(t *testing.T) {
		s := *s
		s.t = t
		id := s.load(600, faultInFlight)
		s.docker("kill", s.container("ms1"))
		s.docker("start", s.container("ms1"))
		var last session
		s.eventually(30*time.Second, "the session is closed as interrupted", func() bool {
			_, last = s.status()
			return last.ID == id && last.EndReason == "interrupted"
		})
		// Messages in flight return late; then rows and figures agree.
		query := fmt.Sprintf(`SELECT CONCAT(stored, ' ', (SELECT COUNT(*) FROM messages WHERE session_id = id))
			FROM sessions WHERE id = %d AND generated IS NULL AND lost IS NULL`, id)
		var figures string
		since := time.Now()
		s.eventually(time.Minute, "the rows are as many for 5 s", func() bool {
			if now := s.sql(query); now != figures {
				figures, since = now, time.Now()
			}
			return time.Since(since) > 5*time.Second
		})
		if stored, rows, _ := strings.Cut(figures, " "); stored != rows || stored == "" {
			t.Errorf("the interrupted session has %q stored, want its %q rows", stored, rows)
		}
		next := s.begin(3, faultInFlight)
		s.noneLost(next, s.end(next))
	})
}

// TestMemory measures the memory of the services during a session with 256
// messages in flight.
func TestMemory(t *testing.T) {
	s := newStack(t)
	s.up()
	id := s.load(20, 256)
	most := map[string]float64{}
	s.eventually(time.Minute, "the session ends", func() bool {
		for _, service := range []string{"ms1", "ms2", "ms3"} {
			used := strings.Fields(s.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", s.container(service)))[0]
			most[service] = max(most[service], mebibytes(t, used))
		}
		state, _ := s.status()
		return state == "idle"
	})
	s.noneLost(id, s.end(id))
	for service, used := range most {
		t.Logf("%s: at most %.1f MiB", service, used)
		if used >= 64 {
			t.Errorf("%s took %.1f MiB, want less than 64", service, used)
		}
	}
}

func mebibytes(t *testing.T, text string) float64 {
	t.Helper()
	for unit, factor := range map[string]float64{"GiB": 1024, "MiB": 1, "KiB": 1.0 / 1024} {
		if number, found := strings.CutSuffix(text, unit); found {
			v, err := strconv.ParseFloat(number, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v * factor
		}
	}
	t.Fatalf("got %q, want a size in MiB", text)
	return 0
}

// TestScale: three MS3 share the partitions, and a second MS2 takes over when
// the first dies.
func TestScale(t *testing.T) {
	s := newStack(t)
	s.up("--scale", "ms3=3", "--scale", "ms2=2")
	id := s.load(faultSession, faultInFlight)
	connections := func(container string) float64 {
		return openapitest.At(t, "ms2", "http://"+s.address(container)+":8081").Metric("tricycle_ms2_connections")
	}
	both := strings.Fields(s.docker(s.compose("ps", "-q", "ms2")...))
	if len(both) != 2 {
		t.Fatalf("%d MS2 are running, want 2", len(both))
	}
	active, standby := both[0], both[1]
	if connections(standby) > 0 {
		active, standby = standby, active
	}
	if connections(active) != 1 || connections(standby) != 0 {
		t.Fatalf("MS1 has %v and %v connections to the two MS2, want one to one of them", connections(active), connections(standby))
	}
	s.docker("kill", active)
	s.eventually(15*time.Second, "the other MS2 takes over", func() bool { return connections(standby) == 1 })
	s.noneLost(id, s.end(id))

	members := strings.Fields(s.docker(s.compose("ps", "-q", "ms3")...))
	if len(members) != 3 {
		t.Errorf("%d MS3 are running, want 3", len(members))
	}
	for _, container := range members {
		if n := openapitest.At(t, "ms3", "http://"+s.address(container)+":8082").Metric("tricycle_ms3_store_duration_seconds_count"); n == 0 {
			t.Errorf("one of the three MS3 has posted nothing")
		}
	}
}

// address is the container's in the network of the messages, which its host
// can reach.
func (s *stack) address(container string) string {
	s.t.Helper()
	return strings.TrimSpace(s.docker("inspect", "-f", `{{(index .NetworkSettings.Networks "`+s.project+`_messages").IPAddress}}`, container))
}

// TestDownInTheMiddle: MS1 stops first, and drains while the others still
// carry its messages home.
func TestDownInTheMiddle(t *testing.T) {
	s := newStack(t)
	s.up()
	id := s.load(600, faultInFlight)
	s.docker(s.compose("stop")...)
	logs := s.docker(s.compose("logs", "--no-log-prefix", "ms1")...)
	if !strings.Contains(logs, fmt.Sprintf("session %d ended (shutdown)", id)) || !strings.Contains(logs, "messages generated") {
		t.Errorf("no summary in the log of ms1:\n%s", logs)
	}
	for _, service := range []string{"ms1", "ms2", "ms3"} {
		if code := strings.TrimSpace(s.docker("inspect", "-f", "{{.State.ExitCode}}", s.container(service))); code != "0" {
			t.Errorf("%s exited with %s, want 0", service, code)
		}
	}
	out := s.docker(s.compose("run", "--rm", "-T", "inspect", "-N", "-e", fmt.Sprintf(`
		SELECT CONCAT(generated, ' ', stored, ' ', lost, ' ', (SELECT COUNT(*) FROM messages WHERE session_id = id))
		FROM sessions WHERE id = %d`, id))...)
	var generated, stored, lost, rows int
	if _, err := fmt.Sscanf(lastLine(out, `^\d+ \d+ \d+ \d+$`), "%d %d %d %d", &generated, &stored, &lost, &rows); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if generated != stored+lost || stored != rows || lost != 0 {
		t.Errorf("generated %d, stored %d, lost %d, %d rows: want none lost", generated, stored, lost, rows)
	}
}

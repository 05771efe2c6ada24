package e2e

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPasswords: the passwords stay with the data, a directory replaces them,
// and what is missing in it is named.
func TestPasswords(t *testing.T) {
	s := newStack(t)
	password := func() string {
		return s.docker(s.compose("exec", "-T", "mariadb", "cat", "/run/secrets/database_password")...)
	}
	s.up("mariadb")
	if mounts := s.docker("inspect", "-f", "{{range .Mounts}}{{.Destination}} {{end}}", s.container("passwords")); strings.Contains(mounts, "/var/lib/mysql") {
		t.Error("passwords has a volume without a name, which down leaves behind")
	}
	first := password()
	s.docker(s.compose("down")...)
	s.up("mariadb")
	if got := password(); got != first || len(got) < 48 {
		t.Errorf("got password %q after down, want %q, of 48 letters", got, first)
	}
	s.docker(s.compose("down", "-v")...)
	s.up("mariadb")
	if got := password(); got == first {
		t.Error("got the same password after down -v, want another")
	}
	s.docker(s.compose("down", "-v")...)

	given := filepath.Join(t.TempDir(), "given")
	if err := os.Mkdir(given, 0o755); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "TRICYCLE_PASSWORDS="+given)
	write := func(name string, mode os.FileMode) {
		if err := errors.Join(os.WriteFile(filepath.Join(given, name), []byte("mine"), 0o600), os.Chmod(filepath.Join(given, name), mode)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(want string) {
		t.Helper()
		if out, err := s.try("docker", s.compose("run", "--rm", "-T", "passwords")...); err == nil || !strings.Contains(out, want) {
			t.Errorf("got %v and %q, want %q", err, out, want)
		}
	}
	write("database_password", 0o444)
	refused("passwords: database_root_password: must be in the directory TRICYCLE_PASSWORDS")
	write("database_root_password", 0o600)
	refused("passwords: database_root_password: must be readable by user 999, got mode -rw-------")
	write("database_root_password", 0o444)
	s.up("mariadb")
	if got := password() + s.sql("SELECT 1"); got != "mine1" {
		t.Errorf("got %q, want the password mine and 1 from a client that uses it", got)
	}
}

// TestMissingImages: the error names the commands that build the images.
func TestMissingImages(t *testing.T) {
	s := newStack(t)
	s.env = append(s.env, "TRICYCLE_REPOSITORY=127.0.0.1:1/absent") // nobody listens there
	out, err := s.try("docker", s.compose("up", "-d", "--wait", "--no-deps", "ms2")...)
	for _, want := range []string{"bazel run //:load", "docker compose run --rm bazel"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("got %v and\n%s\nwant %q in it", err, out, want)
		}
	}
}

// TestUnreadableConfiguration: a pull under umask 077 has replaced the file.
// MariaDB would start with other settings.
func TestUnreadableConfiguration(t *testing.T) {
	s := newStack(t)
	for _, c := range []struct{ file, service, want string }{
		{"config/ms2.yaml", "ms2", "ms2: read configuration: open /etc/tricycle/ms2.yaml: permission denied: " +
			"must be readable by user 65532, got mode -rw------- of /etc/tricycle/ms2.yaml (chmod a+rX)"},
		{"mariadb/tricycle.cnf", "passwords", "passwords: /mariadb/tricycle.cnf: must be readable by user 999, got mode -rw------- (chmod a+rX)"},
	} {
		if err := os.Chmod(filepath.Join(s.directory, "compose", c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := s.try("docker", s.compose("run", "--rm", "-T", "--no-deps", c.service)...)
		if err == nil || lastLine(out, "^"+c.service+": ") != c.want {
			t.Errorf("%s: got %v and %q, want %q", c.file, err, out, c.want)
		}
	}
}

func TestPortTaken(t *testing.T) {
	s := newStack(t)
	address := strings.TrimPrefix(s.jaeger, "http://")
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := s.try("docker", s.compose("up", "-d", "jaeger")...)
	if err == nil || !strings.Contains(out, address) {
		t.Errorf("up with a port taken: %v, want an error that names %s:\n%s", err, address, out)
	}
}

// TestWrongPassword: the volume has another password than the file.
func TestWrongPassword(t *testing.T) {
	s := newStack(t)
	s.up("mariadb")
	s.docker(s.compose("down")...)
	s.docker("volume", "rm", s.project+"_passwords") // other passwords are generated
	if out, err := s.try("docker", s.compose("up", "-d", "--wait", "--wait-timeout", "90")...); err == nil {
		t.Fatalf("all are healthy:\n%s", out)
	}
	state := strings.TrimSpace(s.docker("inspect", "-f", "{{.State.Status}} {{.State.Health.Status}} {{.RestartCount}}", s.container("ms1")))
	if state != "running unhealthy 0" {
		t.Errorf("ms1 is %q, want it running, unhealthy, never restarted", state)
	}
	logs := s.docker(s.compose("logs", "--no-log-prefix", "ms1")...)
	if n := strings.Count(logs, "Access denied for user"); n < 1 || n > 2 { // the connection's and the first health check's
		t.Errorf("ms1 logs the cause %d times, want once:\n%s", n, logs)
	}
}

// TestDiskFull: the database's volume is full in the middle of a session, and
// is freed.
func TestDiskFull(t *testing.T) {
	s := newStack(t)
	s.override(`volumes: {mariadb: {driver_opts: {type: tmpfs, device: tmpfs, o: "size=600m,uid=999,gid=999"}}}`)
	s.up()
	id := s.load(40, faultInFlight)
	s.docker(s.compose("exec", "-T", "mariadb", "sh", "-c", "dd if=/dev/zero of=/var/lib/mysql/filler bs=64k 2>/dev/null; ls /var/lib/mysql/filler")...)
	full := false
	s.eventually(50*time.Second, "MariaDB finds the disk full, or the session ends", func() bool {
		state, _ := s.status()
		full = strings.Contains(s.docker(s.compose("logs", "ms1", "mariadb")...), "is full")
		return full || state == "idle"
	})
	if !full {
		t.Error("the disk was full and nobody noticed")
	}
	s.docker(s.compose("exec", "-T", "mariadb", "rm", "/var/lib/mysql/filler")...)
	s.noneLost(id, s.end(id))
}

// TestDeleteOldSessions is the retention that docs/operations.md describes.
func TestDeleteOldSessions(t *testing.T) {
	s := newStack(t)
	s.up()
	for range 2 {
		s.end(s.begin(1, 1))
	}
	s.sql("UPDATE sessions SET ended_at = ended_at - INTERVAL 31 DAY WHERE id = 1")
	remove := func(args ...string) string {
		return s.docker(s.compose(append(append([]string{"run", "--rm", "-T", "inspect"}, args...), "-N", "-e", "source /inspect/delete_old_sessions.sql")...)...)
	}
	left := func() string {
		return s.sql("SELECT CONCAT(GROUP_CONCAT(id), ' ', (SELECT COUNT(DISTINCT session_id) FROM messages)) FROM sessions")
	}
	if remove(); left() != "1,2 2" {
		t.Errorf("without a number of days there are sessions and messages of %q, want 1,2 2", left())
	}
	if out := remove("--init-command=SET @days = 30"); lastLine(out, `^\d+$`) != "1" || left() != "2 1" {
		t.Errorf("got output %q, sessions and messages of %q, want 2 1", out, left())
	}
	s.sql("DELETE FROM sessions")
	if id := s.begin(1, 1); id != 3 {
		t.Errorf("the next session is %d, want 3", id)
	} else if last := s.end(id); last.Lost != 0 {
		t.Errorf("%+v", last)
	}
}

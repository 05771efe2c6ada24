package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMissingSecret(t *testing.T) {
	s := newStack(t)
	secret := filepath.Join(s.directory, "secrets", "database_password")
	if err := os.Remove(secret); err != nil {
		t.Fatal(err)
	}
	out, err := s.try("docker", s.compose("up", "-d", "mariadb")...)
	if err == nil || !strings.Contains(out, secret) {
		t.Errorf("up without a secret: %v, want an error that names %s:\n%s", err, secret, out)
	}
	s.run(filepath.Join(s.directory, "secrets.sh")) // also for the cleanup of the test
	s.up("mariadb")
}

// TestUnreadableConfiguration: a pull under umask 077 has replaced the file.
func TestUnreadableConfiguration(t *testing.T) {
	s := newStack(t)
	if err := os.Chmod(filepath.Join(s.directory, "config", "ms2.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := s.try("docker", s.compose("run", "--rm", "-T", "--no-deps", "ms2")...)
	const want = "ms2: read configuration: open /etc/tricycle/ms2.yaml: permission denied: " +
		"must be readable by user 65532, got mode -rw------- of /etc/tricycle/ms2.yaml (chmod it, or run compose/secrets.sh)"
	if err == nil || lastLine(out, "^ms2: ") != want {
		t.Errorf("got %v and %q, want %q", err, out, want)
	}
	s.run(filepath.Join(s.directory, "secrets.sh"))
	if info, err := os.Stat(filepath.Join(s.directory, "config", "ms2.yaml")); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("got %v, %v after secrets.sh, want mode 644", info.Mode(), err)
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
	secret := filepath.Join(s.directory, "secrets", "database_password")
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, []byte("another"), 0o444); err != nil {
		t.Fatal(err)
	}
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
	override := filepath.Join(s.directory, "small.yaml")
	if err := os.WriteFile(override, []byte(`
volumes:
  mariadb:
    driver_opts: {type: tmpfs, device: tmpfs, o: "size=600m,uid=999,gid=999"}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	s.override = override
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

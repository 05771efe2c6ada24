package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOwnServers follows docs/operations.md with the servers of another stack.
func TestOwnServers(t *testing.T) {
	servers, s := newStack(t), newStack(t)
	servers.override("services: {mariadb: {networks: [kafka]}}") // one network has both
	servers.up("mariadb", "kafka")

	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Use your own Kafka and MariaDB\n")
	_, text, found := strings.Cut(section, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	if !found {
		t.Fatal("docs/operations.md must have the file compose.override.yaml in its section")
	}
	s.override(strings.NewReplacer("db.example", "mariadb", "broker.example", "kafka",
		"outside: {}", "outside: {external: true, name: "+servers.project+"_kafka}").Replace(text))
	passwords := t.TempDir()
	if err := os.Chmod(passwords, 0o755); err != nil {
		t.Fatal(err)
	}
	password := servers.docker(servers.compose("exec", "-T", "mariadb", "cat", "/run/secrets/database_password")...)
	if err := os.WriteFile(filepath.Join(passwords, "database_password"), []byte(password), 0o644); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "TRICYCLE_PASSWORDS="+passwords)
	s.up()
	if services := strings.Fields(s.docker(s.compose("ps", "--services")...)); len(services) != 4 {
		t.Errorf("%v are running, want jaeger ms1 ms2 ms3", services)
	}
	last := s.end(s.begin(3, 1))
	rows := servers.sql("SELECT COUNT(*) FROM messages")
	if last.Stored == 0 || last.Lost != 0 || rows != fmt.Sprint(last.Stored) {
		t.Errorf("the servers have %s rows, want as many as MS1 has stored and none lost: %+v", rows, last)
	}
}

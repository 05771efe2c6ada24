package servertest_test

import (
	"net"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/servertest"
)

func TestMariaDB(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t, "--autocommit=0")
	if got := d.SQL("SELECT @@global.autocommit"); got != "0" {
		t.Errorf("got autocommit %s, want the option's 0", got)
	}
	d.SQL("CREATE TABLE kept (n INT); INSERT INTO kept VALUES (7); COMMIT")
	d.Kill()
	if _, err := net.Dial("tcp", d.Address); err == nil {
		t.Error("the server still listens after Kill")
	}
	d.Start()
	if got := d.SQL("SELECT n FROM kept"); got != "7" {
		t.Errorf("got %q after a restart, want 7", got)
	}
}

func TestKafka(t *testing.T) {
	t.Parallel()
	k := servertest.Kafka(t, "", "message.max.bytes=20000")
	k.Stop()
	k.Start()
	conn, err := net.Dial("tcp", k.Address)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

package chain

import (
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
)

// With a distant database messages wait and must not count as lost: with
// many in flight the rate must not fall below that of a few.
func TestDistantDatabase(t *testing.T) {
	c := newChain(t)
	r := relaytest.New(t, "127.0.0.1:0", c.db.Address)
	r.Delay = 40 * time.Millisecond
	c.overlays["ms1"]["database"].(settings)["address"] = r.Address
	c.keepsItsRate(4, 8)
}

// In a planned failover the old server becomes read-only and stays alive, its
// connections too, and the address leads to the new one.
func TestDatabaseFailover(t *testing.T) {
	t.Parallel()
	before, after := servertest.MariaDB(t), servertest.MariaDB(t)
	r := relaytest.New(t, "127.0.0.1:0", before.Address)
	old := mariadbtest.On(t, before)
	old.Address = r.Address
	c := newChainOn(t, old)
	c.up()
	id := c.load(600, 64)

	before.SQL("SET GLOBAL read_only=1")
	servicetest.Eventually(t, 10*time.Second, "MS1 reports that it cannot store", func() bool {
		code, _ := c.at("ms1").Get("/readyz")
		return code == http.StatusServiceUnavailable
	})
	dump := exec.Command("bash", "-o", "pipefail", "-c", `mariadb-dump --no-defaults -u root -S "$0" tricycle | mariadb --no-defaults -u root -S "$1" tricycle`, before.Socket, after.Socket)
	if out, err := dump.CombinedOutput(); err != nil {
		t.Fatalf("copy the database: %v\n%s", err, out)
	}
	copied := c.status().Session.Stored
	after.ShareAccount(before)
	r.To(after.Address)
	servicetest.Eventually(t, 15*time.Second, "MS1 is ready again", func() bool {
		code, _ := c.at("ms1").Get("/readyz")
		return code == http.StatusOK
	})
	servicetest.Eventually(t, 15*time.Second, "the session goes on", func() bool { return c.status().Session.Stored >= copied+100 })

	c.db.DB = mariadbtest.On(t, after).DB
	if s := c.stop(); s.ID != id {
		t.Errorf("session %d ended, want %d", s.ID, id)
	}
	c.round(2, 64)
}

// Messages that MS1 never sent, of sessions that never were and of the one
// that runs, must not starve it.
func TestStrangersMessages(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	c.up()
	n, seconds := 24_000, 5
	if os.Getenv("TRICYCLE_TEST_FAULTS") != "" {
		n, seconds = 300_000, 40
	}
	id := c.begin(seconds, 16)
	now := message.StampOf(time.Now())
	var records []kafka.Message
	for i := range n {
		m := message.Message{SessionID: 1_000_000, Service1: now + message.Stamp(i), Service2: now + message.Stamp(i)}
		if i%2 == 0 {
			m.SessionID = id
			m.Service1 -= 3_600_000_000 // an hour before the session, which cannot have made it
		}
		records = append(records, kafka.Message{Key: m.Key().Append(nil), Value: m.Encode()})
	}
	w := kafka.Writer{Addr: kafka.TCP(c.kafka.Brokers...), Topic: c.kafka.Topic, Balancer: &kafka.Hash{}, BatchSize: 1000,
		BatchTimeout: 10 * time.Millisecond, Transport: &kafka.Transport{}}
	defer w.Close()
	servicetest.NoError(t, w.WriteMessages(servicetest.Context(t, 30*time.Second), records...))
	if c.status().State == "idle" {
		t.Fatal("the session ended before the stranger had written")
	}
	s := c.end()
	c.noneLost(s)
	// How many depends on the machine; each slot must have turned over.
	if s.Stored < 4*16 {
		t.Errorf("%d messages stored beside a stranger's, want at least 64", s.Stored)
	}
}

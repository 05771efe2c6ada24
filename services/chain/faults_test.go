package chain

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
)

// slow skips a test that takes minutes unless it was asked for.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("TRICYCLE_TEST_FAULTS") == "" {
		t.Skip("TRICYCLE_TEST_FAULTS is not set: takes minutes")
	}
}

// ownDatabase starts a MariaDB server for one chain.
func ownDatabase(t *testing.T) (*servertest.Database, mariadbtest.Database) {
	t.Helper()
	d := servertest.MariaDB(t)
	return d, mariadbtest.On(t, d)
}

// useKafka makes the chain use other brokers than those of the environment.
// Topics are created with the given number of partitions and replicas.
func (c *chain) useKafka(partitions, replicas int, brokers ...*servertest.Server) {
	c.kafka.Brokers = nil
	for _, b := range brokers {
		c.kafka.Brokers = append(c.kafka.Brokers, b.Address)
	}
	for _, name := range []string{"ms2", "ms3"} {
		c.overlays[name]["kafka"] = settings{"brokers": c.kafka.Brokers, "topic": c.kafka.Topic, "dead_letter_topic": c.kafka.DeadLetterTopic,
			"partitions": partitions, "replication_factor": replicas}
	}
}

// patient makes MS1 wait for longer than a fault can last, also on a busy
// machine. Messages that are lost all the same are a fault of the programs.
func (c *chain) patient() {
	c.overlays["ms1"]["interaction"] = settings{"give_up_after_seconds": 600, "drain_seconds": 60}
}

// patientOn starts a patient chain that uses other brokers, as useKafka has them.
func (c *chain) patientOn(partitions, replicas int, brokers ...*servertest.Server) {
	c.useKafka(partitions, replicas, brokers...)
	c.patient()
	c.up()
}

// survives runs a session of a patient chain in which a fault strikes under
// load, checks that no message was lost, and returns the longest time in which
// none was stored.
func (c *chain) survives(inFlight int, fault func()) (pause time.Duration) {
	c.t.Helper()
	c.load(3600, inFlight)
	servicetest.Eventually(c.t, 30*time.Second, "100 messages/s", func() bool { return c.growth(time.Second) >= 100 })
	fault()
	c.goesOn(100)
	s := c.stop()
	pause = time.Microsecond * time.Duration(c.number(`SELECT MAX(gap) FROM (SELECT TIMESTAMPDIFF(MICROSECOND, LAG(end_timestamp) OVER (ORDER BY end_timestamp), end_timestamp) AS gap
		FROM messages WHERE session_id = ?) gaps`, s.ID))
	c.t.Logf("longest pause %s", pause.Round(time.Millisecond))
	return pause
}

// growth returns how many messages are stored in a while.
func (c *chain) growth(d time.Duration) int64 {
	before := c.status().Session.Stored
	time.Sleep(d)
	return c.status().Session.Stored - before
}

// atMost logs how much longer a pause was than the outage, and compares that with
// a limit that leaves room for a busy machine.
func atMost(t *testing.T, pause, outage, recovery time.Duration) {
	t.Helper()
	t.Logf("paused for %s more than the outage of %s", (pause - outage).Round(time.Millisecond), outage.Round(time.Millisecond))
	if pause > outage+recovery {
		t.Errorf("paused for %s, want at most %s more than the outage of %s", pause, recovery, outage)
	}
}

// admin returns a client of the chain's brokers.
func (c *chain) admin() *kafka.Client {
	transport := cmp.Or(c.brokers, &kafka.Transport{})
	c.t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(c.kafka.Brokers...), Transport: transport, Timeout: 20 * time.Second}
}

// partitions returns the partitions of the message topic as the brokers
// describe them.
func (c *chain) partitions() []kafka.Partition {
	c.t.Helper()
	meta, err := c.admin().Metadata(context.Background(), &kafka.MetadataRequest{Topics: []string{c.kafka.Topic}})
	if err != nil || len(meta.Topics) != 1 || meta.Topics[0].Error != nil {
		return nil
	}
	return meta.Topics[0].Partitions
}

// frozen stops a process for a while as SIGSTOP does.
func frozen(t *testing.T, pid int, d time.Duration) {
	t.Helper()
	servicetest.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	time.Sleep(d)
	servicetest.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
}

func TestServersKilledAndRestarted(t *testing.T) {
	t.Parallel()
	database, server := ownDatabase(t)
	broker := servertest.Kafka(t, "")
	c := newChainOn(t, server)
	c.patientOn(4, 1, broker)
	for _, name := range []string{"ms2", "ms3"} {
		if out := c.running[name].Out.String(); strings.Contains(out, " WRN ") {
			t.Errorf("%s warns of a first start with an empty broker:\n%s", name, out)
		}
	}
	for name, s := range map[string]*servertest.Server{"mariadb": database.Server, "kafka": broker} {
		var outage time.Duration
		pause := c.survives(32, func() {
			began := time.Now()
			s.Kill()
			s.Start()
			outage = time.Since(began)
		})
		t.Log(name)
		atMost(t, pause, outage, 15*time.Second)
		if name == "mariadb" { // the loss of the lock is noticed within a second, perhaps after the session
			servicetest.Eventually(t, 15*time.Second, "MS1 has the lock again", func() bool { return c.running["ms1"].Out.Count("database is ready") >= 2 })
		}
	}
}

// inSync reports whether every partition has a leader and all its replicas.
func (c *chain) inSync() bool {
	found := c.partitions()
	for _, p := range found {
		if len(p.Isr) != len(p.Replicas) || p.Leader.ID == 0 {
			return false
		}
	}
	return len(found) > 0
}

func TestThreeBrokers(t *testing.T) {
	slow(t)
	brokers := servertest.Brokers(t, 3)
	t.Run("a partition without a leader", func(t *testing.T) {
		c := newChain(t)
		c.patientOn(6, 1, brokers...)
		stopped := brokers[0]
		led := 0
		for _, p := range c.partitions() {
			if stopped.Address == fmt.Sprintf("%s:%d", p.Leader.Host, p.Leader.Port) {
				led++
			}
		}
		if led == 0 || led == 6 {
			t.Fatalf("broker 1 leads %d of 6 partitions", led)
		}
		pause := c.survives(64, func() {
			stopped.Stop()
			servicetest.Eventually(t, 15*time.Second, "the others go on", func() bool { return c.growth(time.Second) > 100 })
			for range 50 {
				if code, body := c.at("ms2").Get("/readyz"); code != http.StatusOK {
					t.Fatalf("MS2 is not ready with %d of 6 partitions without a leader: %s", led, body)
				}
				time.Sleep(100 * time.Millisecond)
			}
			stopped.Start()
		})
		atMost(t, pause, 0, 15*time.Second)
	})
}

func TestPartitionsAddedUnderLoad(t *testing.T) {
	slow(t)
	broker := servertest.Kafka(t, "")
	c := newChain(t)
	c.patientOn(2, 1, broker)
	admin := c.admin()
	pause := c.survives(64, func() {
		servicetest.Eventually(t, 30*time.Second, "the topic has five partitions", func() bool {
			// A busy broker can refuse this for a while.
			_, _ = admin.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: c.kafka.Topic, Count: 5}}})
			return len(c.partitions()) == 5
		})
		servicetest.Eventually(t, 30*time.Second, "all five partitions have records", func() bool {
			for p := range 5 {
				resp, err := admin.ListOffsets(t.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{c.kafka.Topic: {kafka.LastOffsetOf(p)}}})
				if err != nil || resp.Topics[c.kafka.Topic][0].LastOffset == 0 {
					return false
				}
			}
			return true
		})
	})
	atMost(t, pause, 0, 10*time.Second)
}

// Kafka deletes records that nobody has fetched, as after a crash without a flush,
// while the session drains. Copies replace them.
func TestRecordsDeletedInTheDrain(t *testing.T) {
	slow(t)
	c := newChain(t)
	c.patient()
	c.up()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.kafka.Brokers...))
	servicetest.NoError(t, err)
	defer client.Close()
	c.load(3600, 1024)
	pid := c.running["ms3"].Process.Pid
	servicetest.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	sent := c.at("ms2").Metric("tricycle_ms2_messages_produced_total")
	servicetest.Eventually(t, 20*time.Second, "Kafka has all messages in flight", func() bool {
		before := sent
		time.Sleep(time.Second)
		sent = c.at("ms2").Metric("tricycle_ms2_messages_produced_total")
		return sent == before
	})
	deletion := kmsg.NewPtrDeleteRecordsRequest()
	deletion.TimeoutMillis = 10_000
	of := kmsg.NewDeleteRecordsRequestTopic()
	of.Topic = c.kafka.Topic
	for _, p := range c.partitions() {
		of.Partitions = append(of.Partitions, kmsg.DeleteRecordsRequestTopicPartition{Partition: int32(p.ID), Offset: -1})
	}
	deletion.Topics = append(deletion.Topics, of)
	if _, err := deletion.RequestWith(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.at("ms1").Get("/stop") // the drain may take longer than its answer is waited for
	}()
	servicetest.Eventually(t, 20*time.Second, "the session drains", func() bool { return c.status().State == "draining" })
	servicetest.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	<-ended
	s := c.end()
	c.noneLost(s)
	if s.Resent == 0 {
		t.Error("nothing was resent: the test deleted nothing")
	}
}

// A table is locked or moved away under load: MS1 reports it, and goes on when it is
// back.
func TestTableTakesNoRows(t *testing.T) {
	slow(t)
	for name, change := range map[string]struct{ away, back, reason string }{
		"locked": {"LOCK TABLES messages READ", "UNLOCK TABLES", "database takes no rows error="},
		"moved":  {"RENAME TABLE messages TO elsewhere", "RENAME TABLE elsewhere TO messages", "messages' doesn't exist"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			c.patient()
			c.up()
			client, err := c.db.DB.Conn(t.Context())
			servicetest.NoError(t, err)
			defer client.Close()
			do := func(statement string) {
				if _, err := client.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			c.survives(64, func() {
				do(change.away)
				servicetest.Eventually(t, 15*time.Second, "MS1 reports that it cannot store", func() bool {
					code, body := c.at("ms1").Get("/readyz")
					return code == http.StatusServiceUnavailable && strings.Contains(body, `"ms2":"ok"`)
				})
				do(change.back)
			})
			c.ready("ms1")
			servicetest.Eventually(t, 10*time.Second, "the console has the reason", func() bool { return c.running["ms1"].Out.Has(change.reason) })
		})
	}
}

// Somebody deletes the row of the running session.
func TestSessionRowDeleted(t *testing.T) {
	c := newChain(t)
	c.up()
	c.load(600, 64)
	if _, err := c.db.DB.Exec("DELETE m, s FROM messages m JOIN sessions s ON s.id = m.session_id"); err != nil {
		t.Fatal(err)
	}
	var s status
	servicetest.Eventually(t, 20*time.Second, "the session has ended", func() bool {
		s = c.status()
		return s.State == "idle"
	})
	if s.Session.EndReason != "interrupted" {
		t.Errorf("got %+v", s.Session)
	}
	servicetest.Eventually(t, 10*time.Second, "the console shows it", func() bool { return c.running["ms1"].Out.Has("NOT RECORDED in the database: ") })
	c.round(1, 64)
}

func TestTopicDeletedUnderLoad(t *testing.T) {
	slow(t)
	broker := servertest.Kafka(t, "")
	c := newChain(t)
	c.patientOn(4, 1, broker)
	pause := c.survives(64, func() {
		for range 2 {
			resp, err := c.admin().DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{c.kafka.Topic}})
			servicetest.NoError(t, err)
			servicetest.NoError(t, resp.Errors[c.kafka.Topic])
			c.goesOn(500)
		}
	})
	atMost(t, pause, 0, 20*time.Second)
}

func TestFrozen(t *testing.T) {
	slow(t)
	const outage = 10 * time.Second
	t.Run("a program", func(t *testing.T) {
		c := newChain(t)
		c.patientOn(4, 1, servertest.Kafka(t, ""))
		for _, name := range services {
			pause := c.survives(64, func() { frozen(t, c.running[name].Process.Pid, outage) })
			t.Log(name)
			atMost(t, pause, outage, 15*time.Second)
		}
	})
	t.Run("a server with 4096 in flight", func(t *testing.T) {
		database, server := ownDatabase(t)
		broker := servertest.Kafka(t, "")
		c := newChainOn(t, server)
		c.patientOn(4, 1, broker)
		for name, s := range map[string]*servertest.Server{"mariadb": database.Server, "kafka": broker} {
			const stall = 8 * time.Second
			pause := c.survives(4096, func() { frozen(t, s.PID(), stall) })
			t.Log(name)
			atMost(t, pause, stall, 15*time.Second)
		}
	})
}

// A broker that tells its clients a name that leads nowhere.
func TestWrongAdvertisedName(t *testing.T) {
	slow(t)
	broker := servertest.Kafka(t, "")
	c := newChain(t)
	c.patientOn(4, 1, broker)
	var outage time.Duration
	pause := c.survives(64, func() {
		began := time.Now()
		broker.Stop()
		file := filepath.Join(broker.Dir, "properties")
		servicetest.File(t, file, "advertised.listeners=PLAINTEXT://nowhere.invalid:9092\n")
		broker.Start()
		time.Sleep(15 * time.Second)
		broker.Stop()
		servicetest.File(t, file, "")
		broker.Start()
		outage = time.Since(began)
	})
	atMost(t, pause, outage, 15*time.Second)
}

// As PID 1, a process gets no signal that it has no handler for.
func TestPID1(t *testing.T) {
	slow(t)
	c := newChain(t)
	c.initial = true
	c.up()
	for _, name := range []string{"ms3", "ms2", "ms1"} {
		c.load(600, 64)
		began := time.Now()
		p := c.running[name]
		p.Signal(syscall.SIGTERM)
		if took := time.Since(began); took > 8*time.Second || p.ProcessState.ExitCode() != 0 {
			t.Errorf("%s ended after %s with %s, want status 0 within 8 s", name, took, p.ProcessState)
		}
		if name == "ms1" {
			break
		}
		c.start(name)
		servicetest.Eventually(t, 20*time.Second, "the session goes on", func() bool { return c.growth(time.Second) > 100 })
		c.stop()
	}
}

func TestLinksCut(t *testing.T) {
	slow(t)
	const outage = 10 * time.Second
	_, server := ownDatabase(t)
	listen := func(target string) *relaytest.Relay { return relaytest.New(t, "127.0.0.1:0", target) }
	database, brokers := listen(server.Address), listen("")
	brokers.To(servertest.Kafka(t, brokers.Address).Address)
	c := newChainOn(t, server)
	c.useKafka(4, 1, &servertest.Server{Address: brokers.Address})
	ms2, ms1 := listen(c.address["ms2"]), listen(c.address["ms1"])
	c.overlays["ms1"]["database"].(settings)["address"] = database.Address
	c.overlays["ms1"]["ms2"] = settings{"url": "ws://" + ms2.Address + "/ws"}
	c.overlays["ms3"]["ms1"] = settings{"url": "http://" + ms1.Address + "/store"}
	c.patient()
	c.up()
	for _, k := range []struct {
		name string
		link *relaytest.Relay
		cut  string
	}{
		{"ms1 to mariadb", database, "*"},
		{"ms1 to ms2", ms2, "*"},
		{"ms2 to kafka", brokers, "ms2"},
		{"ms3 to kafka", brokers, "ms3"},
		{"ms3 to ms1", ms1, "*"},
	} {
		for how, silent := range map[string]bool{"closed": false, "silent": true} {
			t.Run(k.name+" "+how, func(t *testing.T) {
				c := *c
				c.t = t
				pause := c.survives(64, func() { k.link.Interrupt(k.cut, silent, outage) })
				atMost(t, pause, outage, 15*time.Second)
				c.ready(services...)
			})
		}
	}
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

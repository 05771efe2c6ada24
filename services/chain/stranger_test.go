package chain

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// nginx starts a web server on free ports: one that answers 200 to everything,
// one that serves files, one that takes no body, and one that expects TLS.
func nginx(t *testing.T) (answers, files, small, tls string) {
	t.Helper()
	dir := t.TempDir()
	key := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
		"-subj", "/CN=localhost", "-keyout", filepath.Join(dir, "key"), "-out", filepath.Join(dir, "certificate"))
	if out, err := key.CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	answers, files, small, tls = servertest.FreeAddress(t), servertest.FreeAddress(t), servertest.FreeAddress(t), servertest.FreeAddress(t)
	servicetest.File(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`
user root; # the files are in a directory that only the test's user may read
daemon off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	server { listen %[2]s; location / { return 200 "{}"; } }
	server { listen %[3]s; root %[1]s; }
	server { listen %[4]s; client_max_body_size 10; location / { proxy_pass http://%[2]s; } }
	server { listen %[5]s ssl; ssl_certificate %[1]s/certificate; ssl_certificate_key %[1]s/key; }
}
`, dir, answers, files, small, tls))
	servicetest.File(t, filepath.Join(dir, "store"), "a file is not what to post to")
	cmd := exec.Command("nginx", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	servicetest.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return answers, files, small, tls
}

// Whatever another server answers to a message, the message is not stored and
// stays in the topic.
func TestAnotherServerAtTheAddressOfMS1(t *testing.T) {
	slow(t)
	answers, files, small, tls := nginx(t)
	c := newChain(t)
	c.up()
	right := c.overlays["ms3"]["ms1"]
	for name, k := range map[string]struct{ url, cause string }{
		"answers 200":       {"http://" + answers, "200"},
		"serves files":      {"http://" + files, "405"},
		"takes no body":     {"http://" + small, "413"},
		"expects TLS":       {"http://" + tls, "400"},
		"another authority": {"https://" + tls, "certificate"},
		"speaks no TLS":     {"https://" + answers, "found plain text"},
	} {
		t.Run(name, func(t *testing.T) {
			c := *c
			c.t = t
			c.begin(10, 64)
			c.running["ms3"].Signal(syscall.SIGTERM)
			c.overlays["ms3"]["ms1"] = settings{"url": k.url + "/store"}
			wrong := c.start("ms3")
			servicetest.Eventually(t, 15*time.Second, "MS3 logs "+k.cause, func() bool { return strings.Contains(wrong.Out.String(), k.cause) })
			stored, committed := c.status().Session.Stored, c.committed()
			time.Sleep(3 * time.Second)
			if n := c.status().Session.Stored - stored; n != 0 || c.committed() != committed {
				t.Errorf("%d messages were stored and offsets went from %d to %d, want nothing consumed", n, committed, c.committed())
			}
			wrong.Signal(syscall.SIGTERM)
			c.overlays["ms3"]["ms1"] = right
			c.start("ms3")
			c.noneLost(c.end())
			if n := c.records(c.kafka.DeadLetterTopic); n != 0 {
				t.Errorf("there are %d dead letters, want none", n)
			}
		})
	}
}

// committed adds up the offsets that MS3's group has committed.
func (c *chain) committed() (sum int64) {
	c.t.Helper()
	request := &kafka.OffsetFetchRequest{GroupID: c.kafka.Topic, Topics: map[string][]int{c.kafka.Topic: {0, 1, 2, 3}}}
	resp, err := c.admin().OffsetFetch(c.t.Context(), request)
	servicetest.NoError(c.t, err)
	for _, p := range resp.Topics[c.kafka.Topic] {
		sum += max(0, p.CommittedOffset)
	}
	return sum
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

// Package chain tests the three programs together, as they are delivered. It runs
// the real binaries with the shipped configurations on loopback, with a real
// MariaDB. The broker is a real Kafka, or an embedded one if none is configured.
package chain

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
)

// root is the repository, relative to this directory.
const root = "../.."

// built is the directory of the programs, once they are built.
var built string

// binaries builds the programs, once.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "tricycle-chain-")
	if err != nil {
		return "", err
	}
	built = dir
	return servicetest.Build(dir, root+"/services/ms1/cmd/ms1", root+"/services/ms2/cmd/ms2", root+"/services/ms3/cmd/ms3")
})

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

// services are the names of the programs.
var services = []string{"ms1", "ms2", "ms3"}

// settings is an overlay on a configuration file.
type settings map[string]any

// chain is the three services on free ports, with a database and topics of
// their own.
type chain struct {
	t        *testing.T
	dir      string
	db       mariadbtest.Database
	kafka    topic.Config
	address  map[string]string
	front    map[string]string // where the test reaches a service, if not at its address
	overlays map[string]settings
	running  map[string]*servicetest.Process
	initial  bool             // each program is process 1 of its own
	brokers  *kafka.Transport // with which the test reaches the brokers; nil for plain text
}

// newChain prepares a chain. Nothing runs yet.
func newChain(t *testing.T) *chain {
	t.Helper()
	return newChainOn(t, mariadbtest.New(t))
}

// newChainOn prepares a chain on a database that the test brings.
func newChainOn(t *testing.T, db mariadbtest.Database) *chain {
	t.Helper()
	c := &chain{t: t, dir: t.TempDir(), db: db, kafka: topictest.Config(t), running: map[string]*servicetest.Process{}, address: map[string]string{}}
	for _, name := range services {
		c.address[name] = servertest.FreeAddress(t)
	}
	kafka := settings{"brokers": c.kafka.Brokers, "topic": c.kafka.Topic, "dead_letter_topic": c.kafka.DeadLetterTopic}
	c.overlays = map[string]settings{
		"ms1": {"ms2": settings{"url": "ws://" + c.address["ms2"] + "/ws"},
			"database": settings{"address": db.Address, "name": db.Name, "user": db.User, "password_file": db.PasswordFile}},
		"ms2": {"kafka": kafka},
		"ms3": {"kafka": kafka, "ms1": settings{"url": "http://" + c.address["ms1"] + "/store"}, "group_id": c.kafka.Topic},
	}
	for name, o := range c.overlays {
		o["listen"] = c.address[name]
		o["tracing"] = settings{"endpoint": ""}
		o["logging"] = settings{"file": filepath.Join(c.dir, name+".log")}
	}
	return c
}

// up starts all three and waits until a session can be started.
func (c *chain) up() {
	c.t.Helper()
	for _, name := range []string{"ms2", "ms3", "ms1"} {
		c.start(name)
	}
	c.ready(services...)
}

// at is a service as its clients see it.
func (c *chain) at(name string) *openapitest.Service {
	return openapitest.At(c.t, name, "http://"+cmp.Or(c.front[name], c.address[name]))
}

func (c *chain) ready(names ...string) {
	c.t.Helper()
	for _, name := range names {
		c.at(name).Ready()
	}
}

// start runs a service with its shipped configuration, the one for loopback
// over it, and the chain's own over that.
func (c *chain) start(name string, extra ...string) *servicetest.Process {
	c.t.Helper()
	dir, err := binaries()
	servicetest.NoError(c.t, err)
	overlay, err := yaml.Marshal(c.overlays[name])
	servicetest.NoError(c.t, err)
	file := servicetest.File(c.t, filepath.Join(c.dir, name+".yaml"), string(overlay))
	args := append([]string{
		"-config", filepath.Join(root, "compose/config", name+".yaml"),
		"-config", filepath.Join(root, "compose/config/loopback", name+".yaml"),
		"-config", file,
	}, extra...)
	cmd := exec.Command(filepath.Join(dir, name), args...)
	if c.initial {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	c.running[name] = servicetest.Launch(c.t, cmd)
	return c.running[name]
}

// get asks MS1 and decodes the answer.
func (c *chain) get(path string, status int, into any) {
	c.t.Helper()
	got, body := c.at("ms1").Get(path)
	if got != status {
		c.t.Fatalf("GET %s: %d %s, want %d", path, got, body, status)
	}
	if into != nil {
		if err := json.Unmarshal([]byte(body), into); err != nil {
			c.t.Fatalf("GET %s: %v in %s", path, err, body)
		}
	}
}

// session is the session in the answers of /status and /stop.
type session struct {
	ID         int64  `json:"id"`
	Generated  int64  `json:"generated"`
	Stored     int64  `json:"stored"`
	Resent     int64  `json:"resent"`
	Duplicates int64  `json:"duplicates"`
	Lost       int64  `json:"lost"`
	EndReason  string `json:"end_reason"`
}

// begin starts a session and returns its number.
func (c *chain) begin(seconds, inFlight int) int64 {
	c.t.Helper()
	var started struct {
		SessionID int64 `json:"session_id"`
	}
	c.get(fmt.Sprintf("/start?interval=%d&in_flight=%d", seconds, inFlight), http.StatusAccepted, &started)
	return started.SessionID
}

// load starts a session and returns when it is under load.
func (c *chain) load(seconds, inFlight int) int64 {
	c.t.Helper()
	id := c.begin(seconds, inFlight)
	servicetest.Eventually(c.t, 20*time.Second, "100 messages are stored", func() bool { return c.status().Session.Stored >= 100 })
	return id
}

type status struct {
	State   string  `json:"state"`
	Session session `json:"session"`
}

func (c *chain) status() (s status) {
	c.t.Helper()
	c.get("/status", http.StatusOK, &s)
	return s
}

// end waits for the end of the running session and checks it.
func (c *chain) end() session {
	c.t.Helper()
	var s status
	servicetest.Eventually(c.t, 4*time.Minute, "the session has ended", func() bool {
		s = c.status()
		return s.State == "idle"
	})
	c.check(s.Session)
	return s.Session
}

// stop ends the running session and checks that no message was lost.
func (c *chain) stop() (s session) {
	c.t.Helper()
	c.get("/stop", http.StatusOK, &s)
	c.check(s)
	c.noneLost(s)
	return s
}

// round runs a session to its end and checks that no message was lost.
func (c *chain) round(seconds, inFlight int) session {
	c.t.Helper()
	c.begin(seconds, inFlight)
	s := c.end()
	c.noneLost(s)
	return s
}

// goesOn waits until n more messages are stored.
func (c *chain) goesOn(n int64) {
	c.t.Helper()
	before := c.status().Session.Stored
	servicetest.Eventually(c.t, time.Minute, "the session goes on", func() bool { return c.status().Session.Stored >= before+n })
}

// number returns the number that a query finds in the database.
func (c *chain) number(query string, args ...any) (n int64) {
	c.t.Helper()
	servicetest.NoError(c.t, c.db.DB.QueryRow(query, args...).Scan(&n))
	return n
}

// check compares the figures of a session with the database and the console.
func (c *chain) check(s session) {
	c.t.Helper()
	var rows, keys, disordered int64
	err := c.db.DB.QueryRow(`SELECT COUNT(*), COUNT(DISTINCT service1_timestamp),
		COUNT(CASE WHEN NOT (service1_timestamp <= service2_timestamp AND service2_timestamp <= service3_timestamp AND service3_timestamp <= end_timestamp) THEN 1 END)
		FROM messages WHERE session_id = ?`, s.ID).Scan(&rows, &keys, &disordered)
	servicetest.NoError(c.t, err)
	if rows != s.Stored || keys != rows || disordered != 0 || s.Generated != s.Stored+s.Lost {
		c.t.Errorf("%+v with %d rows of %d keys, %d of them with stamps out of order", s, rows, keys, disordered)
	}
	// A busy machine writes the console late.
	out := c.running["ms1"].Out
	servicetest.Eventually(c.t, 10*time.Second, fmt.Sprintf("the console has the summary of session %d", s.ID), func() bool {
		return out.Has(fmt.Sprintf("session %d: messages generated: %d ", s.ID, s.Generated)) &&
			out.Has(fmt.Sprintf("session %d: total time of the interaction: ", s.ID))
	})
	c.t.Logf("%+v", s)
}

func (c *chain) noneLost(s session) {
	c.t.Helper()
	if s.Lost != 0 || s.Generated == 0 {
		c.t.Errorf("%+v: want messages, and none lost", s)
	}
}

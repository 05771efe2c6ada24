// Package allinone runs MS1, MS2 and MS3 in one process, on a machine without
// Kafka, MariaDB or containers.
//
// The three services are the same as in production and use real sockets. Only
// the broker and the database are embedded, in one directory. The broker is kfake,
// which speaks Kafka's protocol and keeps its log in DIR/broker. The database is
// the SQLite file DIR/tricycle.db. A real broker or a real database in the
// configuration replaces the embedded one.
//
//	MS1 ─WebSocket─▶ MS2 ─▶ broker ─▶ MS3 ─HTTP─▶ MS1 ─▶ database
//
// Everything that was acknowledged survives the death of the process: broker and
// database write to their files before they answer. A power failure can lose the
// last writes; use real servers against that.
package allinone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/private"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms2"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

const (
	anyPort = "127.0.0.1:0"
	// askEvery is the interval of polling readiness and the figures of a session.
	askEvery = 100 * time.Millisecond
	// ms2Patience is how long MS1 waits for MS2 before it starts without it.
	ms2Patience = 2 * time.Second
)

// trio is the three services and what they know of each other.
type trio struct {
	config  Config
	screen  *screen
	console io.Writer // of the services' logs
	client  *http.Client
	token   *credentials.Token
	limits  limits

	embedded *sqlite.Store // set before ms1 is known; nil with a real database

	kafka known[topic.Config]
	ms1   known[*ms1.Service]
	ms2   known[string] // addresses
	ms3   known[string]
}

// known is a value that one part sets when it starts and others wait for.
type known[T any] chan T

func (k known[T]) set(v T) { k <- v }

// wait returns the value, or false if ctx ended first.
func (k known[T]) wait(ctx context.Context) (v T, ok bool) {
	select {
	case v = <-k:
		k <- v
		return v, true
	case <-ctx.Done():
		return v, false
	}
}

// Run runs the three services with a valid configuration until ctx is cancelled
// or, with Once, until one session has ended. MS1 stops first and drains through
// the others. With Once, lost messages are an error with their number.
func Run(ctx context.Context, c Config, console io.Writer) error {
	return run(ctx, c, console, limits{database: 10 * time.Second, stop: 5 * time.Second})
}

func run(ctx context.Context, c Config, console io.Writer, limits limits) error {
	if err := private.Directory(c.Data); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	// Two brokers would ruin their log. The database has its own lock.
	unlock, err := sqlite.Lock(ctx, filepath.Join(c.Data, "lock"))
	if err != nil {
		return fmt.Errorf("lock data directory %s: %w", c.Data, err)
	}
	defer unlock()

	t := &trio{
		config: c, screen: newScreen(console), console: console, limits: limits,
		client: &http.Client{Transport: &http.Transport{}}, token: credentials.NewToken("token_file", c.TokenFile),
		kafka: make(known[topic.Config], 1), ms1: make(known[*ms1.Service], 1),
		ms2: make(known[string], 1), ms3: make(known[string], 1),
	}
	defer t.client.CloseIdleConnections()
	if c.Once {
		t.console = troubles{t.screen}
	}
	return lifecycle.Run(ctx,
		lifecycle.Part{Name: "broker", Run: t.runBroker},
		lifecycle.Part{Name: "ms2", Run: t.runMS2},
		lifecycle.Part{Name: "ms3", Run: t.runMS3},
		lifecycle.Part{Name: "ms1", Run: t.runMS1},
		lifecycle.Part{Name: "interaction", Run: t.attend},
	)
}

func (t *trio) runBroker(ctx context.Context) error {
	c := t.config.Kafka
	if len(c.Brokers) > 0 {
		t.kafka.set(c)
		<-ctx.Done()
		return nil
	}
	b, err := openBroker(filepath.Join(t.config.Data, "broker"), c, t.console)
	if err != nil {
		return err
	}
	c.Brokers, c.TLS, c.SASL = b.ListenAddrs(), topic.TLS{}, topic.SASL{}
	t.kafka.set(c)
	serveBroker(ctx, b)
	return nil
}

func (t *trio) runMS2(ctx context.Context) error {
	kafka, ok := t.kafka.wait(ctx)
	if !ok {
		return nil
	}
	c := ms2.Config{Endpoint: httpserver.Endpoint{Listen: anyPort}, TokenFile: t.config.TokenFile, Kafka: kafka, Observability: t.config.observability("ms2")}
	return program.Serve(ctx, "ms2", c, c.Observability, t.console, ms2.New, func(s *ms2.Service) { t.ms2.set(s.Address()) })
}

func (t *trio) runMS3(ctx context.Context) error {
	one, ok := t.ms1.wait(ctx)
	if !ok {
		return nil
	}
	kafka, _ := t.kafka.wait(ctx) // known, or MS1 would not be
	address, _ := program.Reach(one.Address())
	c := ms3.Config{
		Endpoint: httpserver.Endpoint{Listen: anyPort}, MS1: ms3.MS1{URL: "http://" + address + "/store", Access: t.config.access(), BatchMessages: ms3.Defaults().MS1.BatchMessages}, Kafka: kafka,
		Workers: t.config.Workers, GroupID: t.config.GroupID, Observability: t.config.observability("ms3"),
	}
	return program.Serve(ctx, "ms3", c, c.Observability, t.console, ms3.New, func(s *ms3.Service) { t.ms3.set(s.Address()) })
}

func (t *trio) runMS1(ctx context.Context) error {
	two, ok := t.ms2.wait(ctx)
	if !ok {
		return nil
	}
	// MS2 refuses MS1 until it is connected to Kafka: a warning at every start.
	patient, cancel := context.WithTimeout(ctx, ms2Patience)
	_ = t.untilReady(patient, two, "") // otherwise MS1 reports what is missing
	cancel()
	return ms1.Run(ctx, t.config.ms1(two), t.console, t.openStore, t.ms1.set, httpserver.Check{Name: "ms3", Probe: t.probeMS3})
}

func (t *trio) openStore(log zerolog.Logger) (ms1.Store, error) {
	if t.config.Database.Address != "" {
		return mariadb.Open(t.config.Database, log)
	}
	store, err := sqlite.Open(t.databaseFile(), log)
	t.embedded = store
	return store, err
}

func (t *trio) databaseFile() string { return filepath.Join(t.config.Data, "tricycle.db") }

// probeMS3 is MS1's check that MS3 holds its partitions.
func (t *trio) probeMS3(ctx context.Context) error {
	three, ok := t.ms3.wait(ctx)
	if !ok {
		return errors.New("not started yet")
	}
	return t.ready(ctx, three, "?exclude=ms1")
}

// ready returns nil if the service at the address is ready, else an error with
// the checks that fail.
func (t *trio) ready(ctx context.Context, address, query string) error {
	var answer struct{ Checks map[string]string }
	status, err := t.get(ctx, "http://"+address+"/readyz"+query, &answer)
	if err != nil || status == http.StatusOK {
		return err
	}
	var missing []string
	for name, outcome := range answer.Checks {
		if outcome != "ok" {
			missing = append(missing, name+": "+outcome)
		}
	}
	return errors.New(strings.Join(missing, ", "))
}

// untilReady polls until the service is ready or ctx ends. Its error is that of
// the last answer.
func (t *trio) untilReady(ctx context.Context, address, query string) error {
	var last error
	for {
		err := t.ready(ctx, address, query)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // else the request was cut short
			last = err
		}
		if !retry.Pause(ctx, askEvery) {
			return last
		}
	}
}

// get decodes the JSON answer to a GET request.
func (t *trio) get(ctx context.Context, url string, answer any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if err := t.token.Set(req.Header); err != nil {
		return 0, err
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return 0, fmt.Errorf("read answer of %s: %w", url, err)
	}
	return resp.StatusCode, nil
}

// Package topictest provides a broker for tests: the real one that the environment
// names, or an embedded one. The latter speaks the same protocol and can inject
// faults.
package topictest

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// Config returns the configuration for topics of the test's own on the broker
// that TRICYCLE_TEST_KAFKA names (host:port), or on a [Cluster].
func Config(t testing.TB) topic.Config {
	t.Helper()
	if address := os.Getenv("TRICYCLE_TEST_KAFKA"); address != "" {
		return For(t, address)
	}
	_, address := Cluster(t)
	return For(t, address)
}

// For returns the configuration for topics of the test's own on the broker.
func For(t testing.TB, address string) topic.Config {
	t.Helper()
	c := topic.Defaults()
	c.Brokers = []string{address}
	c.Topic = "test." + rand.Text()
	c.DeadLetterTopic = c.Topic + ".dead"
	return c
}

// Cluster starts a broker in this process, which ends with the test unless the
// test has closed it before, and returns it and its address. The option Ports
// starts it again where one has been.
func Cluster(t testing.TB, options ...kfake.Opt) (*kfake.Cluster, string) {
	t.Helper()
	var cluster *kfake.Cluster
	var err error
	for range 50 {
		// Below the ports that the system gives to others, so that the port is
		// still free after the broker was closed.
		port := 10_000 + mathrand.N(20_000)
		cluster, err = kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.Ports(port)}, options...)...)
		if err == nil {
			t.Cleanup(cluster.Close)
			return cluster, cluster.ListenAddrs()[0]
		}
		time.Sleep(200 * time.Millisecond) // another test may have the port for a while
	}
	t.Fatalf("starting a broker: %v", err)
	return nil, ""
}

// Link makes the broker of a [Cluster] call wait before each of its writes.
func Link(wait func()) kfake.Opt {
	return kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		return listener{l, wait}, err
	})
}

// SlowLink is a [Link] that delays what the broker sends by the latency, give or
// take 40 %.
func SlowLink(t testing.TB, latency time.Duration) kfake.Opt {
	return Link(func() {
		select {
		case <-time.After(latency*3/5 + mathrand.N(latency*4/5)): // the latency itself
		case <-t.Context().Done():
		}
	})
}

type listener struct {
	net.Listener
	wait func()
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return conn{c, l.wait}, err
}

type conn struct {
	net.Conn
	wait func()
}

func (c conn) Write(p []byte) (int, error) {
	c.wait()
	return c.Conn.Write(p)
}

// Create creates the topics of c with settings, pairs of names and values, as
// somebody else than the services would.
func Create(t testing.TB, c topic.Config, settings ...string) {
	t.Helper()
	var entries []kafka.ConfigEntry
	for i := 0; i < len(settings); i += 2 {
		entries = append(entries, kafka.ConfigEntry{ConfigName: settings[i], ConfigValue: settings[i+1]})
	}
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(c.Brokers...), Transport: transport}
	request := &kafka.CreateTopicsRequest{}
	for _, name := range []string{c.Topic, c.DeadLetterTopic} {
		request.Topics = append(request.Topics, kafka.TopicConfig{
			Topic: name, NumPartitions: c.Partitions, ReplicationFactor: 1, ConfigEntries: entries,
		})
	}
	resp, err := client.CreateTopics(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range resp.Errors {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Port returns the port of a host:port.
func Port(t testing.TB, address string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Start runs a client of the brokers until the test ends or stops it.
func Start(t testing.TB, l *topic.Cluster) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("cluster: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Run runs a client of the brokers until the test ends, and returns when the
// brokers answer.
func Run(t testing.TB, l *topic.Cluster) {
	t.Helper()
	Start(t, l)
	Ready(t, l)
}

// Ready waits until the brokers answer a client.
func Ready(t testing.TB, l *topic.Cluster) {
	t.Helper()
	servicetest.Eventually(t, time.Minute, "kafka answers", func() bool { return l.Ready(t.Context()) == nil })
}

// Unready waits until a client reports the reason why it is not ready.
func Unready(t testing.TB, l *topic.Cluster, want string) {
	t.Helper()
	servicetest.Eventually(t, time.Minute, want, func() bool { return strings.Contains(fmt.Sprint(l.Ready(t.Context())), want) })
}

// Read returns the first n records of a topic, as they come.
func Read(t testing.TB, c topic.Config, name string, n int) []kafka.Message {
	t.Helper()
	var records []kafka.Message
	ReadUntil(t, c, name, func(m kafka.Message) bool {
		records = append(records, m)
		return len(records) == n
	})
	return records
}

// ReadUntil reads the records of a topic from its start until one is the last.
func ReadUntil(t testing.TB, c topic.Config, name string, last func(kafka.Message) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: c.Brokers, Topic: name, GroupID: "read." + rand.Text(), StartOffset: kafka.FirstOffset,
		MinBytes: 1, MaxBytes: 1 << 20, MaxWait: 250 * time.Millisecond, JoinGroupBackoff: 200 * time.Millisecond,
	})
	defer r.Close()
	for n := 0; ; {
		m, err := r.FetchMessage(ctx)
		switch {
		case ctx.Err() != nil:
			t.Fatalf("reading %s: got %d records, want more: %v", name, n, err)
		case err != nil: // a broker that is not quite up yet; the reader goes on
		case last(m):
			return
		default:
			n++
		}
	}
}

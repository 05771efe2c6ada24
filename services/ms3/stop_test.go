package ms3

import (
	"net/http"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestStopIsBoundedWhenMS1Hangs(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	collector, spans := telemetrytest.Collector(t)
	source := newMS2(t, k)
	store.answers(func(_ http.ResponseWriter, r *http.Request, _ message.Message, _ int) { <-r.Context().Done() })
	r := start(t, k, store.URL, func(c *Config) { c.Workers, c.Tracing.Endpoint = 4, collector })
	source.send(20)
	servicetest.Eventually(t, time.Minute, "posting", func() bool { return store.got() >= 4 && r.Metric("tricycle_ms3_records_fetched_total") == 20 })
	if took := r.Stop(); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if n := source.committed("group." + k.Topic); n != 0 {
		t.Errorf("committed %d, expected none", n)
	}
	if s := spans(); len(s) != 20 || telemetrytest.Attribute(s[0], "error.type") != "abandoned" {
		t.Errorf("got %d spans, want 20 abandoned ones", len(s))
	}
}

func TestStopEndsRequestsUnderWayAndNoRetries(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	ms, records := messages(8)
	inside, release := make(chan struct{}, 8), make(chan struct{})
	store.answers(func(w http.ResponseWriter, r *http.Request, m message.Message, _ int) {
		if m.Key() == ms[5].Key() {
			w.WriteHeader(503)
			return
		}
		inside <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done(): // after a failure of the test
		}
	})
	r := start(t, k, store.URL,
		func(c *Config) { c.MS1.BatchMessages = 1 },
		func(s *Service) { // for a busy machine
			s.consumer.grace, s.consumer.client.http.Timeout = time.Minute, time.Minute
		})
	source.produce(0, records...)
	for range 7 {
		<-inside
	}
	servicetest.Eventually(t, time.Minute, "a retry is open", func() bool { return len(store.posted(ms[5].Key())) > 2 })
	stopped := make(chan time.Duration)
	go func() { stopped <- r.Stop() }()
	servicetest.Eventually(t, time.Minute, "it is stopping", func() bool {
		return r.consumer.offsets.next(0) == 8 && r.Log.Has("not take messages")
	})
	close(release)
	if took := <-stopped; took > r.consumer.grace/2 {
		t.Errorf("stopping took %s, as long as the retries may go on", took)
	}
	if n := source.committed("group." + k.Topic); n != 5 {
		t.Errorf("committed %d, expected the five before the one that was open", n)
	}
	// The next member gets what was not committed.
	store.answers(func(http.ResponseWriter, *http.Request, message.Message, int) {})
	start(t, k, store.URL)
	source.commits(8)
}

func TestStopIsBoundedWhenKafkaHangs(t *testing.T) {
	t.Parallel()
	address, hang := hangingBroker(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	r := start(t, k, store.URL)
	source.send(20)
	source.commits(20)
	hang()
	if took := r.Stop(); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// hangingBroker starts a broker. After a call of hang its connections carry no
// more data in either direction.
func hangingBroker(t *testing.T) (address string, hang func()) {
	hung, over := make(chan struct{}), make(chan struct{})
	_, address = topictest.Cluster(t, topictest.Link(func() {
		select {
		case <-hung:
			<-over
		default:
		}
	}))
	t.Cleanup(func() { close(over) })
	return address, func() { close(hung) }
}

func TestStopIsBoundedWhenADeadLetterHangs(t *testing.T) {
	t.Parallel()
	address, hang := hangingBroker(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	hung := make(chan struct{})
	store.answers(func(w http.ResponseWriter, _ *http.Request, _ message.Message, _ int) {
		<-hung
		httpserver.Problem{Type: httpserver.UnknownMessage, Status: http.StatusNotFound}.Write(w)
	})
	r := start(t, k, store.URL)
	source.send(20)
	servicetest.Eventually(t, time.Minute, "posting", func() bool { return store.got() > 0 })
	hang()
	close(hung)
	servicetest.Eventually(t, time.Minute, "writing dead letters", func() bool {
		r.consumer.letters.mu.Lock()
		defer r.consumer.letters.mu.Unlock()
		return r.consumer.letters.writing
	})
	if took := r.Stop(); took > 8*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

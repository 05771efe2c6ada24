package ms2

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestKafkaDownAtTheStart(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	cluster.Close()
	k := topictest.For(t, address)
	r := start(t, k)
	servicetest.Eventually(t, time.Minute, "it has tried", func() bool { return r.Log.Has("kafka unavailable") })

	_, resp, err := r.connect()
	if err == nil || resp == nil || resp.StatusCode != 503 {
		t.Fatalf("got %v, %v, want 503", resp, err)
	}
	openapitest.Exchange(t, "ms2", resp.Request, resp)
	body, _ := io.ReadAll(resp.Body)
	var problem struct{ Detail string }
	if err := json.Unmarshal(body, &problem); err != nil || !strings.Contains(problem.Detail, "kafka") {
		t.Errorf("got %s, want a problem that names kafka", body)
	}
	if status, body := r.Get("/readyz"); status != 503 || !strings.Contains(body, `"kafka":"`) {
		t.Errorf("got %d %s", status, body)
	}
	if status, _ := r.Get("/healthz"); status != 200 {
		t.Errorf("got %d for /healthz", status)
	}

	topictest.Cluster(t, kfake.Ports(topictest.Port(t, address)))
	r.ready()
	if status, body := r.Get("/readyz"); status != 200 {
		t.Errorf("got %d %s", status, body)
	}
	if status, body := r.Get("/metrics"); status != 200 || !strings.Contains(body, "tricycle_ms2_queue_messages 0") {
		t.Errorf("got %d %s", status, body)
	}
	ms := messages(10)
	r.dial(t).send(t, ms...)
	distinct(t, k, ms)
}

func TestKafkaRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := kfake.DataDir(t.TempDir())
	cluster, address := topictest.Cluster(t, dir, kfake.SyncWrites())
	k := topictest.For(t, address)
	r := start(t, k).ready()
	ws := r.dial(t)
	ms := messages(3000)
	for restart := range 2 {
		ws.send(t, ms[restart*1000:restart*1000+500]...)
		cluster.Close()
		ws.send(t, ms[restart*1000+500:restart*1000+1000]...)
		servicetest.Eventually(t, time.Minute, "kafka is missed", func() bool { return r.cluster.Ready(t.Context()) != nil })
		cluster, _ = topictest.Cluster(t, dir, kfake.SyncWrites(), kfake.Ports(topictest.Port(t, address)))
		r.produced(t, 1000*(restart+1))
	}
	ws.send(t, ms[2000:]...)
	r.produced(t, 3000)
	r.kept(t)
	if r.Metric("tricycle_ms2_produce_retries_total") == 0 {
		t.Error("no retry was counted")
	}
	distinct(t, k, ms)
}

func TestRefusedProduceIsRepeated(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	collector, spans := telemetrytest.Collector(t)
	r := start(t, k, func(c *Config) { c.Tracing.Endpoint = collector }).ready()
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 3})
	ms := messages(1)
	r.dial(t).send(t, ms...)
	distinct(t, k, ms)
	r.produced(t, 1)
	if got := r.Metric("tricycle_ms2_produce_retries_total"); got != 3 {
		t.Errorf("got %v retries, want 3", got)
	}
	if got := r.Log.Count("produce request failed, retrying"); got == 0 || got == 3 { // at most once a second
		t.Errorf("got it logged %d times, want less often than it was retried", got)
	}
	r.Stop()
	if s := spans(); len(s) != 1 || len(s[0].Events) != 3 || s[0].Status.GetCode() == otlp.Status_STATUS_CODE_ERROR {
		t.Errorf("got %v, want a span with three events", s)
	}
}

// refuse makes requests to produce fail that when selects, or all if it is nil.
// Without an error, it closes their connections.
func refuse(cluster *kfake.Cluster, err *kerr.Error, when func(kmsg.ProduceRequestTopicPartition) bool) *kfake.FaultHandle {
	selected := func(r kmsg.Request) bool {
		return when == nil || when(r.(*kmsg.ProduceRequest).Topics[0].Partitions[0])
	}
	if err == nil {
		cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			return nil, errors.New("refused by the test"), selected(r)
		})
		return nil
	}
	return cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: err, Count: -1, When: selected})
}

func TestABatchThatIsTooLargeIsSplit(t *testing.T) {
	t.Parallel()
	// Ten messages (tornLength) must fit: MS2 does not split them after a torn connection.
	large := func(asked kmsg.ProduceRequestTopicPartition) bool { return len(asked.Records) > 4096 }
	for name, limit := range map[string]func(*testing.T) topic.Config{
		"for the topic": func(t *testing.T) topic.Config { // the real broker's answer, if there is one
			k := topictest.Config(t)
			topictest.Create(t, k, "max.message.bytes", "2048")
			return k
		},
		"for the broker": func(t *testing.T) topic.Config {
			cluster, address := topictest.Cluster(t)
			refuse(cluster, nil, large)
			return topictest.For(t, address)
		},
		"for the broker's list": func(t *testing.T) topic.Config {
			cluster, address := topictest.Cluster(t)
			refuse(cluster, kerr.RecordListTooLarge, large)
			return topictest.For(t, address)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := limit(t)
			r := start(t, k).ready()
			ms := messages(2000)
			r.dial(t).send(t, ms...)
			distinct(t, k, ms)
			r.produced(t, 2000)
			r.kept(t)
			// The size is remembered. Up to four requests find it at once.
			if got := r.Metric("tricycle_ms2_produce_retries_total"); got == 0 || got > 40 {
				t.Errorf("got %v retries, want some for each of four requests", got)
			}
			if err := r.Service.ready(t.Context()); err != nil {
				t.Errorf("not ready: %v", err)
			}
		})
	}
}

func TestATornConnectionKeepsSmallRequests(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	var asked atomic.Int32
	refuse(cluster, nil, func(kmsg.ProduceRequestTopicPartition) bool { return asked.Add(1) < 6 })
	r := start(t, topictest.For(t, address)).ready()
	r.dial(t).send(t, messages(tornLength)...)
	r.produced(t, tornLength)
	r.queue.mu.Lock()
	defer r.queue.mu.Unlock()
	if r.queue.most != batchLength {
		t.Errorf("got at most %d messages in a request, want %d", r.queue.most, batchLength)
	}
}

// A topic whose settings MS2 may not see, and that takes no message.
func TestAMessageThatIsTooLargeNamesTheSetting(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	limited := refuse(cluster, kerr.MessageTooLarge, nil)
	r := start(t, k, func(s *Service) { s.queue.stall = 2 * time.Second }).ready()
	r.dial(t).send(t, messages(10)...)
	servicetest.Eventually(t, time.Minute, "not ready", func() bool {
		err := r.Service.ready(t.Context())
		return err != nil && strings.Contains(err.Error(), k.Topic+": max.message.bytes: must be at least 512")
	})
	limited.Remove()
	servicetest.Eventually(t, time.Minute, "ready", func() bool { return r.Service.ready(t.Context()) == nil })
	ms := messages(10)
	r.dial(t).send(t, ms...)
	distinct(t, k, ms)
}

// The cluster and the topic are there, and no partition takes a message.
func TestATopicThatTakesNoMessagesIsNotReady(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]*kerr.Error{"too few replicas": kerr.NotEnoughReplicas, "not permitted": kerr.TopicAuthorizationFailed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k := topictest.For(t, address)
			refusing := refuse(cluster, fault, nil)
			r := start(t, k).ready()
			ms := messages(10)
			r.dial(t).send(t, ms...)
			servicetest.Eventually(t, time.Minute, "not ready", func() bool {
				err := r.Service.ready(t.Context())
				return err != nil && strings.Contains(err.Error(), fmt.Sprintf("[%d]", fault.Code))
			})
			refusing.Remove()
			distinct(t, k, ms)
			if err := r.Service.ready(t.Context()); err != nil {
				t.Errorf("not ready: %v", err)
			}
		})
	}
}

// Messages that a partition refuses go to the others.
func TestOnePartitionWithoutALeader(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]*kerr.Error{
		"no leader": kerr.NotLeaderForPartition, "too few replicas": kerr.NotEnoughReplicas, "closes the connection": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k := topictest.For(t, address)
			var refused atomic.Int32
			refuse(cluster, fault, func(asked kmsg.ProduceRequestTopicPartition) bool {
				if asked.Partition == 1 {
					refused.Add(1)
				}
				return asked.Partition == 1
			})
			r := start(t, k).ready()
			ms := messages(4000)
			r.dial(t).send(t, ms...)
			for key, record := range distinct(t, k, ms) {
				if record.Partition == 1 {
					t.Errorf("%s: in the partition that refuses", key)
				}
			}
			if n := refused.Load(); n == 0 || n > 4 {
				t.Errorf("the partition has refused %d requests, want it passed over", n)
			}
			if r.Metric("tricycle_ms2_messages_dropped_total") != 0 || r.Metric("tricycle_ms2_connections") != 1 || r.Service.ready(t.Context()) != nil {
				t.Error("messages, the connection or the readiness were dropped")
			}
		})
	}
}

func TestSlowLinkToKafka(t *testing.T) {
	t.Parallel()
	_, address := topictest.Cluster(t, topictest.SlowLink(t, 500*time.Millisecond))
	r := start(t, topictest.For(t, address)).ready()
	r.dial(t).send(t, messages(800)...)
	r.produced(t, 800)
	if r.Metric("tricycle_ms2_messages_dropped_total") != 0 || r.Metric("tricycle_ms2_produce_retries_total") != 0 {
		t.Error("requests were given up")
	}
}

package ms3

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestSlowLinkToKafka(t *testing.T) {
	t.Parallel()
	const fetchWait = 50 * time.Millisecond // less than many round trips
	_, address := topictest.Cluster(t, topictest.SlowLink(t, fetchWait))
	k, store, source := neighbours(t, topictest.For(t, address))
	ms, records := messages(500)
	source.spread(records)
	r := start(t, k, store.URL, func(s *Service) { s.consumer.fetchWait = fetchWait })
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == len(ms) })
	source.commits(500)
	if r.Metric("tricycle_ms3_reader_reopened_total") != 0 {
		t.Error("the reader was taken for stalled")
	}
}

func TestKafkaRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := kfake.DataDir(t.TempDir())
	cluster, address := topictest.Cluster(t, dir, kfake.SyncWrites())
	k, store, source := neighbours(t, topictest.For(t, address))
	r := start(t, k, store.URL)
	for restart := range 2 {
		source.send(500)
		servicetest.Eventually(t, time.Minute, "some posted", func() bool { return store.got() > restart*500 })
		cluster.Close()
		servicetest.Eventually(t, time.Minute, "kafka is missed", func() bool { return r.cluster.Ready(t.Context()) != nil })
		if status, body := r.Get("/readyz?exclude=ms1"); status != 503 || !strings.Contains(body, `"kafka":"`) {
			t.Errorf("found %d %s", status, body)
		}
		cluster, _ = topictest.Cluster(t, dir, kfake.SyncWrites(), kfake.Ports(topictest.Port(t, address)))
		servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == (restart+1)*500 })
		source.commits(int64(restart+1) * 500)
	}
	r.joined(t)
}

func TestABrokerThatAnswersNothingIsPassedOver(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	k.Brokers = append([]string{relaytest.New(t, "127.0.0.1:0", "").Address}, k.Brokers...)
	r := start(t, k, newMS1(t).URL)
	r.Ready()
}

func TestKafkaDownAtTheStart(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	cluster.Close()
	k, store := topictest.For(t, address), newMS1(t)
	r := start(t, k, store.URL)
	servicetest.Eventually(t, time.Minute, "it has tried", func() bool { return r.Log.Has("kafka unavailable") })
	servicetest.Eventually(t, time.Minute, "only Kafka is not ready", func() bool {
		status, body := r.Get("/readyz")
		return status == 503 && strings.Contains(body, `"ms1":"ok"`)
	})
	topictest.Cluster(t, kfake.Ports(topictest.Port(t, address)))
	source := newMS2(t, k)
	source.send(100)
	source.commits(100)
}

func TestATopicMadeAnewIsReadFromItsStart(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	r := start(t, k, store.URL)
	source.send(400)
	source.commits(400)
	// Below the offsets that were read of the old one, nothing would ever be fetched.
	servicetest.Eventually(t, time.Minute, "the topic is deleted", func() bool {
		resp, err := source.Client().DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{k.Topic}})
		return err == nil && errors.Is(resp.Errors[k.Topic], kafka.UnknownTopicOrPartition)
	})
	// The leader may accept records for the deleted topic a little longer.
	servicetest.Eventually(t, time.Minute, "the new topic is empty", func() bool {
		for number := range 4 {
			resp, err := source.Client().ListOffsets(t.Context(), &kafka.ListOffsetsRequest{
				Topics: map[string][]kafka.OffsetRequest{k.Topic: {kafka.LastOffsetOf(number)}},
			})
			if err != nil || resp.Topics[k.Topic][0].Error != nil || resp.Topics[k.Topic][0].LastOffset != 0 {
				return false
			}
		}
		return true
	})
	source.send(8)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == 408 })
	r.joined(t)
	source.commits(8)
	for _, number := range []int{0, 1, 2, 3} {
		if next := r.consumer.offsets.next(number); next != 2 {
			t.Errorf("got %d as the next offset of partition %d, want 2", next, number)
		}
	}
}

// A broker has lost its newest records, as in a power failure: here they are those
// of an earlier moment. It still has the committed offsets.
func TestOnlyWhatIsNewIsReadOfAPartitionThatBecameShorter(t *testing.T) {
	t.Parallel()
	dir, earlier := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "earlier")
	cluster, address := topictest.Cluster(t, kfake.DataDir(dir), kfake.SyncWrites())
	k, store, source := neighbours(t, topictest.For(t, address))
	r := start(t, k, store.URL, func(s *Service) { s.consumer.overlap = 0 })
	sent := 0
	send := func(n int) {
		source.send(n)
		sent += n
		servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == sent })
	}
	restart := func(change func() error) {
		cluster.Close()
		servicetest.NoError(t, change())
		cluster, _ = topictest.Cluster(t, kfake.DataDir(dir), kfake.SyncWrites(), kfake.Ports(topictest.Port(t, address)))
	}
	send(2000)
	source.commits(2000)
	records := filepath.Join(dir, "partitions")
	restart(func() error { return os.CopyFS(earlier, os.DirFS(records)) })
	send(200)
	source.commits(2200)
	restart(func() error { return errors.Join(os.RemoveAll(records), os.Rename(earlier, records)) })
	send(40)
	r.joined(t)
	if r.Metric("tricycle_ms3_reader_reopened_total") == 0 {
		t.Error("the partitions did not become shorter")
	}
	if got := r.Metric("tricycle_ms3_records_fetched_total"); got > 3000 {
		t.Errorf("got %v records fetched, want few more than the %d that were written", got, sent)
	}
}

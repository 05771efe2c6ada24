package ms3

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestOnlyWhatIsDoneIsCommitted(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	ms, records := messages(10)
	var takes atomic.Bool
	store.answers(func(w http.ResponseWriter, _ *http.Request, m message.Message, _ int) {
		if m.Key() == ms[4].Key() && !takes.Load() {
			w.WriteHeader(503)
		}
	})
	start(t, k, store.URL)
	source.produce(0, records...)
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == 10 })
	source.commits(4)
	servicetest.Eventually(t, time.Minute, "a few tries", func() bool { return len(store.posted(ms[4].Key())) > 4 })
	if n := source.committed("group." + k.Topic); n != 4 {
		t.Errorf("committed %d, expected the four before the open one", n)
	}
	takes.Store(true)
	source.commits(10)
}

func TestMembersJoinAndLeaveUnderLoad(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	first := start(t, k, store.URL)
	first.joined(t)
	load, enough := context.WithCancel(t.Context())
	var sent atomic.Int64
	var loading sync.WaitGroup
	loading.Go(func() {
		for retry.Pause(load, 20*time.Millisecond) { // 1,000 messages a second
			source.send(20)
			sent.Add(20)
		}
	})
	for range 10 {
		second := start(t, k, store.URL)
		second.joined(t)
		servicetest.Eventually(t, time.Minute, "both fetch", func() bool { return second.Metric("tricycle_ms3_records_fetched_total") > 0 })
		second.Stop()
	}
	enough()
	loading.Wait()
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == int(sent.Load()) })
	source.commits(sent.Load())
	if n := first.Metric("tricycle_ms3_reader_reopened_total"); n != 0 {
		t.Errorf("the reader was taken for stalled %v times", n)
	}
	t.Logf("%d messages, %v fetched by the one that stayed", sent.Load(), first.Metric("tricycle_ms3_records_fetched_total"))
}

func TestStalledReaderIsReopened(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(c *kfake.Cluster, k topic.Config, on *atomic.Bool){
		// All answers are empty.
		"nothing is fetched": func(c *kfake.Cluster, k topic.Config, on *atomic.Bool) {
			c.ControlKey(int16(kmsg.Fetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
				c.KeepControl()
				if !on.Load() {
					return nil, nil, false
				}
				request := r.(*kmsg.FetchRequest)
				response := request.ResponseKind().(*kmsg.FetchResponse)
				for _, t := range request.Topics {
					topic := kmsg.NewFetchResponseTopic()
					topic.Topic, topic.TopicID = t.Topic, t.TopicID
					for _, p := range t.Partitions {
						partition := kmsg.NewFetchResponseTopicPartition()
						partition.Partition, partition.HighWatermark, partition.RecordBatches = p.Partition, p.FetchOffset, []byte{}
						topic.Partitions = append(topic.Partitions, partition)
					}
					response.Topics = append(response.Topics, topic)
				}
				return response, nil, true
			})
		},
		// The group does not let it in.
		"no member": func(c *kfake.Cluster, k topic.Config, on *atomic.Bool) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, TopLevel: true, Err: kerr.GroupMaxSizeReached, Count: -1,
				When: func(kmsg.Request) bool { return on.Load() }})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k, store, source := neighbours(t, topictest.For(t, address))
			var on atomic.Bool
			on.Store(true)
			fault(cluster, k, &on)
			r := start(t, k, store.URL, func(s *Service) { s.consumer.stall = time.Second })
			source.send(10)
			servicetest.Eventually(t, time.Minute, "reopened", func() bool { return r.Metric("tricycle_ms3_reader_reopened_total") > 0 })
			if store.got() != 0 {
				t.Error("the fault did not work")
			}
			if name == "no member" {
				servicetest.Eventually(t, time.Minute, "the reason is logged", func() bool { return r.Log.Has("group.max.size") })
			}
			on.Store(false)
			source.commits(10)
			r.joined(t)
		})
	}
}

// MS1 takes nothing, so all records that there is room for wait when their reader is
// replaced.
func TestReopenedReaderHasRoom(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	store.answers(func(w http.ResponseWriter, _ *http.Request, _ message.Message, _ int) { w.WriteHeader(503) })
	r := start(t, k, store.URL, func(s *Service) { s.consumer.stall = time.Second })
	_, records := messages(2 * maxOpen)
	source.spread(records)
	servicetest.Eventually(t, time.Minute, "no room is left", func() bool { return r.Metric("tricycle_ms3_uncommitted_weight") == maxOpen })
	out := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup, kmsg.Heartbeat}, TopLevel: true, Err: kerr.UnknownMemberID, Count: -1})
	group, err := source.Client().DescribeGroups(t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{"group." + k.Topic}})
	servicetest.NoError(t, err)
	servicetest.NoError(t, remove(t.Context(), r.consumer.cluster.Client(), r.consumer.config.GroupID, []string{group.Groups[0].Members[0].MemberID}))
	servicetest.Eventually(t, time.Minute, "reopened", func() bool { return r.Metric("tricycle_ms3_reader_reopened_total") > 0 })
	// Another member reads everything meanwhile.
	end := map[string][]kafka.OffsetCommit{}
	for p := range 4 {
		end[k.Topic] = append(end[k.Topic], kafka.OffsetCommit{Partition: p, Offset: 2 * maxOpen / 4})
	}
	if _, err := source.Client().OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{GroupID: "group." + k.Topic, GenerationID: -1, Topics: end}); err != nil {
		t.Fatal(err)
	}
	out.Remove()
	store.answers(func(http.ResponseWriter, *http.Request, message.Message, int) {})
	source.spread(records[:8])
	source.commits(2*maxOpen + 8)
	if got := r.Metric("tricycle_ms3_uncommitted_weight"); got != 0 {
		t.Errorf("got %v taken at the end, want none", got)
	}
}

// The broker that was asked for the partitions did not know the new topic yet, and
// kafka-go asks for them again only to compare.
func TestGroupWithoutPartitionsIsJoinedAgain(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: k.Topic, Err: kerr.UnknownTopicOrPartition,
		When: func(r kmsg.Request) bool { return r.GetVersion() <= 6 }}) // of the reader, not the cluster's client
	r := start(t, k, store.URL, func(s *Service) { s.consumer.stall = time.Second })
	source.send(10)
	source.commits(10)
	r.joined(t)
	if r.Metric("tricycle_ms3_reader_reopened_total") == 0 {
		t.Error("the fault did not work")
	}
}

// A member of a complete group, whom the broker lets read nothing.
func TestRefusedFetchesAreNotReady(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store := topictest.For(t, address), newMS1(t)
	r := start(t, k, store.URL, func(s *Service) { s.consumer.joining = 0 })
	r.joined(t)
	refuse := func(err *kerr.Error) *kfake.FaultHandle {
		return cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: k.Topic, Err: err, Count: -1})
	}
	fault := refuse(kerr.TopicAuthorizationFailed)
	want := "fetch from " + k.Topic + ": [29] Topic Authorization Failed"
	servicetest.Eventually(t, time.Minute, want, func() bool { return strings.Contains(fmt.Sprint(r.consumer.ready(t.Context())), want) })
	servicetest.Eventually(t, time.Minute, "it is logged", func() bool { return r.Log.Has(want) })
	fault.Remove()
	refuse(kerr.LeaderNotAvailable) // another partition may have its leader
	r.joined(t)
}

// A member that reads and heartbeats, whose offsets the broker does not keep, as
// without enough replicas of the topic of the offsets.
func TestRefusedCommitsAreNotReady(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	r := start(t, k, store.URL, func(s *Service) { s.consumer.joining = time.Second })
	r.joined(t)
	fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Topic: k.Topic, Err: kerr.CoordinatorNotAvailable, Count: -1})
	source.send(10)
	want := "commit offsets of group group." + k.Topic + ": [15] Group Coordinator Not Available"
	servicetest.Eventually(t, time.Minute, want, func() bool { return strings.Contains(fmt.Sprint(r.consumer.ready(t.Context())), want) })
	if !r.Log.Has(want) {
		t.Error("it is not logged")
	}
	fault.Remove()
	source.commits(10)
	r.joined(t)
}

func TestASpareMemberIsHealthy(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	k.Partitions = 1
	var all []*running
	for range 2 {
		all = append(all, start(t, k, store.URL, func(s *Service) { s.consumer.stall = 2 * time.Second }))
	}
	for _, r := range all {
		r.joined(t)
	}
	begin := time.Now()
	servicetest.Eventually(t, time.Minute, "time passes", func() bool { return time.Since(begin) > 3*time.Second })
	for _, r := range all {
		if n := r.Metric("tricycle_ms3_reader_reopened_total"); n != 0 {
			t.Errorf("reopened %v times", n)
		}
	}
}

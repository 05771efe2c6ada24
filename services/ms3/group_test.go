package ms3

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/servertest"
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
	servicetest.Fails(t, time.Second, want, r.consumer.ready)
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
	servicetest.Fails(t, time.Second, want, r.consumer.ready)
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

// Each step is a state and the group's members: ours are a to e, a replica's
// begin with r. A step "rejoin" is a new reader.
func TestMembers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		steps  []string
		remove []string // by step
	}{
		"one member":                   {[]string{"Stable a", "Stable a"}, []string{"", ""}},
		"a replica joins":              {[]string{"Stable a", "PreparingRebalance a r", "Stable a r", "Stable a"}, []string{"", "", "", ""}},
		"the broker has restarted":     {[]string{"Stable a r", "PreparingRebalance a r", "PreparingRebalance a b r", "Stable b r"}, []string{"", "", "a", ""}},
		"it could not be removed":      {[]string{"Stable a", "PreparingRebalance a b", "PreparingRebalance a b", "Stable b"}, []string{"", "a", "a", ""}},
		"twice":                        {[]string{"Stable a", "PreparingRebalance a b", "PreparingRebalance a b c", "Stable c"}, []string{"", "a", "a", ""}},
		"restarted again":              {[]string{"Stable a", "PreparingRebalance a b", "Stable b", "PreparingRebalance b c"}, []string{"", "a", "", "b"}},
		"a new reader":                 {[]string{"Stable a", "rejoin", "Stable a", "PreparingRebalance a b"}, []string{"", "", "", "a"}},
		"the replica's former member":  {[]string{"Stable a r1", "PreparingRebalance a r1 r2", "Stable a r2"}, []string{"", "", ""}},
		"never seen in a stable group": {[]string{"PreparingRebalance a", "PreparingRebalance a b", "Stable b"}, []string{"", "", ""}},
		"two in a stable group":        {[]string{"Stable a b", "PreparingRebalance a b c"}, []string{"", ""}},
		"all are gone for a moment":    {[]string{"Stable a", "Empty", "PreparingRebalance a b"}, []string{"", "", "a"}},
	} {
		m := members{clientID: "ours"}
		for i, step := range c.steps {
			state, ids, _ := strings.Cut(step, " ")
			if state == "rejoin" {
				m.rejoin()
				continue
			}
			g := kafka.DescribeGroupsResponseGroup{GroupState: state}
			for _, id := range strings.Fields(ids) {
				client := "ours"
				if id[0] == 'r' {
					client = "replica"
				}
				g.Members = append(g.Members, kafka.DescribeGroupsResponseMember{MemberID: id, ClientID: client})
			}
			if _, remove := m.observe(g); strings.Join(remove, " ") != c.remove[i] {
				t.Errorf("%s: step %d removes %v, want %q", name, i, remove, c.remove[i])
			}
		}
	}
}

// The sessions of these members time out in two minutes. Unless their former
// members are removed, the group waits for them.
const longSession = 2 * time.Minute

// startPair starts two members of one group and returns their ids.
func startPair(t *testing.T, k topic.Config, url string, source *ms2) (pair [2]*running, ids []string) {
	for i := range pair {
		pair[i] = start(t, k, url, func(s *Service) { s.consumer.session = longSession })
	}
	return pair, stablePair(t, k, source, pair)
}

// stablePair waits until the group consists of the two members and returns
// their ids.
func stablePair(t *testing.T, k topic.Config, source *ms2, pair [2]*running) (ids []string) {
	t.Helper()
	servicetest.Eventually(t, longSession/2, "both are the group's members", func() bool {
		resp, err := source.Client().DescribeGroups(t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{"group." + k.Topic}})
		if err != nil || len(resp.Groups) != 1 || resp.Groups[0].GroupState != "Stable" {
			return false
		}
		ids = nil
		for _, m := range resp.Groups[0].Members {
			ids = append(ids, m.MemberID)
		}
		return len(ids) == 2 && pair[0].consumer.ready(t.Context()) == nil && pair[1].consumer.ready(t.Context()) == nil
	})
	return ids
}

func TestFormerMembersAreRemovedAfterARestart(t *testing.T) {
	t.Parallel()
	server := servertest.Kafka(t, "")
	k, store, source := neighbours(t, topictest.For(t, server.Address))
	pair, before := startPair(t, k, store.URL, source)
	source.send(400)
	servicetest.Eventually(t, 20*time.Second, "stored before", func() bool { return store.got() == 400 })
	server.Kill()
	servicetest.Eventually(t, 20*time.Second, "the broker is missed", func() bool {
		return pair[0].cluster.Ready(t.Context()) != nil && pair[1].cluster.Ready(t.Context()) != nil
	})
	server.Start()
	begin := time.Now()
	source.send(400)
	servicetest.Eventually(t, longSession/2, "stored after", func() bool { return store.got() == 800 })
	t.Logf("stored %s after the broker was ready", time.Since(begin))
	for _, id := range stablePair(t, k, source, pair) {
		if slices.Contains(before, id) {
			t.Errorf("member %s is still in the group", id)
		}
	}
}

// One of two members rejoins under a new id.
func TestAReplicasMemberIsNotRemoved(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	pair, before := startPair(t, k, store.URL, source)
	for _, key := range []kmsg.Key{kmsg.LeaveGroup, kmsg.JoinGroup, kmsg.Heartbeat} {
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{key}, TopLevel: true, Err: kerr.NotCoordinator, Count: 1})
	}
	servicetest.Eventually(t, longSession/2, "one has rejoined", func() bool {
		ids := stablePair(t, k, source, pair)
		return slices.Contains(ids, before[0]) != slices.Contains(ids, before[1])
	})
	source.send(400)
	servicetest.Eventually(t, 20*time.Second, "stored", func() bool { return store.got() == 400 })
}

// Another program consumes as a member of the group, for instance a console of Kafka.
func TestAStrangerInTheGroupIsNotReady(t *testing.T) {
	t.Parallel()
	for want, join := range map[string]func(t *testing.T, broker, topic, group string) (leave func()){
		"must have members of MS3 only, got client \"somebody\"": func(_ *testing.T, broker, topic, group string) func() {
			r := kafka.NewReader(kafka.ReaderConfig{
				Brokers: []string{broker}, Topic: topic, GroupID: group, Dialer: &kafka.Dialer{ClientID: "somebody"}, MaxWait: 500 * time.Millisecond,
			})
			return func() { _ = r.Close() }
		},
		"must have members of MS3 only, got another client": func(t *testing.T, broker, topic, group string) func() {
			c, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ConsumeTopics(topic), kgo.ConsumerGroup(group), kgo.Balancers(kgo.RangeBalancer()))
			servicetest.NoError(t, err)
			return c.Close
		},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			k, store := topictest.Config(t), newMS1(t)
			r := start(t, k, store.URL)
			r.joined(t)
			leave := join(t, k.Brokers[0], k.Topic, r.consumer.config.GroupID)
			defer leave()
			servicetest.Fails(t, time.Second, want, r.consumer.ready)
			leave()
			r.joined(t)
		})
	}
}

package ms3

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

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
			servicetest.Eventually(t, time.Minute, want, func() bool { return strings.Contains(fmt.Sprint(r.consumer.ready(t.Context())), want) })
			leave()
			r.joined(t)
		})
	}
}

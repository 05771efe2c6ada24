package ms2

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// stuckBroker is a broker that does not answer requests to produce that contain a
// record with one of the keys, or are for the same partition as an unanswered one.
type stuckBroker struct {
	cluster *kfake.Cluster
	k       topic.Config
	release func()

	mu       sync.Mutex
	requests []int // partitions, in order
	waiting  map[int]bool
}

func hold(t *testing.T, keys ...string) *stuckBroker {
	released := make(chan struct{})
	cluster, address := topictest.Cluster(t, kfake.SleepOutOfOrder())
	h := &stuckBroker{cluster: cluster, k: topictest.For(t, address), release: sync.OnceFunc(func() { close(released) }), waiting: map[int]bool{}}
	var controlled atomic.Int32
	wakeAtTheEnd(t, h.release, &controlled)
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		controlled.Add(1)
		defer controlled.Add(-1)
		asked := r.(*kmsg.ProduceRequest).Topics[0].Partitions[0]
		number := int(asked.Partition)
		h.mu.Lock()
		h.requests = append(h.requests, number)
		if h.waiting[number] = h.waiting[number] || slices.ContainsFunc(keys, func(k string) bool { return bytes.Contains(asked.Records, []byte(k)) }); h.waiting[number] {
			defer cluster.SleepControl(func() { <-released })
		}
		h.mu.Unlock()
		return nil, nil, false
	})
	return h
}

func (h *stuckBroker) seen() []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.requests)
}

// unanswered checks that no request has ended for want of an answer.
func (h *stuckBroker) unanswered(t *testing.T, r *running) {
	t.Helper()
	if r.Metric("tricycle_ms2_produce_retries_total") != 0 {
		t.Error("the messages waited until the request was given up")
	}
}

func TestMessagesThatArriveDuringARequestFormTheNext(t *testing.T) {
	t.Parallel()
	ms := messages(1 + batchLength)
	h := hold(t, ms[0].Key().String())
	r := start(t, h.k, func(s *Service) { s.queue.lateTime = time.Hour }).ready()
	ws := r.dial(t)
	ws.send(t, ms[0])
	servicetest.Eventually(t, time.Minute, "it is in flight", func() bool { return len(h.seen()) == 1 })
	ws.send(t, ms[1:batchLength]...)
	servicetest.Eventually(t, time.Minute, "the others wait", func() bool {
		r.queue.mu.Lock()
		defer r.queue.mu.Unlock()
		return len(r.queue.waiting) == batchLength-1
	})
	if got := h.seen(); len(got) != 1 {
		t.Errorf("got requests to partitions %v, want one", got)
	}
	ws.send(t, ms[batchLength]) // a full request waits for no other
	r.produced(t, batchLength)
	if got := h.seen(); len(got) != 2 || got[0] == got[1] {
		t.Errorf("got requests to partitions %v, want two", got)
	}
	h.unanswered(t, r)
	h.release()
	r.produced(t, 1+batchLength)
}

func TestNoMessageWaitsForALateRequest(t *testing.T) {
	t.Parallel()
	ms := messages(10)
	h := hold(t, ms[0].Key().String())
	r := start(t, h.k).ready()
	ws := r.dial(t)
	ws.send(t, ms[0])
	servicetest.Eventually(t, time.Minute, "it is in flight", func() bool { return len(h.seen()) == 1 })
	for i := range ms[1:] {
		ws.send(t, ms[1+i])
		r.produced(t, 1+i)
	}
	seen := h.seen()
	if first := seen[0]; slices.Contains(seen[1:], first) {
		t.Errorf("got requests to partitions %v, want none for %d after the first", seen, first)
	}
	h.unanswered(t, r)
	h.release()
	r.produced(t, len(ms))
}

func TestAtShutdownNoMessageWaitsForALateRequest(t *testing.T) {
	t.Parallel()
	ms := messages(4 + batchLength + 20)
	h := hold(t, ms[4].Key().String())
	refusing := refuse(h.cluster, kerr.NotEnoughReplicas, nil)
	r := start(t, h.k, func(s *Service) { s.drain = 6 * time.Second }).ready() // less than a request may take
	ws := r.dial(t)
	for i := range 4 {
		ws.send(t, ms[i])
		servicetest.Eventually(t, time.Minute, "its sender has failed", func() bool {
			r.queue.mu.Lock()
			defer r.queue.mu.Unlock()
			return r.queue.senders == i+1 && r.queue.awaited == 0
		})
	}
	ws.send(t, ms[4:]...)
	servicetest.Eventually(t, time.Minute, "all are read", func() bool { return r.Metric("tricycle_ms2_messages_received_total") == float64(len(ms)) })
	stopped := make(chan time.Duration, 1)
	go func() { stopped <- r.Stop() }()
	ws.closed(t)
	refusing.Remove()
	r.produced(t, len(ms)-batchLength)
	h.release()
	<-stopped
}

func TestNextRequest(t *testing.T) {
	t.Parallel()
	const own, other = 1, 2
	for name, c := range map[string]struct {
		waiting, most  int
		shrunk         time.Duration // ago
		awaited        int
		want, wantMost int
	}{
		"nothing waits":                    {0, 100, time.Hour, own, 0, 100},
		"all that waits":                   {99, 100, time.Hour, own, 99, 100},
		"no more than a request may have":  {250, 100, time.Hour, own, 100, 100},
		"few wait for another request":     {99, 100, time.Hour, other, 0, 100},
		"many do not":                      {100, 100, time.Hour, other, 100, 100},
		"a late request is not waited for": {1, 100, time.Hour, 0, 1, 100},
		"fewer for a while":                {100, 30, 0, own, 30, 30},
		"then as many as usual":            {100, 30, shrunkTime, own, 100, 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newQueue(nil, "", newMetrics(prometheus.NewRegistry()), zerolog.Nop(), func() {})
			defer q.drop()
			q.waiting, q.most, q.senders, q.awaited = make([]entry, c.waiting), c.most, 1, c.awaited
			q.shrunk = time.Now().Add(-c.shrunk)
			_, batch := q.next(own)
			if len(batch) != c.want || len(batch)+len(q.waiting) != c.waiting || q.most != c.wantMost {
				t.Errorf("got %d messages, %d wait, at most %d; want %d, at most %d", len(batch), len(q.waiting), q.most, c.want, c.wantMost)
			}
			if ended := q.senders == 0; ended != (c.want == 0) || ended == (q.awaited == own) {
				t.Errorf("got it ended %t, awaited %t", ended, q.awaited == own)
			}
		})
	}
}

func TestTurnsOfThePartitions(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t)).ready()
	q := newQueue(r.cluster, "", newMetrics(prometheus.NewRegistry()), zerolog.Nop(), func() {})
	defer q.drop()
	turns := func(n int) (numbers []int) {
		for range n {
			number, _ := q.begin()
			numbers = append(numbers, number)
		}
		return numbers
	}
	q.end(1, kafka.NotLeaderForPartition)
	q.end(2, kafka.MessageSizeTooLarge) // a smaller batch may be accepted
	clear(q.busy)
	q.failed[3] = time.Now().Add(-failedTime)
	if got := turns(6); !slices.Equal(got, []int{0, 2, 3, 0, 2, 3}) {
		t.Errorf("got requests to partitions %v, want none for the one that failed", got)
	}
	clear(q.busy)
	q.turn, q.failed = 2, map[int]time.Time{0: time.Now(), 1: time.Now(), 3: time.Now()}
	if got := turns(4); !slices.Equal(got, []int{2, 2, 3, 0}) {
		t.Errorf("got requests to partitions %v, want those that failed if the other does not answer", got)
	}
	clear(q.busy)
	q.turn, q.busy[2], q.failed[2] = 0, 1, time.Now()
	if got := turns(4); !slices.Equal(got, []int{0, 1, 3, 0}) {
		t.Errorf("got requests to partitions %v, want turns of those without one", got)
	}
}

// A partition whose leader does not answer the checks gets no message.
func TestAnUnreachablePartitionIsPassedOver(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Partitions: []int32{1}, Err: kerr.NotLeaderForPartition, Count: -1})
	r := start(t, k).ready()
	servicetest.Eventually(t, time.Minute, "it is noticed", func() bool { return r.Log.Has("partition unavailable") })
	ms := messages(12)
	ws := r.dial(t)
	for i := range ms {
		ws.send(t, ms[i])
		r.produced(t, 1+i)
	}
	for key, record := range distinct(t, k, ms) {
		if record.Partition == 1 {
			t.Errorf("%s: in the partition that is unreachable", key)
		}
	}
}

func TestNoMessageWaitsForARefusedOne(t *testing.T) {
	t.Parallel()
	ms := messages(20)
	refused := ms[0].Key().String()
	cluster, address := topictest.Cluster(t)
	refusing := refuse(cluster, kerr.InvalidRecord, func(asked kmsg.ProduceRequestTopicPartition) bool {
		return bytes.Contains(asked.Records, []byte(refused))
	})
	r := start(t, topictest.For(t, address), func(s *Service) { s.queue.lateTime = time.Hour }).ready()
	ws := r.dial(t)
	ws.send(t, ms[0])
	servicetest.Eventually(t, time.Minute, "it is refused", func() bool { return r.Metric("tricycle_ms2_produce_retries_total") > 3 })
	ws.send(t, ms[1:]...)
	r.produced(t, len(ms)-1)
	refusing.Remove()
	r.produced(t, len(ms))
}

func TestAfterAnOutageAllPartitionsAreUsed(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	refusing := refuse(cluster, kerr.NotEnoughReplicas, nil)
	r := start(t, k).ready()
	ms := messages(9)
	ws := r.dial(t)
	ws.send(t, ms[0])
	servicetest.Eventually(t, time.Minute, "all have refused it", func() bool { return r.Metric("tricycle_ms2_produce_retries_total") > 4 })
	refusing.Remove()
	used := map[int]int{}
	for i := range ms {
		if i > 0 {
			ws.send(t, ms[i])
		}
		r.produced(t, 1+i)
	}
	for _, record := range distinct(t, k, ms) {
		used[record.Partition]++
	}
	if got := slices.Sorted(maps.Keys(used)); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("got records by partition %v, want all four in use", used)
	}
}

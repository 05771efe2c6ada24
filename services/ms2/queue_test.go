package ms2

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// stalledCluster is a broker that answers no request to produce before heal is
// called.
func stalledCluster(t *testing.T) (address string, heal func()) {
	healed := make(chan struct{})
	var controlled atomic.Int32
	var cluster *kfake.Cluster
	cluster, address = topictest.Cluster(t, kfake.SleepOutOfOrder())
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		controlled.Add(1)
		defer controlled.Add(-1)
		select {
		case <-healed:
		default:
			cluster.SleepControl(func() { <-healed })
		}
		return nil, nil, false
	})
	heal = sync.OnceFunc(func() { close(healed) })
	wakeAtTheEnd(t, heal, &controlled)
	return address, heal
}

// wakeAtTheEnd wakes the sleeping requests of a broker before it is closed, which
// would leak them.
func wakeAtTheEnd(t *testing.T, wake func(), controlled *atomic.Int32) {
	t.Cleanup(func() {
		wake()
		servicetest.Eventually(t, time.Minute, "no request sleeps", func() bool { return controlled.Load() == 0 })
	})
}

// ping is the time between two pings where a test waits for several.
const ping = 500 * time.Millisecond

func TestPressureReachesMS1(t *testing.T) {
	address, heal := stalledCluster(t)
	k := topictest.For(t, address)
	r := start(t, k, func(s *Service) { s.queue.stall, s.ping = time.Minute, ping }).ready()
	var before, full runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)

	ws := r.dial(t)
	ms := messages(40_000)
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, m := range ms {
			if err := ws.WriteMessage(websocket.TextMessage, m.Encode()); err != nil {
				t.Errorf("sending: %v", err)
				return
			}
			sent.Add(1)
		}
	}()
	received := func() float64 { return r.Metric("tricycle_ms2_messages_received_total") }
	servicetest.Eventually(t, time.Minute, "the queue is full", func() bool {
		return r.Metric("tricycle_ms2_queue_messages") == queueLength && received() == queueLength+1
	})
	// Longer than the silence that ends a connection, during which nothing is
	// read and MS1 still lives.
	begin := time.Now()
	servicetest.Eventually(t, time.Minute, "time passes", func() bool {
		if received() != queueLength+1 {
			t.Fatal("it reads though its queue is full")
		}
		return time.Since(begin) > (lostPings+1)*ping
	})
	if sent.Load() == int64(len(ms)) {
		t.Error("everything could be sent; pressure did not reach the sender")
	}
	runtime.GC()
	runtime.ReadMemStats(&full)
	if grown := int64(full.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	heal()
	<-done
	r.produced(t, len(ms))
	if r.Metric("tricycle_ms2_connections") != 1 {
		t.Error("the connection was closed")
	}
}

func TestPartitionsTakeLittleMemory(t *testing.T) {
	_, address := topictest.Cluster(t)
	k := topictest.For(t, address)
	k.Partitions = 100
	r := start(t, k).ready()
	ws := r.dial(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ws.send(t, messages(1)...)
	r.produced(t, 1)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
}

func TestWithoutProgressTheQueueIsDropped(t *testing.T) {
	t.Parallel()
	address, heal := stalledCluster(t)
	k := topictest.For(t, address)
	r := start(t, k, func(s *Service) { s.queue.stall = 2 * time.Second }).ready()
	ms := messages(5000)
	first, second := r.dial(t), r.dial(t)
	go func() {
		for _, m := range ms { // more than the queue holds: the peer waits for room when it is closed
			if first.WriteMessage(websocket.TextMessage, m.Encode()) != nil {
				return
			}
		}
	}()
	for _, c := range []*client{first, second} {
		if closed := c.closed(t); closed.Code != websocket.CloseTryAgainLater || !strings.Contains(closed.Text, "kafka") {
			t.Errorf("got %v, want 1013", closed)
		}
	}
	servicetest.Eventually(t, time.Minute, "the queue is empty", func() bool { return r.Metric("tricycle_ms2_queue_messages") == 0 })
	if got := r.Metric("tricycle_ms2_messages_dropped_total"); got < 100 {
		t.Errorf("got %v dropped", got)
	}
	// The first peer may have put one more message into the empty queue.
	if got := r.Log.Count("kafka accepts nothing, queue dropped"); got == 0 || got > 2 {
		t.Errorf("got it dropped %d times, want all at once", got)
	}
	heal()
	r.ready()
	again := r.dial(t)
	again.send(t, ms...)
	servicetest.Eventually(t, time.Minute, "all acknowledged", func() bool {
		return r.Metric("tricycle_ms2_messages_produced_total") >= float64(len(ms))
	})
	select {
	case err := <-again.ended:
		t.Errorf("the new connection has ended: %v", err)
	default:
	}
}

func TestProgressStartsTheClockOfAStallAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stalls := 0
		q := newQueue(nil, "", newMetrics(prometheus.NewRegistry()), zerolog.Nop(), func() { stalls++ })
		q.slots <- struct{}{} // it never becomes empty
		for i, step := range []struct {
			after time.Duration
			do    func()
			want  int
		}{
			{stallTime - time.Second, func() { q.produced(nil, 0, 0) }, 0},
			{stallTime - time.Second, func() {}, 0},
			{2 * time.Second, func() {}, 1},
			{stallTime - time.Second, func() {}, 1}, // a dropped queue starts it too
			{2 * time.Second, func() {}, 2},
		} {
			time.Sleep(step.after)
			q.watch()
			step.do()
			if stalls != step.want {
				t.Errorf("step %d: got %d stalls, want %d", i, stalls, step.want)
			}
		}
		q.drop()
	})
}

func TestAnIdleQueueIsNoStall(t *testing.T) {
	t.Parallel()
	r := start(t, topictest.Config(t), func(s *Service) { s.queue.stall = 2 * time.Second }).ready()
	ws := r.dial(t)
	begin := time.Now()
	servicetest.Eventually(t, time.Minute, "time passes", func() bool { return time.Since(begin) > 3*time.Second })
	ws.send(t, messages(1)...)
	r.produced(t, 1)
}

func TestStopWritesWhatWasRead(t *testing.T) {
	t.Parallel()
	address, heal := stalledCluster(t)
	k := topictest.For(t, address)
	r := start(t, k, func(s *Service) { s.drain = time.Minute }).ready() // for a busy machine
	ws := r.dial(t)
	ms := messages(500)
	ws.send(t, ms...)
	servicetest.Eventually(t, time.Minute, "all read", func() bool { return r.Metric("tricycle_ms2_messages_received_total") == 500 })
	stopped := make(chan time.Duration, 1)
	go func() { stopped <- r.Stop() }()
	if closed := ws.closed(t); closed.Code != websocket.CloseGoingAway {
		t.Errorf("got %v, want 1001", closed)
	}
	heal()
	if took := <-stopped; took > r.drain/2 {
		t.Errorf("stopping took %s, as long as the drain may", took)
	}
	distinct(t, k, ms)
	if r.Metric("tricycle_ms2_messages_dropped_total") != 0 {
		t.Error("messages were dropped")
	}
}

func TestStopIsBoundedWhenKafkaIsStuck(t *testing.T) {
	t.Parallel()
	address, _ := stalledCluster(t)
	r := start(t, topictest.For(t, address)).ready()
	r.dial(t).send(t, messages(500)...)
	servicetest.Eventually(t, time.Minute, "all read", func() bool { return r.Metric("tricycle_ms2_messages_received_total") == 500 })
	if took := r.Stop(); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if got := r.Metric("tricycle_ms2_messages_dropped_total"); got != 500 {
		t.Errorf("got %v dropped, want 500", got)
	}
	if got := r.Metric("tricycle_ms2_queue_messages"); got > queueLength {
		t.Errorf("got %v in the queue", got)
	}
}

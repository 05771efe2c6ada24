package ms3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestLettersShareRequests(t *testing.T) {
	t.Parallel()
	const many = 1000
	started, release := make(chan struct{}), make(chan struct{})
	written, requests := map[string]int{}, 0
	l := &letters{}
	l.produce = func(_ context.Context, batch ...kafka.Message) error {
		if requests++; requests == 1 {
			close(started)
			<-release
		}
		size := 0
		for _, m := range batch {
			size += len(m.Value)
			if string(m.Key) == "large" {
				return kafka.MessageSizeTooLarge
			}
		}
		if len(batch) > maxLetters || size > maxLetterBytes {
			t.Errorf("%d letters of %d bytes in a request", len(batch), size)
		}
		for _, m := range batch {
			written[string(m.Key)]++
		}
		return nil
	}
	var writing sync.WaitGroup
	write := func(key string, size int, want error) {
		writing.Go(func() {
			if err := l.write(t.Context(), kafka.Message{Key: []byte(key), Value: make([]byte, size)}); err != want {
				t.Errorf("letter %s: got %v, want %v", key, err, want)
			}
		})
	}
	write("first", 1, nil)
	<-started
	for i := range many {
		write(fmt.Sprint(i), 100, nil)
	}
	write("large", 100, kafka.MessageSizeTooLarge)
	for queued := 0; queued < many+1; {
		l.mu.Lock()
		queued = len(l.queue)
		l.mu.Unlock()
	}
	close(release)
	writing.Wait()
	if len(written) != many+1 {
		t.Errorf("%d letters are written, want %d", len(written), many+1)
	}
	if most := 2 + many/maxLetters + 1 + maxLetters; requests > most { // one batch goes letter by letter
		t.Errorf("%d letters in %d requests, want at most %d", many+2, requests, most)
	}
	for key, n := range written {
		if n != 1 {
			t.Errorf("letter %s is written %d times", key, n)
		}
	}
}

// Kafka that takes a request and never answers must not hold up the shutdown.
func TestLettersEndWithTheWork(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	work, stop := context.WithCancel(t.Context())
	l := &letters{produce: func(ctx context.Context, _ ...kafka.Message) error {
		stop()
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Second):
		}
		if ctx.Err() != nil {
			close(ended)
		}
		return ctx.Err()
	}}
	if err := l.write(work, kafka.Message{}); err == nil {
		t.Error("got no error for a letter that was not written")
	}
	servicetest.Receive(t, "the end of the request", ended)
}

func TestMalformedRecordsBlockNothing(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	r := start(t, k, store.URL)
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	good, records := messages(400)
	const cases = 1200
	var mixed []kafka.Message
	malformed := map[string]bool{}
	for len(malformed) < cases {
		m := records[random.IntN(len(records))]
		value := bytes.Clone(m.Value)
		switch random.IntN(5) {
		case 0:
			value = value[:random.IntN(len(value))]
		case 1:
			value[random.IntN(12)] ^= byte(1 + random.IntN(127))
		case 2:
			value = make([]byte, random.IntN(9000))
			for i := range value {
				value[i] = byte(random.Uint32())
			}
		case 3: // a message that has not been at MS2
			value = bytes.Replace(value, []byte(`"service2_timestamp":"`), []byte(`"service2_timestamp":null,"x":"`), 1)
		case 4:
			value = append(value, '}')
		}
		if _, err := message.Decode(value, message.AtMS3); err == nil {
			t.Fatalf("the test made a good message: %s", value)
		}
		id := fmt.Sprintf("case %d", len(malformed))
		malformed[id] = true
		mixed = append(mixed, kafka.Message{Key: []byte(id), Value: value})
	}
	mixed = append(mixed, records...)
	mixed = append(mixed, kafka.Message{}, kafka.Message{Key: []byte("tombstone")})
	random.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	source.spread(mixed)
	servicetest.Eventually(t, time.Minute, "all good ones posted", func() bool { return store.got() == len(good) })
	source.commits(int64(len(mixed)))
	if got := r.Metric("tricycle_ms3_dead_letters_total", "malformed"); got < cases+2 {
		t.Errorf("got %v dead letters, want %d", got, cases+2)
	}
	for _, letter := range topictest.Read(t, k, k.DeadLetterTopic, cases+2) {
		headers := topic.Headers(letter.Headers)
		if headers.Get(topic.HeaderReason) == "" || headers.Get(topic.HeaderStatus) != "" {
			t.Fatalf("found headers %v", headers)
		}
		delete(malformed, string(letter.Key))
	}
	if len(malformed) > 0 {
		t.Errorf("%d malformed records are no dead letters", len(malformed))
	}
}

func TestEndsOfTransactionsAreNoRecords(t *testing.T) {
	t.Parallel()
	k, store, source := neighbours(t, topictest.Config(t))
	r := start(t, k, store.URL)
	_, records := messages(1)
	mark := []byte{0, 0, 0, 0, 0, 9}
	source.produce(0,
		kafka.Message{Key: []byte{0, 0, 0, 0}, Value: mark}, // aborted
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: mark}, // committed
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: records[0].Value},
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: []byte("junk")}, // both of somebody whose keys are numbers
		kafka.Message{Key: []byte{0, 0, 0, 2}, Value: mark},
		kafka.Message{Key: []byte{0, 0, 0, 1}, Value: mark}) // nothing after it
	source.commits(6)
	if store.got() != 1 || r.Metric("tricycle_ms3_records_fetched_total") != 3 || r.Metric("tricycle_ms3_dead_letters_total") != 2 {
		t.Errorf("got %d posted, %v fetched and %v dead letters, want 1, 3 and 2", store.got(),
			r.Metric("tricycle_ms3_records_fetched_total"), r.Metric("tricycle_ms3_dead_letters_total"))
	}
}

func TestDeadLetterIsWrittenBeforeItsCommit(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: k.DeadLetterTopic, Err: kerr.NotEnoughReplicas, Count: -1})
	r := start(t, k, store.URL)
	good, records := messages(5)
	junk := kafka.Message{Value: bytes.Repeat([]byte("x"), 40_000), Headers: []kafka.Header{
		{Key: topic.HeaderOffset, Value: []byte("77")}, {Key: "mine", Value: []byte("1")}}} // it was a dead letter before
	source.produce(1, append([]kafka.Message{junk}, records...)...)
	servicetest.Eventually(t, time.Minute, "the others posted", func() bool { return store.got() == len(good) })
	servicetest.Eventually(t, time.Minute, "several tries", func() bool { return fault.Hits() > 3 })
	if n := source.committed("group." + k.Topic); n != 0 {
		t.Errorf("committed %d though the dead letter is not written", n)
	}
	if err := r.consumer.ready(t.Context()); !errors.Is(err, kafka.NotEnoughReplicas) {
		t.Errorf("ready: got %v, want the error of the dead letter", err)
	}
	if n := r.Log.Count("dead letter not written"); n != 1 {
		t.Errorf("got %d log entries, want one", n)
	}
	// The junk weighs as much as ten messages.
	servicetest.Eventually(t, time.Minute, "their weight", func() bool { return r.Metric("tricycle_ms3_uncommitted_weight") == 10+5 })
	fault.Remove()
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: k.DeadLetterTopic, Partitions: []int32{0, 2, 3}, Err: kerr.NotLeaderForPartition, Count: -1})
	source.commits(6)
	servicetest.Eventually(t, time.Minute, "ready", func() bool { return r.consumer.ready(t.Context()) == nil })
	found := map[string]string{}
	for _, h := range topictest.Read(t, k, k.DeadLetterTopic, 1)[0].Headers {
		if _, twice := found[h.Key]; twice {
			t.Errorf("found the header %s twice", h.Key)
		}
		found[h.Key] = string(h.Value)
	}
	if found[topic.HeaderOffset] != "0" || found["mine"] != "1" {
		t.Errorf("got %v, want the latest place, and the header of the record", found)
	}
}

func TestDeadLetterThatIsTooLargeGoesWithoutItsText(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: k.DeadLetterTopic, Err: kerr.MessageTooLarge})
	start(t, k, store.URL)
	source.produce(3, kafka.Message{Key: []byte("k"), Value: bytes.Repeat([]byte("x"), 900_000)})
	source.commits(1)
	letter := topictest.Read(t, k, k.DeadLetterTopic, 1)[0]
	headers := topic.Headers(letter.Headers)
	if len(letter.Value) != 0 || headers.Get(topic.HeaderPartition) != "3" || !strings.Contains(headers.Get(topic.HeaderReason), "900000 bytes") {
		t.Errorf("found %d bytes, %v", len(letter.Value), headers)
	}
}

func TestDeadLetterThatIsRefusedDoesNotBlock(t *testing.T) {
	t.Parallel()
	cases := map[string]kfake.Fault{
		// Nor may it be created.
		"there is no topic": {Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed},
		"it is secret":      {Keys: []kmsg.Key{kmsg.Metadata}, Err: kerr.TopicAuthorizationFailed},
	}
	for _, refusal := range []*kerr.Error{kerr.TopicAuthorizationFailed, kerr.MessageTooLarge, kerr.PolicyViolation, kerr.InvalidTimestamp, kerr.InvalidRecord} {
		cases[refusal.Message] = kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: refusal}
	}
	for name, fault := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t)
			k := topictest.For(t, address)
			servicetest.NoError(t, cluster.CreateTopic(k.Topic, 4, nil))
			fault.Topic, fault.Count = k.DeadLetterTopic, -1
			cluster.Fault(fault)
			k, store, source := neighbours(t, k)
			r := start(t, k, store.URL, func(s *Service) { s.consumer.refused.Most = retryFirst })
			_, records := messages(2)
			records[0].Value = []byte("malformed")
			source.produce(0, records...)
			source.commits(2)
			if r.Metric("tricycle_ms3_dead_letters_dropped_total") != 1 || !r.Log.Has("dead letter dropped") {
				t.Error("expected one dead letter that is counted and logged as dropped")
			}
		})
	}
}

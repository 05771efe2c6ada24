package ms3

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"crypto/rand"
	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestHappyPath(t *testing.T) {
	k := topictest.Config(t)
	var mu sync.Mutex
	seen := map[message.Key]int{}
	ms1 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		m, err := message.Decode(b, message.AtStore)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		seen[m.Key()]++
	}))
	defer ms1.Close()
	c := Defaults()
	c.Listen, c.Kafka, c.MS1.URL, c.GroupID = "127.0.0.1:0", k, ms1.URL+"/store", rand.Text()
	log := zerolog.New(zerolog.NewTestWriter(t))
	tel, err := telemetry.New(context.Background(), c.Tracing, "ms3", "test", log)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(c, log, tel)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	link := topic.NewLink(k, "test", log)
	topictest.Run(t, link)
	base := message.StampOf(time.Now())
	var ms []kafka.Message
	for i := range 1000 {
		m := message.Message{SessionID: 1, Service1: base + message.Stamp(i), Service2: base}
		ms = append(ms, kafka.Message{Key: []byte(m.Key().String()), Value: m.Encode()})
	}
	for p := range 4 {
		if _, err := link.Produce(t.Context(), k.Topic, p, ms[p*250:(p+1)*250]...); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	topictest.Eventually(t, 30*time.Second, "stored", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == 1000 })
	t.Log(time.Since(begin))
	topictest.Eventually(t, 30*time.Second, "ready", func() bool { return s.consumer.ready(ctx) == nil })
	t.Log(time.Since(begin))
	begin = time.Now()
	cancel()
	t.Log(<-done, time.Since(begin))
	o, err := link.Client().OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: c.GroupID, Topics: map[string][]int{k.Topic: {0, 1, 2, 3}}})
	t.Log(o, err)
}

package ms2

import (
	"context"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func start(t *testing.T, k topic.Config) (*Service, context.CancelFunc) {
	t.Helper()
	c := Defaults()
	c.Listen, c.Kafka = "127.0.0.1:0", k
	log := zerolog.New(zerolog.NewTestWriter(t))
	tel, err := telemetry.New(context.Background(), c.Tracing, "ms2", "test", log)
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
	t.Cleanup(func() { cancel(); <-done })
	return s, cancel
}

func TestHappyPath(t *testing.T) {
	k := topictest.Config(t)
	s, _ := start(t, k)
	topictest.Eventually(t, 20*time.Second, "ready", func() bool { return s.link.Ready(t.Context()) == nil })
	ws, _, err := websocket.DefaultDialer.Dial("ws://"+s.Address()+"/ws", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	begin := time.Now()
	for i := range 1000 {
		m := message.Message{SessionID: 1, Service1: message.StampOf(begin) + message.Stamp(i)}
		if err := ws.WriteMessage(websocket.TextMessage, m.Encode()); err != nil {
			t.Fatal(err)
		}
	}
	got := topictest.Read(t, k, k.Topic, 1000)
	t.Log(string(got[0].Key), string(got[0].Value), got[0].Headers, time.Since(begin))
}

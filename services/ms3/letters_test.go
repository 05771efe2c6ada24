package ms3

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
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

func TestStopIsBoundedWhenADeadLetterHangs(t *testing.T) {
	t.Parallel()
	address, hang := hangingBroker(t)
	k, store, source := neighbours(t, topictest.For(t, address))
	hung := make(chan struct{})
	store.answers(func(w http.ResponseWriter, _ *http.Request, _ message.Message, _ int) {
		<-hung
		httpserver.Problem{Type: httpserver.UnknownMessage, Status: http.StatusNotFound}.Write(w)
	})
	r := start(t, k, store.URL)
	source.send(20)
	servicetest.Eventually(t, time.Minute, "posting", func() bool { return store.got() > 0 })
	hang()
	close(hung)
	servicetest.Eventually(t, time.Minute, "writing dead letters", func() bool {
		r.consumer.letters.mu.Lock()
		defer r.consumer.letters.mu.Unlock()
		return r.consumer.letters.writing
	})
	if took := r.Stop(); took > 8*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

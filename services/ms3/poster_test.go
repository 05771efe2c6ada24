package ms3

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// Each message gets the answer that is its own, whether it is posted alone or
// beside others.
func TestEachWayToPost(t *testing.T) {
	t.Parallel()
	problem := func(status int, kind string) httpserver.Problem {
		return httpserver.Problem{Type: kind, Status: status, Detail: "because"}
	}
	// By the message's number modulo 8; the others are stored at once.
	finally := map[int]httpserver.Problem{
		1: problem(400, httpserver.MalformedMessage), 3: problem(404, httpserver.UnknownMessage), 5: problem(413, httpserver.MessageTooLarge),
	}
	twice := map[int]httpserver.Problem{2: problem(503, ""), 4: problem(404, ""), 6: problem(400, "")}
	for _, batch := range []int{1, 64} {
		t.Run(fmt.Sprintf("at most %d in a request", batch), func(t *testing.T) {
			t.Parallel()
			k, store, source := neighbours(t, topictest.Config(t))
			ms, records := messages(160)
			number := map[message.Key]int{}
			for i, m := range ms {
				number[m.Key()] = i
			}
			store.answers(func(w http.ResponseWriter, _ *http.Request, m message.Message, try int) {
				n := number[m.Key()] % 8
				if p, ok := finally[n]; ok {
					p.Write(w)
				} else if p, ok := twice[n]; ok && try <= 2 {
					p.Write(w)
				}
			})
			r := start(t, k, store.URL, func(c *Config) { c.MS1.BatchMessages = batch }, func(s *Service) {
				s.client.http.Timeout = time.Minute // a post after a time-out would be one too many
			})
			source.spread(records)
			source.commits(160)
			for _, m := range ms {
				want := 1
				if _, ok := twice[number[m.Key()]%8]; ok {
					want = 3
				}
				if n := len(store.posted(m.Key())); n != want {
					t.Errorf("message %d was posted %d times, want %d", number[m.Key()], n, want)
				}
			}
			status := map[string]int{}
			for _, letter := range topictest.Read(t, k, k.DeadLetterTopic, 60) {
				headers := topic.Headers(letter.Headers)
				status[headers.Get(topic.HeaderStatus)+" "+headers.Get(topic.HeaderReason)]++
			}
			for _, want := range []string{"400 MS1 answered 400: because", "404 MS1 answered 404: because", "413 MS1 answered 413: because"} {
				if status[want] != 20 {
					t.Errorf("got dead letters %v, want 20 of %q", status, want)
				}
			}
			if n := r.Metric("tricycle_ms3_messages_stored_total"); n != 100 {
				t.Errorf("got %v stored, want 100", n)
			}
			store.mu.Lock()
			defer store.mu.Unlock()
			if several := len(store.sizes) > 0; several != (batch > 1) || several && slices.Max(store.sizes) > batch {
				t.Errorf("got requests of %v messages, want at most %d", store.sizes, batch)
			}
		})
	}
}

// Whatever is not MS1's answer to each message consumes none of them.
func TestAnswersToSeveralThatAreNotMS1s(t *testing.T) {
	t.Parallel()
	line := `{"status":200,"outcome":"stored"}` + "\n"
	problems := func(p httpserver.Problem) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { p.Write(w) }
	}
	all := strings.Repeat(line, 2)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		alone  bool // the messages are posted alone next
	}{
		"an empty 200":              {replies(200, httpserver.LinesType, ""), true},
		"one line too few":          {replies(200, httpserver.LinesType, line), true},
		"one line too many":         {replies(200, httpserver.LinesType, all+line), true},
		"another media type":        {replies(200, "application/json", all), true},
		"one outcome for all":       {replies(200, "application/json", line), true},
		"another status":            {replies(202, httpserver.LinesType, all), true},
		"a page":                    {replies(200, "text/html", "<html>\n<html>\n"), true},
		"lines of another":          {replies(200, httpserver.LinesType, "{\"ok\":true}\n{\"status\":\"ok\"}\n"), true},
		"404 of another":            {replies(200, httpserver.LinesType, strings.Repeat(`{"status":404,"type":"about:blank"}`+"\n", 2)), true},
		"our problem to the whole":  {problems(httpserver.Problem{Type: httpserver.MalformedMessage, Status: 400}), true},
		"our 413 to the whole":      {problems(httpserver.Problem{Type: httpserver.MessageTooLarge, Status: 413}), true},
		"an MS1 without the type":   {problems(httpserver.Problem{Status: 415}), true},
		"503":                       {problems(httpserver.Problem{Status: 503}), false},
		"a proxy's limit of rate":   {replies(429, "text/html", "<html>"), false},
		"torn after the first line": {torn("HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 68\r\n\r\n" + line), false},
		"torn before it":            {torn(""), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(c.answer)
			defer server.Close()
			ms, _ := messages(2)
			answers, err := client(t, server.URL).post(t.Context(), ms[0].Encode(), ms[1].Encode())
			if err != nil {
				if c.alone {
					t.Fatal(err)
				}
				return
			}
			for _, a := range answers {
				if a.final() || a.wrong() != c.alone {
					t.Errorf("got %+v, final %t, wrong %t", a, a.final(), a.wrong())
				}
			}
		})
	}
}

// An MS1 of before, or a proxy that knows one media type: each message is
// posted alone, and none is lost.
func TestMessagesAreAloneWhereSeveralAreRefused(t *testing.T) {
	t.Parallel()
	k, store := topictest.Config(t), newMS1(t)
	var refused atomic.Int64 // requests
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") == httpserver.LinesType {
			refused.Add(1)
			httpserver.Problem{Status: http.StatusUnsupportedMediaType}.Write(w)
			return
		}
		store.Config.Handler.ServeHTTP(w, r)
	}))
	defer old.Close()
	source := newMS2(t, k)
	source.send(400)
	r := start(t, k, old.URL, func(s *Service) { s.client.http.Timeout = time.Minute }) // a time-out would be retried too
	servicetest.Eventually(t, time.Minute, "all posted", func() bool { return store.got() == 400 })
	source.commits(400)
	if got, want := r.Metric("tricycle_ms3_store_retries_total"), float64(refused.Load()); got != want {
		t.Errorf("got %v requests retried, want %v", got, want)
	}
}

// testPoster is a poster whose requests the test answers.
type testPoster struct {
	*poster
	t      *testing.T
	posted chan request
	offset int64
}

// request is one that waits for its answer.
type request struct {
	messages int
	answer   chan<- int // status
}

// newTestPoster returns a poster whose requests are late after the given time.
func newTestPoster(t *testing.T, late time.Duration) *testPoster {
	p := &testPoster{t: t, posted: make(chan request, 9)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		answer := make(chan int, 1)
		n := max(1, strings.Count(string(body), "\n"))
		p.posted <- request{n, answer}
		select {
		case <-r.Context().Done():
		case status := <-answer:
			if status == http.StatusOK && n > 1 {
				w.Header().Set("Content-Type", httpserver.LinesType)
				_, _ = io.WriteString(w, strings.Repeat(storedLine+"\n", n))
				return
			}
			httpserver.JSON(w, status, map[string]string{"outcome": "stored"})
		}
	}))
	t.Cleanup(server.Close)
	tel, err := telemetry.New(t.Context(), telemetry.Config{}, "ms3", "", zerolog.Nop())
	servicetest.NoError(t, err)
	store := client(t, server.URL)
	store.http.Timeout = 0 // the test answers in time
	c := newConsumer(Defaults(), nil, store, tel, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() {
		cancel()
		c.work.Wait()
	})
	p.poster = newPoster(ctx, ctx, c)
	p.lateTime = late
	return p
}

// fetched adds n messages.
func (p *testPoster) fetched(n int) {
	p.t.Helper()
	for range n {
		f, err := p.consumer.offsets.fetch(p.ctx, 0, p.offset, 1, time.Now())
		servicetest.NoError(p.t, err)
		p.offset++
		p.consumer.work.Add(1)
		p.add(&delivery{fetched: f, body: []byte("{}"), ctx: p.ctx, span: noop.Span{}, pause: retry.Backoff{First: time.Minute, Most: time.Minute}})
	}
}

// posts waits for a request of some messages, with which some requests are in
// flight.
func (p *testPoster) posts(messages, requests int) chan<- int {
	p.t.Helper()
	var r request
	select {
	case r = <-p.posted:
	case <-time.After(time.Minute):
		p.t.Fatalf("no request of %d messages", messages)
	}
	if n := p.inFlight(); r.messages != messages || n != requests {
		p.t.Errorf("got a request of %d messages, %d requests in flight, want %d and %d", r.messages, n, messages, requests)
	}
	return r.answer
}

// busy waits until n requests are in flight.
func (p *testPoster) busy(n int) {
	p.t.Helper()
	servicetest.Eventually(p.t, time.Minute, fmt.Sprint(n, " requests in flight"), func() bool { return p.inFlight() == n })
}

func (p *testPoster) inFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// Messages wait for the request in flight, unless they complete a batch.
func TestMessagesShareTheNextRequest(t *testing.T) {
	t.Parallel()
	p := newTestPoster(t, time.Minute)
	p.fetched(1)
	first := p.posts(1, 1)
	p.fetched(2)
	first <- http.StatusOK
	second := p.posts(2, 1)
	p.fetched(64)
	full := p.posts(64, 2)
	p.fetched(1)
	full <- http.StatusOK
	p.busy(1)
	second <- http.StatusOK
	p.posts(1, 1) <- http.StatusOK
	p.busy(0)
}

func TestNextRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		waiting, requests, late int
		alone                   bool
		want                    int
	}{
		"nothing waits":                {0, 1, 0, false, 0},
		"all that waits":               {63, 1, 0, false, 63},
		"few wait for another request": {63, 2, 0, false, 0},
		"a batch does not":             {65, 2, 0, false, 64},
		"nor few for a late one":       {63, 2, 1, false, 63},
		"nor one that is posted alone": {3, 2, 0, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPoster(t.Context(), t.Context(), &consumer{config: Defaults()})
			p.requests, p.late = c.requests, c.late
			for range c.waiting {
				p.queue = append(p.queue, &delivery{alone: c.alone})
			}
			if n := len(p.next()); n != c.want || len(p.queue) != c.waiting-n {
				t.Errorf("got %d messages, %d still wait, want %d", n, len(p.queue), c.want)
			}
		})
	}
}

// A late request holds up no message; those that follow wait for the next one.
func TestNoMessageWaitsForALateRequest(t *testing.T) {
	t.Parallel()
	p := newTestPoster(t, 50*time.Millisecond)
	p.fetched(1)
	late := p.posts(1, 1)
	p.fetched(2)
	next := p.posts(2, 2)
	late <- http.StatusOK
	next <- http.StatusOK
	p.busy(0)
	if p.late != 0 {
		t.Errorf("got %d late requests, want 0", p.late)
	}
}

// While MS1 or a limit before it refuses requests, messages share the next ones.
func TestMessagesWaitForRefusedOnes(t *testing.T) {
	t.Parallel()
	for status, waits := range map[int]bool{429: true, 503: true, 403: false} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			p := newTestPoster(t, time.Minute)
			p.pausing.Store(maxPausing - 1)
			p.fetched(1)
			p.posts(1, 1) <- status
			p.busy(0)
			p.fetched(1)
			if got := p.inFlight() == 0; got != waits {
				t.Errorf("the next message waits: %t, want %t", got, waits)
			}
			if !waits {
				p.posts(1, 1) <- http.StatusOK
			}
		})
	}
}

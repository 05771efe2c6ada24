package ms1

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
)

const (
	// maxListeners is the number of listeners of /events.
	maxListeners = 64
	// eventEvery is the time between two events.
	eventEvery = time.Second
	// keptEvents is the number of events that are kept for listeners that come
	// back.
	keptEvents = 60
	// maxBehind is the number of events that wait for a listener. One that is
	// further behind is disconnected.
	maxBehind = 8
)

// Event is the status at one moment, the data of an event of GET /events.
type Event struct {
	At message.Stamp `json:"at"`
	Status
	Recent *Recent           `json:"recent"` // nil in the first event of a session, and without one
	Checks map[string]string `json:"checks"` // as in /readyz
}

// Recent is what has happened since the event before, with rates per second.
type Recent struct {
	Seconds  float64 `json:"seconds"`
	Sent     float64 `json:"sent_per_second"`     // resends included
	Returned float64 `json:"returned_per_second"` // repeats included
	Stored   float64 `json:"stored_per_second"`
	Hops     *Hops   `json:"hops"` // nil if nothing was stored
}

// sample is the figures of a session at one moment.
type sample struct {
	at      time.Time
	ledger  *ledger
	account account
	hops    *hopMeter
}

// sent is an encoded event. Its id is the Unix time in seconds, so that ids also
// increase across restarts.
type sent struct {
	id   int64
	text []byte
}

// events sends the status to listeners.
type events struct {
	engine *engine
	checks []httpserver.Check
	wake   chan struct{}

	mu        sync.Mutex
	listeners map[chan sent]struct{}
	kept      []sent
	leftAt    time.Time // when the last listener left
	closed    bool

	last sample // of run alone
}

func newEvents(e *engine, checks []httpserver.Check) *events {
	return &events{engine: e, checks: checks, wake: make(chan struct{}, 1), listeners: map[chan sent]struct{}{}}
}

// run sends events until ctx is cancelled. Without a listener it goes on for as
// long as it keeps events, then it waits for one.
func (e *events) run(ctx context.Context) error {
	tick := time.NewTicker(eventEvery)
	defer tick.Stop()
	defer e.close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-e.wake:
			tick.Reset(eventEvery)
		}
		if e.wanted() {
			e.publish(e.event(ctx))
		}
	}
}

func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for l := range e.listeners {
		e.remove(l)
	}
}

// remove disconnects a listener. The caller holds the mutex.
func (e *events) remove(l chan sent) {
	if _, ok := e.listeners[l]; !ok {
		return
	}
	delete(e.listeners, l)
	close(l)
	e.leftAt = time.Now()
}

func (e *events) wanted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.listeners) == 0 && time.Since(e.leftAt) > keptEvents*eventEvery {
		e.kept = nil
		return false
	}
	return true
}

func (e *events) publish(v Event) {
	data, err := json.Marshal(v)
	if err != nil {
		e.engine.log.Error().Err(err).Msg("event not encoded")
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	id := time.Now().Unix()
	if n := len(e.kept); n > 0 {
		id = max(id, e.kept[n-1].id+1)
	}
	s := sent{id, fmt.Appendf(nil, "id: %d\ndata: %s\n\n", id, data)}
	if e.kept = append(e.kept, s); len(e.kept) > keptEvents {
		e.kept = e.kept[1:]
	}
	for l := range e.listeners {
		select {
		case l <- s:
		default:
			e.remove(l)
		}
	}
}

// event returns the status, and what has happened since the event before.
func (e *events) event(ctx context.Context) Event {
	now := sample{ledger: e.engine.ledger()}
	v := Event{At: message.StampOf(time.Now()), Status: e.engine.status(ctx), Checks: httpserver.States(httpserver.Probe(ctx, e.checks))}
	if now.ledger != nil {
		now.at, now.account, now.hops = time.Now(), now.ledger.account(), now.ledger.hopsUntilNow()
		if now.ledger == e.last.ledger {
			v.Recent = now.since(e.last)
		}
	}
	e.last = now
	return v
}

func (s sample) since(earlier sample) *Recent {
	seconds := s.at.Sub(earlier.at).Seconds()
	a, b := s.account, earlier.account
	rate := func(n int64) float64 { return float64(n) / max(seconds, 0.001) }
	return &Recent{
		Seconds:  seconds,
		Sent:     rate(a.generated + a.resent - b.generated - b.resent),
		Returned: rate(a.stored + a.duplicates - b.stored - b.duplicates),
		Stored:   rate(a.stored - b.stored),
		Hops:     s.hops.since(earlier.hops),
	}
}

// listen adds a listener. It returns the kept events after the one with the id,
// and a channel of the later ones that is closed when the listener is too slow or
// MS1 stops. Without an id (-1) only the newest event is returned, if it is fresh.
// It returns false if there are too many listeners.
func (e *events) listen(after int64) (missed []sent, later chan sent, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || len(e.listeners) >= maxListeners {
		return nil, nil, false
	}
	later = make(chan sent, maxBehind)
	e.listeners[later] = struct{}{}
	switch {
	case len(e.kept) == 0:
		notify(e.wake)
	case after >= 0:
		for _, s := range e.kept {
			if s.id > after {
				missed = append(missed, s)
			}
		}
	default:
		missed = e.kept[len(e.kept)-1:]
	}
	return missed, later, true
}

func (e *events) leave(l chan sent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(l)
}

// serve answers GET /events with Server-Sent Events.
func (e *events) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	after := int64(-1)
	if values, ok := r.Header["Last-Event-Id"]; ok {
		var err error
		text := strings.Join(values, ", ")
		if after, err = strconv.ParseInt(text, 10, 64); err != nil || after < 0 || strconv.FormatInt(after, 10) != text {
			badRequest(w, fmt.Errorf("header Last-Event-ID: must be a whole number from 0, got %q", text))
			return
		}
	}
	missed, later, ok := e.listen(after)
	if !ok {
		w.Header().Set("Retry-After", "1")
		httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: fmt.Sprintf("at most %d listeners", maxListeners)}.Write(w)
		return
	}
	defer e.leave(later)
	w.Header().Set("Content-Type", "text/event-stream")
	// A reverse proxy must pass events at once: nginx must not buffer them, and
	// Caddy 2.6 not compress them, at which it keeps them back.
	w.Header().Set("X-Accel-Buffering", "no")
	w.Header().Set("Content-Encoding", "identity")
	if r.Method == http.MethodHead {
		return
	}
	out := http.NewResponseController(w)
	write := func(s sent) bool {
		_ = out.SetWriteDeadline(time.Now().Add(httpserver.AnswerTimeout)) // an error comes back from the write
		_, err := w.Write(s.text)
		return err == nil && out.Flush() == nil
	}
	for _, s := range missed {
		if !write(s) {
			return
		}
	}
	_ = out.Flush() // the head of the answer, without a missed event
	for {
		select {
		case s, ok := <-later:
			if !ok || !write(s) {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

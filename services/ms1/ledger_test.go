package ms1

import (
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
)

const firstStamp = message.Stamp(1_000_000)

// countedSpan counts its ends.
type countedSpan struct {
	noop.Span
	ends int
}

func (s *countedSpan) End(...trace.SpanEndOption) { s.ends++ }

// book is a ledger with a clock and the spans that it made.
type book struct {
	*ledger
	now   time.Time
	spans []*countedSpan
}

func newBook(slots int) *book {
	b := &book{ledger: newLedger(1, firstStamp, slots, usual()), now: time.Unix(1, 0)}
	b.meters, b.filled = newMeters(prometheus.NewRegistry(), &engine{}), make(chan struct{}, 1)
	b.newSpan = func(message.Message) trace.Span {
		b.spans = append(b.spans, &countedSpan{})
		return b.spans[len(b.spans)-1]
	}
	b.ledger.connected(1)
	return b
}

// arrive, settle, next and written are the ledger's, for one message.
func (b *book) arrive(stamp message.Stamp, now time.Time) (verdict, *entry, *commit) {
	return b.ledger.arrive(stamp, newCommit(), now)
}

func (b *book) settle(e *entry, m message.Message, err error) {
	b.ledger.settle([]insert{{message: m, entry: e}}, err)
}

func (b *book) next(broken uint64) (*entry, uint64) {
	if len(b.outbox) > 1 { // the rest stays
		rest := slices.Clone(b.outbox[1:])
		b.outbox = b.outbox[:1]
		defer func() { b.outbox = append(b.outbox, rest...) }()
	}
	batch, connection := b.ledger.next(broken, nil)
	if len(batch) == 0 {
		return nil, connection
	}
	return batch[0], connection
}

func (b *book) written(e *entry, connection uint64, err error, now time.Time) {
	b.ledger.written([]*entry{e}, connection, err, now)
}

// consistent checks what must be true between any two transitions.
func (b *book) consistent(t *testing.T) {
	t.Helper()
	holders, gone, commits, inOutbox := 0, int64(0), 0, map[*entry]int{}
	for _, e := range b.outbox {
		inOutbox[e]++
	}
	for key, e := range b.entries {
		if e.message.Service1 != key {
			t.Fatalf("entry %s under key %s", e.message.Service1, key)
		}
		if e.late {
			gone++
		} else {
			holders++
		}
		if (e.state == committing) != (e.commit != nil) {
			t.Fatalf("state %d with commit %v", e.state, e.commit)
		}
		if e.state == committing {
			commits++
		}
		if want := e.state == queued; (inOutbox[e] == 1) != want || inOutbox[e] > 1 {
			t.Fatalf("state %d is %d times in the outbox", e.state, inOutbox[e])
		}
		delete(inOutbox, e)
	}
	if len(inOutbox) > 0 {
		t.Fatalf("%d in the outbox without an entry", len(inOutbox))
	}
	if b.generated != b.stored+gone+b.forgotten+int64(holders) {
		t.Fatalf("generated %d, stored %d, lost %d+%d, in flight %d", b.generated, b.stored, gone, b.forgotten, holders)
	}
	if holders != b.account().busy || commits != b.commits {
		t.Fatalf("%d hold slots of %d busy ones; %d commits, counted %d", holders, b.account().busy, commits, b.commits)
	}
	ended := 0
	for _, s := range b.spans {
		if s.ends > 1 {
			t.Fatalf("a span ended %d times", s.ends)
		}
		ended += s.ends
	}
	if ended != len(b.spans)-holders {
		t.Fatalf("%d of %d spans ended with %d in flight", ended, len(b.spans), holders)
	}
	if len(b.ledger.lost) > maxLost || len(b.recent.ring) > maxRecent || len(b.recent.set) != len(b.recent.ring) {
		t.Fatalf("%d lost and %d stored messages are remembered", len(b.ledger.lost), len(b.recent.ring))
	}
}

func (b *book) add1(t *testing.T) *entry {
	t.Helper()
	if !b.add(0, b.now) {
		t.Fatal("no free slot")
	}
	return b.entries[b.newest]
}

func (b *book) write(t *testing.T) *entry {
	t.Helper()
	e, connection := b.next(0)
	if e == nil {
		t.Fatal("nothing to send")
	}
	b.written(e, connection, nil, b.now)
	return e
}

var errDisk = errors.New("disk full")

// Every state, and what each transition makes of it.
func TestLedgerTransitions(t *testing.T) {
	into := map[state]func(t *testing.T, b *book) *entry{
		queued: func(t *testing.T, b *book) *entry { return b.add1(t) },
		writing: func(t *testing.T, b *book) *entry {
			b.add1(t)
			e, _ := b.next(0)
			return e
		},
		inFlight: func(t *testing.T, b *book) *entry { b.add1(t); return b.write(t) },
		committing: func(t *testing.T, b *book) *entry {
			b.add1(t)
			e := b.write(t)
			b.arrive(e.message.Service1, b.now)
			return e
		},
		lost: func(t *testing.T, b *book) *entry {
			b.add1(t)
			e := b.write(t)
			b.now = b.now.Add(time.Minute)
			b.sweep(b.now, false)
			return e
		},
	}
	const gone = state(-1)
	arrive := func(b *book, e *entry) { b.arrive(e.message.Service1, b.now) }
	transitions := map[string]struct {
		do   func(b *book, e *entry)
		want map[state]state
	}{
		"arrive": {arrive, map[state]state{queued: committing, writing: committing, inFlight: committing, committing: committing, lost: committing}},
		"arrive and commit": {func(b *book, e *entry) { arrive(b, e); b.settle(e, e.message, nil) },
			map[state]state{queued: gone, writing: gone, inFlight: gone, committing: gone, lost: gone}},
		"arrive and fail": {func(b *book, e *entry) { arrive(b, e); b.settle(e, e.message, errDisk) },
			map[state]state{queued: inFlight, writing: inFlight, inFlight: inFlight, committing: inFlight, lost: lost}},
		"arrive and find the session ended": {func(b *book, e *entry) { arrive(b, e); b.settle(e, e.message, ErrSessionEnded) },
			map[state]state{queued: lost, writing: lost, inFlight: lost, committing: lost, lost: lost}},
		"last sweep": {func(b *book, _ *entry) { b.sweep(b.now, true) },
			map[state]state{queued: lost, writing: lost, inFlight: lost, committing: committing, lost: lost}},
		"last sweep, then a commit fails": {func(b *book, e *entry) { arrive(b, e); b.sweep(b.now, true); b.settle(e, e.message, errDisk) },
			map[state]state{queued: lost, writing: lost, inFlight: lost, committing: lost, lost: lost}},
		"sweep": {func(b *book, _ *entry) { b.sweep(b.now, false) },
			map[state]state{queued: queued, writing: writing, inFlight: inFlight, committing: committing, lost: lost}},
		"sweep after the resend time": {func(b *book, _ *entry) { b.sweep(b.now.Add(6*time.Second), false) },
			map[state]state{queued: queued, writing: writing, inFlight: queued, committing: committing, lost: lost}},
		"sweep after the full time": {func(b *book, _ *entry) { b.sweep(b.now.Add(time.Minute), false) },
			map[state]state{queued: lost, writing: lost, inFlight: lost, committing: committing, lost: lost}},
		"connected": {func(b *book, _ *entry) { b.ledger.connected(2) },
			map[state]state{queued: queued, writing: writing, inFlight: queued, committing: committing, lost: lost}},
		"written": {func(b *book, e *entry) { b.written(e, 1, nil, b.now) },
			map[state]state{writing: inFlight, committing: committing, lost: lost}},
		"written on one that is not announced yet": {func(b *book, e *entry) { b.written(e, 2, nil, b.now) },
			map[state]state{writing: inFlight, committing: committing, lost: lost}},
		"written on an old connection": {func(b *book, e *entry) { b.ledger.connected(2); b.written(e, 1, nil, b.now) },
			map[state]state{writing: queued, committing: committing, lost: lost}},
		"not written": {func(b *book, e *entry) { b.written(e, 1, errDisk, b.now) },
			map[state]state{writing: queued, committing: committing, lost: lost}},
	}
	for name, transition := range transitions {
		for from, want := range transition.want {
			b := newBook(1)
			e := into[from](t, b)
			if e.state != from {
				t.Fatalf("state %d, expected %d", e.state, from)
			}
			transition.do(b, e)
			got := e.state
			if b.entries[e.message.Service1] == nil {
				got = gone
			}
			if got != want {
				t.Errorf("%s in state %d: got state %d, want %d", name, from, got, want)
			}
			b.consistent(t)
		}
	}
}

// Any order of transitions keeps the account right.
func TestLedgerInAnyOrder(t *testing.T) {
	length := 500 * time.Millisecond
	if d, err := time.ParseDuration(os.Getenv("TRICYCLE_TEST_PROPERTY")); err == nil {
		length = d
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for end := time.Now().Add(length); time.Now().Before(end); {
		b := newBook(1 + random.IntN(8))
		var pending []*entry // commits
		var write []*entry
		connection, using := uint64(1), uint64(1)
		for range 300 {
			b.now = b.now.Add(time.Duration(random.Int64N(int64(4 * time.Second))))
			switch random.IntN(9) {
			case 0, 1:
				b.add(0, b.now)
			case 2:
				if write == nil {
					write, using = b.ledger.next(0, nil)
				}
			case 3:
				if write != nil {
					var err error
					if random.IntN(4) == 0 {
						err = errDisk
					}
					b.ledger.written(write, using, err, b.now)
					write = nil
				}
			case 4, 5:
				key := firstStamp + message.Stamp(random.Int64N(b.generated+2)) - 1
				if what, e, _ := b.arrive(key, b.now); what == verdictStore {
					pending = append(pending, e)
				} else if what == verdictAsk {
					b.recall(key)
				}
			case 6:
				if len(pending) > 0 {
					i := random.IntN(len(pending))
					e := pending[i]
					pending = append(pending[:i], pending[i+1:]...)
					b.settle(e, e.message, []error{nil, nil, errDisk, ErrSessionEnded}[random.IntN(4)])
				}
			case 7:
				b.sweep(b.now, random.IntN(100) == 0)
			case 8:
				connection++
				b.ledger.connected(connection)
			}
			b.consistent(t)
		}
		b.complete()
		if b.add(0, b.now) {
			t.Fatal("a message was added after the last one")
		}
		b.sweep(b.now, true)
		for _, e := range pending {
			b.settle(e, e.message, errDisk)
		}
		b.consistent(t)
		if b.account().busy != 0 {
			t.Fatalf("%d slots are busy after the end", b.account().busy)
		}
	}
}

func TestAnEndedSessionGetsNoMessage(t *testing.T) {
	b := newBook(1)
	b.add1(t)
	e := b.write(t)
	b.arrive(e.message.Service1, b.now)
	b.settle(e, e.message, ErrSessionEnded)
	if b.add(firstStamp+1, b.now) {
		t.Error("a message was added to a session that is not open in the database")
	}
}

// A commit that runs while the session is being closed counts if it succeeds in
// time. If it fails, before or after the figures are recorded, it is a loss.
func TestACommitAtTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		arrives, released time.Duration // the commit fails after 3 s unless it is released
		want              figures
	}{
		"succeeds":     {3900 * time.Millisecond, 4500 * time.Millisecond, figures{generated: 1, stored: 1, reason: Stopped}},
		"fails before": {1200 * time.Millisecond, time.Hour, figures{generated: 1, lost: 1, reason: Stopped}},
		"fails after":  {3 * time.Second, time.Hour, figures{generated: 1, lost: 1, reason: Stopped}},
	} {
		t.Run(name, func(t *testing.T) {
			inBench(t, never, func(t *testing.T, b *bench) {
				b.begin(60, 1)
				time.Sleep(500 * time.Millisecond) // so that the drain ends before a resend
				m := b.transport.frames()[0]
				release := b.store.block()
				time.AfterFunc(c.arrives, func() { _, _ = b.back(m) })
				defer time.AfterFunc(c.released, release).Stop()
				check(t, b.stopSession(), c.want) // closes at 4 s, records by 5 s
				time.Sleep(3 * time.Second)
				if got := telemetrytest.Counted(t, b.tel.Metrics, "tricycle_messages_given_up_total"); got != float64(c.want.lost) {
					t.Errorf("%v given up, want %d", got, c.want.lost)
				}
				if err := b.databaseReady(t.Context()); err != nil {
					t.Errorf("not ready although nothing is written any more: %v", err)
				}
			})
		})
	}
}

// 4,096 messages in a queue whose head moves all the time wait; nothing indicates
// that any of them is lost.
func TestWhatWaitsInALongQueueIsNotSentAgain(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.slowly(func(int) time.Duration { return 2600 * time.Microsecond }) // 384 a second
		b.begin(60, MaxInFlight)
		s := b.wait()
		if *s.Resent != 0 || *s.Lost != 0 || *s.Stored < 20_000 {
			t.Errorf("figures %+v, want nothing sent again and nothing lost", figuresOf(s))
		}
	})
}

// A fast queue rests for longer than the resend time and is slow then. The messages
// in it return all the same, so few are sent again.
func TestAPauseOfAQueueCausesFewCopies(t *testing.T) {
	inBench(t, never, func(t *testing.T, b *bench) {
		b.slowly(func(n int) time.Duration {
			switch {
			case n < 5_000:
				return 10 * time.Microsecond
			case n == 5_000:
				return 8 * time.Second
			}
			return 2600 * time.Microsecond
		})
		b.begin(30, 1024)
		s := b.wait()
		if *s.Resent > 4*maxCopies || *s.Lost != 0 {
			t.Errorf("figures %+v, want few copies and nothing lost", figuresOf(s))
		}
	})
}

// Everything in flight is lost, while the session drains: no newer message can
// return, and the copies have to replace all within the time of a message.
func TestAllThatIsInFlightIsLostAtTheEnd(t *testing.T) {
	inBench(t, 100*time.Millisecond, func(t *testing.T, b *bench) {
		b.begin(1, 1024)
		var mu sync.Mutex
		sent := map[message.Stamp]bool{}
		back := b.transport.onSend
		losing := func(m message.Message) {
			mu.Lock()
			copied := sent[m.Service1]
			sent[m.Service1] = true
			mu.Unlock()
			if copied {
				back(m)
			}
		}
		time.Sleep(850 * time.Millisecond)
		b.transport.mu.Lock()
		b.transport.onSend = losing
		b.transport.mu.Unlock()
		s := b.wait()
		if *s.Lost != 0 || *s.Resent < 1024 || *s.TotalSeconds > 30 {
			t.Errorf("figures %+v after %v s, want every message stored soon", figuresOf(s), *s.TotalSeconds)
		}
	})
}

// slowly returns the messages from a queue, one after the other. It takes the
// given time for the nth one.
func (b *bench) slowly(takes func(n int) time.Duration) {
	queue := make(chan message.Message, 4*MaxInFlight)
	b.transport.onSend = func(m message.Message) { queue <- m }
	done := make(chan struct{})
	b.t.Cleanup(func() { close(done) })
	go func() {
		for n := 0; ; n++ {
			select {
			case m := <-queue:
				time.Sleep(takes(n))
				_, _ = b.back(m)
			case <-done:
				return
			}
		}
	}()
}

func TestRepeatsCostNoTransaction(t *testing.T) {
	inBench(t, time.Millisecond, func(t *testing.T, b *bench) {
		id := b.begin(2, 1)
		time.Sleep(time.Second)
		m := b.transport.frames()[0]
		for range 1000 {
			b.takes(m, OutcomeRepeat)
		}
		if b.store.looks+b.store.amends > 0 {
			t.Errorf("%d reads, %d transactions, want none", b.store.looks, b.store.amends)
		}
		b.wait()
		// A stranger's: of no session, of one to come, of one that is over.
		for range 100 {
			for _, m := range []message.Message{{SessionID: id + 1, Service1: m.Service1}, {SessionID: id, Service1: m.Service1 - 1}} {
				b.takes(m, OutcomeUnknown)
			}
		}
		if b.store.amends > 0 || b.store.looks != 100 {
			t.Errorf("%d reads, %d transactions, want 100 and none", b.store.looks, b.store.amends)
		}
		b.store.looks = 0
		var again []*arrival
		for _, m := range b.transport.frames()[:64] {
			again = append(again, &arrival{ctx: b.t.Context(), message: m})
		}
		receive(b.t.Context(), b.engine, again...)
		for _, a := range again {
			if a.outcome != OutcomeRepeat || a.err != nil {
				t.Errorf("%s: got %q, %v, want a repeat", a.message.Key(), a.outcome, a.err)
			}
		}
		if b.store.looks != 1 {
			t.Errorf("%d reads for the repeats of a request, want one", b.store.looks)
		}
	})
}

// Not all lost messages of a long session are remembered, and stored all the
// same if it comes back.
func TestLostMessagesAreBounded(t *testing.T) {
	b := newBook(64)
	for range 4 * maxLost / 64 {
		for range 64 {
			b.add1(t)
			b.write(t)
		}
		b.now = b.now.Add(time.Hour)
		b.sweep(b.now, false)
	}
	if n := len(b.entries); n > maxLost {
		t.Errorf("%d entries", n)
	}
	if what, _, _ := b.arrive(firstStamp, b.now); what != verdictAsk || !b.recall(firstStamp) {
		t.Errorf("claim %d, want the forgotten message back", what)
	}
	what, e, _ := b.arrive(firstStamp, b.now)
	if what != verdictStore {
		t.Fatalf("claim %d, want to store it", what)
	}
	b.settle(e, e.message, nil)
	recalled := b.recall(firstStamp) // by a copy that the database was asked for before the commit
	if what, _, _ := b.arrive(firstStamp, b.now); !recalled || what != verdictRepeat {
		t.Errorf("claim %d of another copy, want a repeat", what)
	}
	if b.stored != 1 || b.free != 64 {
		t.Errorf("stored %d with %d free slots, want 1 and 64", b.stored, b.free)
	}
	b.consistent(t)
}

// A message that is added while another goroutine ends its writing must not stay
// in the outbox.
func TestEveryMessageLeavesTheOutbox(t *testing.T) {
	const rounds = 20_000
	b := newBook(2 * rounds)
	e := &engine{transport: &fakeTransport{number: 1}, current: &runner{ledger: b.ledger}}
	e.sender.engine = e
	send := func() {
		b.ledger.add(firstStamp, b.now)
		e.sender.flush()
	}
	var begun, done atomic.Int64 // rounds
	until := func(counter *atomic.Int64, round int64) {
		for spins := 0; counter.Load() <= round; spins++ {
			if spins > 1000 { // earlier, both goroutines would share a processor
				runtime.Gosched()
			}
		}
	}
	go func() {
		for round := range int64(rounds) {
			until(&begun, round)
			for range rand.IntN(1500) { // to the end of the other one's writing
				begun.Load()
			}
			send()
			done.Add(1)
		}
	}()
	for round := range int64(rounds) {
		begun.Add(1)
		send()
		until(&done, round)
		if left := len(b.outbox); left != 0 {
			t.Fatalf("%d messages are left in the outbox", left)
		}
	}
}

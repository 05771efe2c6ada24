package ms1

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// state is where a message without a row is.
type state int

// The states of an entry. A stored message has no entry.
const (
	queued     state = iota // in the outbox
	writing                 // taken from the outbox, being written to the link
	inFlight                // written
	committing              // came back; a commit is under way
	lost                    // given up; stored all the same if it comes back
)

const (
	// maxLost lost messages of a session are remembered. About older ones the
	// database is asked.
	maxLost = MaxInFlight
	// maxRecent stored messages are remembered, so that most repeats are
	// answered without the database.
	maxRecent = 4 * MaxInFlight
	// maxCopies is how many messages that were sent again without a new
	// connection may be under way: if they merely wait, copies make it worse.
	maxCopies = 64
	// slowWindow is how long the slowest round counts, at least.
	slowWindow = 10 * time.Second
)

// entry is a message without a row.
type entry struct {
	message message.Message
	span    trace.Span
	state   state
	late    bool    // was lost before; holds no slot and has no span
	commit  *commit // while committing
	sends   int
	made    time.Time
	first   time.Time // send
	last    time.Time // send
	wait    time.Duration
	reason  string // why it is lost
}

// commit is one try to store a message, for all requests that wait for it.
type commit struct {
	done chan struct{}
	err  error
}

// claim is what a message that came back is to the ledger.
type claim int

const (
	claimStore  claim = iota // the caller stores it and settles the commit
	claimWait                // another request does
	claimRepeat              // it has a row
	claimNever               // it was never made
	claimAsk                 // the database knows
)

// ledger is the account of a session's messages. Each method is one
// transition and does no I/O. Its mutex is taken after the engine's.
// Generated is always stored + lost + under way.
type ledger struct {
	sessionID   int64
	resendAfter time.Duration
	giveUpAfter time.Duration
	newSpan     func(message.Message) trace.Span
	meters      *meters
	outboxed    chan struct{} // something to send
	changed     chan struct{} // a slot is free, or a commit has its outcome

	mu         sync.Mutex
	hops       *hopMeter
	newest     message.Stamp // key
	oldest     message.Stamp // no key is below it
	free       int           // slots
	busy       int           // slots
	commits    int           // under way
	entries    map[message.Stamp]*entry
	outbox     []*entry
	connection uint64 // the newest of the link
	closed     bool   // nothing is waited for any more
	generated  int64
	stored     int64
	resent     int64
	duplicates int64

	lost      []*entry // the newest, oldest first; some may be stored since
	forgotten int64    // lost messages that are in no entry
	recent    recentKeys
	pace      pace
}

// recentKeys remembers the newest stored keys.
type recentKeys struct {
	set    map[message.Stamp]struct{}
	ring   []message.Stamp // the members of set
	oldest int             // in the ring, once it is full
}

func (r *recentKeys) add(key message.Stamp) {
	r.set[key] = struct{}{}
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, key)
		return
	}
	delete(r.set, r.ring[r.oldest])
	r.ring[r.oldest] = key
	r.oldest = (r.oldest + 1) % maxRecent
}

// pace tells a message that waits from one that is likely to be lost.
type pace struct {
	backAt   time.Time     // a message came back
	backSent time.Time     // when the newest was sent of those that came back
	slowest  time.Duration // of the rounds of the window, without copies
	slower   time.Duration // the same of the window before
	windowAt time.Time
}

// back notes a message that came back. Of one that was sent more than once
// nobody knows which copy that was.
func (p *pace) back(e *entry, now time.Time) {
	p.backAt = now
	if e.late || e.sends != 1 {
		return
	}
	if e.first.After(p.backSent) {
		p.backSent = e.first
	}
	if now.Sub(p.windowAt) >= slowWindow {
		p.slower, p.slowest, p.windowAt = p.slowest, 0, now
	}
	p.slowest = max(p.slowest, now.Sub(e.first))
}

// patience is how long the newest copy of a message may be out.
func (p *pace) patience(e *entry) time.Duration {
	return max(e.wait, 2*max(p.slowest, p.slower))
}

// passed says that a message sent a whole resend time after this one has come
// back, or that nothing has for long.
func (p *pace) passed(e *entry, resendAfter time.Duration, now time.Time) bool {
	return p.backSent.Sub(e.last) >= resendAfter || now.Sub(p.backAt) >= max(resendAfter, p.slowest, p.slower)
}

func newLedger(sessionID int64, startedAt message.Stamp, slots int, c InteractionConfig) *ledger {
	return &ledger{
		sessionID: sessionID, newest: startedAt - 1, oldest: startedAt, free: slots,
		resendAfter: time.Duration(c.ResendAfterSeconds) * time.Second,
		giveUpAfter: time.Duration(c.GiveUpAfterSeconds) * time.Second,
		changed:     make(chan struct{}, 1),
		entries:     make(map[message.Stamp]*entry, slots),
		recent:      recentKeys{set: map[message.Stamp]struct{}{}},
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// add makes the next message and queues it. It returns false without a free slot.
func (l *ledger) add(stamp message.Stamp, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free == 0 || l.closed {
		return false
	}
	l.newest = max(stamp, l.newest+1)
	e := &entry{message: message.Message{SessionID: l.sessionID, Service1: l.newest}, made: now, wait: l.resendAfter}
	e.span = l.newSpan(e.message)
	l.free--
	l.busy++
	l.entries[l.newest] = e
	l.generated++
	l.meters.generated.Inc()
	l.enqueue(e)
	return true
}

func (l *ledger) enqueue(e *entry) {
	e.state = queued
	l.outbox = append(l.outbox, e)
	poke(l.outboxed)
}

// next takes the oldest of the outbox, if the newest connection is newer than
// the broken one.
func (l *ledger) next(broken uint64) (e *entry, connection uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.outbox) == 0 || l.connection <= broken {
		return nil, l.connection
	}
	e, l.outbox[0] = l.outbox[0], nil
	l.outbox = l.outbox[1:]
	e.state = writing
	return e, l.connection
}

// written notes what became of a write on a connection. A message that came
// back or was given up meanwhile stays what it is.
func (l *ledger) written(e *entry, connection uint64, err error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if e.state == writing {
			e.state = queued
			l.outbox = slices.Insert(l.outbox, 0, e)
		}
		return
	}
	if e.sends++; e.sends == 1 {
		e.first = now
	} else {
		l.resent++
		l.meters.resent.Inc()
		if !e.late && e.span != nil {
			e.span.AddEvent("resend")
		}
		e.wait = min(2*e.wait, maxResend)
	}
	e.last = now
	if e.state != writing {
		return
	}
	e.state = inFlight
	if connection < l.connection {
		l.enqueue(e) // the connection has been replaced since
	}
}

// connected queues what is in flight on the connections before this one.
func (l *ledger) connected(connection uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connection = connection
	for _, stamp := range slices.Sorted(maps.Keys(l.entries)) {
		if e := l.entries[stamp]; e.state == inFlight {
			l.enqueue(e)
		}
	}
	poke(l.outboxed)
}

// arrive takes a message that came back. With claimStore and claimWait it
// returns the commit.
func (l *ledger) arrive(stamp message.Stamp, now time.Time) (claim, *entry, *commit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[stamp]
	if e == nil {
		if _, ok := l.recent.set[stamp]; ok {
			l.duplicates++
			l.meters.duplicates.Inc()
			return claimRepeat, nil, nil
		}
		if stamp < l.oldest || stamp > l.newest {
			return claimNever, nil, nil
		}
		return claimAsk, nil, nil
	}
	l.pace.back(e, now)
	switch e.state {
	case committing:
		return claimWait, e, e.commit
	case queued:
		l.outbox = slices.DeleteFunc(l.outbox, func(o *entry) bool { return o == e })
	case writing, inFlight, lost:
	}
	e.state, e.commit = committing, &commit{done: make(chan struct{})}
	l.commits++
	return claimStore, e, e.commit
}

// answered counts a repeat that the database, or a commit under way, told of.
func (l *ledger) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.duplicates++
	l.meters.duplicates.Inc()
}

// recall brings back a lost message that has no entry any more, if there are
// such messages. The caller knows that it has no row.
func (l *ledger) recall(stamp message.Stamp) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[stamp] != nil {
		return true
	}
	if l.forgotten == 0 || stamp < l.oldest || stamp > l.newest {
		return false
	}
	l.forgotten--
	l.remember(&entry{message: message.Message{SessionID: l.sessionID, Service1: stamp}, late: true, reason: "lost before"})
	return true
}

// settle notes the outcome of a commit. It returns the message if that made it
// lost.
func (l *ledger) settle(e *entry, m message.Message, err error) (gone *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := e.commit
	e.commit, c.err = nil, err
	l.commits--
	switch {
	case err == nil:
		delete(l.entries, m.Service1)
		l.recent.add(m.Service1)
		l.stored++
		l.meters.stored.Inc()
		hops := m.Hops()
		l.hops.add(hops)
		l.meters.observe(hops)
		if !e.late {
			e.span.End()
			l.release()
		}
	case e.late:
		l.remember(e)
	case l.closed || errors.Is(err, ErrSessionEnded):
		l.lose(e, "its commit failed")
		gone = e
	default:
		e.state = inFlight
	}
	close(c.done)
	poke(l.changed)
	return gone
}

func (l *ledger) release() {
	l.free++
	l.busy--
	poke(l.changed)
}

// lose gives a message up.
func (l *ledger) lose(e *entry, reason string) {
	l.meters.givenUp.Inc()
	e.span.SetStatus(codes.Error, "given up: "+reason)
	e.span.SetAttributes(semconv.ErrorTypeKey.String("given_up"))
	e.span.End()
	e.late, e.reason = true, reason
	l.release()
	l.remember(e)
}

// remember keeps a lost message, and forgets the oldest when there are many.
func (l *ledger) remember(e *entry) {
	e.state = lost
	l.entries[e.message.Service1] = e
	l.lost = append(l.lost, e)
	if len(l.lost) <= maxLost {
		return
	}
	if old := l.lost[0]; old.state == lost && l.entries[old.message.Service1] == old {
		delete(l.entries, old.message.Service1)
		l.forgotten++
	}
	l.lost[0] = nil
	l.lost = l.lost[1:]
}

// sweep gives up what was not heard of for long, and queues again what is
// likely to be lost. With last set it gives up all but commits under way, and
// from then on nothing is waited for. It returns what it gave up.
//
// A message is likely to be lost, and not waiting, when it is out for twice as
// long as the slowest of late, and one that was sent a whole resend time after
// it has come back, or nothing has.
func (l *ledger) sweep(now time.Time, last bool) (gone []*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = l.closed || last
	var due []*entry
	copies := 0
	for _, e := range l.entries {
		if e.state == committing || e.state == lost {
			continue
		}
		from := e.first
		if from.IsZero() {
			from = e.made // it could not be sent yet, and must not wait for ever
		}
		switch {
		case last:
			gone = append(gone, e)
		case now.Sub(from) >= l.giveUpAfter:
			gone = append(gone, e)
		case e.state != inFlight:
		case now.Sub(e.last) < l.pace.patience(e):
			if e.sends > 1 {
				copies++
			}
		case l.pace.passed(e, l.resendAfter, now):
			due = append(due, e)
		}
	}
	byKey := func(a, b *entry) int { return cmp.Compare(a.message.Service1, b.message.Service1) }
	slices.SortFunc(gone, byKey)
	slices.SortFunc(due, byKey)
	for _, e := range due[:min(len(due), max(0, maxCopies-copies))] {
		l.enqueue(e)
	}
	if len(gone) > 0 {
		for _, e := range gone {
			l.lose(e, lossReason(e, last))
		}
		l.outbox = slices.DeleteFunc(l.outbox, func(e *entry) bool { return e.state != queued })
	}
	return gone
}

func lossReason(e *entry, last bool) string {
	switch {
	case e.sends == 0:
		return "it could not be sent"
	case last:
		return "the session was ended before it came back"
	}
	return "it did not come back in time"
}

// lostMessages names the lost messages that are remembered, by their keys.
func (l *ledger) lostMessages() (named []LostMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, stamp := range slices.Sorted(maps.Keys(l.entries)) {
		if e := l.entries[stamp]; e.state == lost {
			named = append(named, LostMessage{Service1: stamp, Reason: e.reason})
		}
	}
	return named
}

// account is the state of a ledger in figures.
type account struct {
	generated, stored, resent, duplicates int64
	underWay, commits                     int
	newest                                message.Stamp
	hops                                  *Hops
}

func (l *ledger) account() account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return account{
		generated: l.generated, stored: l.stored, resent: l.resent, duplicates: l.duplicates,
		underWay: l.busy, commits: l.commits, newest: l.newest, hops: l.hops.hops(),
	}
}

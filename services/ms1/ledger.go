package ms1

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// state is where a message without a row is.
type state int

// The states of an entry. A stored message has no entry.
const (
	queued     state = iota // in the outbox
	writing                 // taken from the outbox, being written to the transport
	inFlight                // written
	committing              // returned; its commit is running
	lost                    // given up; stored nevertheless if it returns
)

const (
	// maxLost lost messages of a session are remembered. Older ones are looked
	// up in the database.
	maxLost = MaxInFlight
	// maxRecent stored messages are remembered: most repeats need no database.
	maxRecent = 4 * MaxInFlight
	// maxCopies is the number of messages in flight that may be copies resent
	// without a new connection. If the first copies merely wait, more of them
	// increase the overload.
	maxCopies = 64
	// soon is the time in which messages return that have waited in the same place.
	soon = time.Second
	// slowWindow is the least time for which the slowest round trip counts.
	slowWindow = 10 * time.Second
	// commitFailed is why a message that has returned is lost.
	commitFailed = "commit failed"
)

// entry is a message without a row.
type entry struct {
	message message.Message
	span    trace.Span
	state   state
	late    bool    // was lost before; has no slot and no span
	commit  *commit // while committing
	sends   int
	created time.Time
	first   time.Time // send
	last    time.Time // send
	wait    time.Duration
	arrived time.Time // when its commit began to wait
	reason  string    // why it is lost
}

// outbox is the messages that wait to be sent, in order.
type outbox []*entry

func (o *outbox) put(e *entry) {
	e.state = queued
	*o = append(*o, e)
}

// commit is one attempt to store the messages of a request, for all requests that
// wait for one of them.
type commit struct {
	done chan struct{}
	err  error
}

func newCommit() *commit { return &commit{done: make(chan struct{})} }

// verdict is the ledger's decision on a returned message.
type verdict int

const (
	verdictStore  verdict = iota // the caller stores it and settles the commit
	verdictWait                  // another request does
	verdictRepeat                // it has a row
	verdictNever                 // it was never generated
	verdictAsk                   // the database knows
)

// ledger is the account of a session's messages. Each method is one transition
// and does no I/O. Its mutex is taken after the engine's. Generated is always
// stored + lost + in flight.
type ledger struct {
	sessionID   int64
	resendAfter time.Duration
	giveUpAfter time.Duration
	newSpan     func(message.Message) trace.Span
	meters      *meters
	filled      chan struct{} // notified when there is something to send again
	changed     chan struct{} // notified when commits have ended

	mu         sync.Mutex
	hops       *hopMeter
	newest     message.Stamp // key
	oldest     message.Stamp // no key is below it
	slots      int           // in all
	free       int           // slots
	commits    int           // running
	entries    map[message.Stamp]*entry
	outbox     outbox
	connection uint64 // the newest of the transport
	completed  bool   // it takes no new message any more
	closed     bool   // it waits for no message any more
	generated  int64
	stored     int64
	resent     int64
	duplicates atomic.Int64 // answers 200 that added no row

	lost      []*entry // the newest, oldest first; some may be stored since
	forgotten int64    // lost messages without an entry
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

// pace distinguishes messages that wait from those that are likely lost.
type pace struct {
	returnedAt time.Time     // of the last message
	sentAt     time.Time     // the newest of the returned messages
	slowest    time.Duration // round trip of the window, without copies
	slower     time.Duration // the same of the window before
	windowAt   time.Time

	copySentAt time.Time // the newest copy when a message with copies returned
	copyBackAt time.Time // when the first message with copies as new returned
}

// returned notes a returned message. It ignores the round trip of one with
// copies, any of which may have returned.
func (p *pace) returned(e *entry, resendAfter time.Duration, now time.Time) {
	p.returnedAt = now
	if e.late || e.sends == 0 {
		return
	}
	if e.sends > 1 {
		if e.last.Sub(p.copySentAt) >= resendAfter {
			p.copySentAt, p.copyBackAt = e.last, now
		}
		return
	}
	if e.first.After(p.sentAt) {
		p.sentAt = e.first
	}
	if now.Sub(p.windowAt) >= slowWindow {
		p.slower, p.slowest, p.windowAt = p.slowest, 0, now
	}
	p.slowest = max(p.slowest, now.Sub(e.first))
}

// patience returns how long the newest copy of a message may take.
func (p *pace) patience(e *entry) time.Duration {
	return max(e.wait, 2*max(p.slowest, p.slower))
}

// passed reports whether a message sent a whole resend time after this one has
// returned, or no message has for long. If the returned message has copies, it may
// be the first one that returns after a pause. The others then follow soon.
func (p *pace) passed(e *entry, resendAfter time.Duration, now time.Time) bool {
	return p.sentAt.Sub(e.last) >= resendAfter || now.Sub(p.returnedAt) >= max(resendAfter, p.slowest, p.slower) ||
		p.copySentAt.Sub(e.last) >= resendAfter && now.Sub(p.copyBackAt) >= soon
}

func newLedger(sessionID int64, startedAt message.Stamp, slots int, c InteractionConfig) *ledger {
	return &ledger{
		sessionID: sessionID, newest: startedAt - 1, oldest: startedAt, slots: slots, free: slots,
		resendAfter: time.Duration(c.ResendAfterSeconds) * time.Second,
		giveUpAfter: time.Duration(c.GiveUpAfterSeconds) * time.Second,
		changed:     make(chan struct{}, 1),
		hops:        newHopMeter(),
		entries:     make(map[message.Stamp]*entry, slots),
		recent:      recentKeys{set: map[message.Stamp]struct{}{}},
	}
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// complete ends the generation of messages.
func (l *ledger) complete() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.completed = true
}

// add creates the next message and puts it into the outbox. It returns false
// without a free slot, and after complete.
func (l *ledger) add(stamp message.Stamp, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free == 0 || l.completed || l.closed {
		return false
	}
	l.newest = max(stamp, l.newest+1)
	e := &entry{message: message.Message{SessionID: l.sessionID, Service1: l.newest}, created: now, wait: l.resendAfter}
	e.span = l.newSpan(e.message)
	l.free--
	l.entries[l.newest] = e
	l.generated++
	l.meters.generated.Inc()
	l.outbox.put(e)
	return true
}

// next takes the oldest messages of the outbox, at most maxFrames, if there is a
// newer connection than the broken one. It appends them to batch.
func (l *ledger) next(broken uint64, batch []*entry) (_ []*entry, connection uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.connection <= broken {
		return batch, l.connection
	}
	n := min(len(l.outbox), maxFrames)
	for i, e := range l.outbox[:n] {
		e.state = writing
		batch, l.outbox[i] = append(batch, e), nil
	}
	l.outbox = l.outbox[n:]
	return batch, l.connection
}

// written notes the outcome of a write. The state of a message that has returned
// or been given up meanwhile does not change.
func (l *ledger) written(batch []*entry, connection uint64, err error, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		var again []*entry
		for _, e := range batch {
			if e.state == writing {
				e.state = queued
				again = append(again, e)
			}
		}
		l.outbox = slices.Insert(l.outbox, 0, again...)
		return
	}
	for _, e := range batch {
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
			continue
		}
		e.state = inFlight
		if connection < l.connection {
			l.outbox.put(e) // the connection has been replaced since
			notify(l.filled)
		}
	}
}

// connected queues the messages in flight on earlier connections.
func (l *ledger) connected(connection uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connection = connection
	for _, stamp := range slices.Sorted(maps.Keys(l.entries)) {
		if e := l.entries[stamp]; e.state == inFlight {
			l.outbox.put(e)
		}
	}
	notify(l.filled)
}

// arrive takes a returned message, whose commit is attempt unless another one is
// running. It returns the commit with verdictStore and verdictWait.
func (l *ledger) arrive(stamp message.Stamp, attempt *commit, now time.Time) (verdict, *entry, *commit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[stamp]
	if e == nil {
		if _, ok := l.recent.set[stamp]; ok {
			return verdictRepeat, nil, nil
		}
		if stamp < l.oldest || stamp > l.newest {
			return verdictNever, nil, nil
		}
		return verdictAsk, nil, nil
	}
	l.pace.returned(e, l.resendAfter, now)
	switch e.state {
	case committing:
		return verdictWait, e, e.commit
	case queued:
		l.outbox = slices.DeleteFunc(l.outbox, func(o *entry) bool { return o == e })
	case writing, inFlight, lost:
	}
	e.state, e.commit, e.arrived = committing, attempt, now
	l.commits++
	return verdictStore, e, e.commit
}

// recall reports whether arrive can decide on a message that had no row. It
// recreates the entry if the message is lost and not remembered.
func (l *ledger) recall(stamp message.Stamp) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.recent.set[stamp]; ok || l.entries[stamp] != nil { // another copy was faster
		return true
	}
	if l.forgotten == 0 || stamp < l.oldest || stamp > l.newest {
		return false
	}
	l.forgotten--
	l.remember(&entry{message: message.Message{SessionID: l.sessionID, Service1: stamp}, late: true, reason: "lost before"})
	return true
}

// settle notes the outcome of a commit, which has all messages of an attempt. It
// returns the messages that are lost.
func (l *ledger) settle(batch []insert, err error) (gone []*entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.completed = l.completed || errors.Is(err, ErrSessionEnded) // its free slots get no message
	var last *commit
	now := time.Now()
	for _, in := range batch {
		e := in.entry
		c := e.commit
		e.commit = nil
		l.commits--
		switch {
		case err == nil:
			l.store(e, in.message, now)
		case e.late:
			l.remember(e)
		case l.closed || errors.Is(err, ErrSessionEnded):
			l.lose(e, commitFailed)
			gone = append(gone, e)
		default:
			e.state = inFlight
		}
		if c != last { // the messages of an attempt are neighbours
			c.err, last = err, c
			defer close(c.done)
		}
	}
	notify(l.changed)
	return gone
}

// store notes that a message has a row.
func (l *ledger) store(e *entry, m message.Message, now time.Time) {
	delete(l.entries, m.Service1)
	l.recent.add(m.Service1)
	l.stored++
	l.meters.stored.Inc()
	hops, commit := m.Hops(), now.Sub(e.arrived)
	l.hops.add(hops)
	l.hops.commit.add(commit.Seconds())
	l.meters.observe(m, hops, commit, e.span)
	if !e.late {
		e.span.End()
		l.free++
	}
}

// lose gives a message up.
func (l *ledger) lose(e *entry, reason string) {
	l.meters.givenUp.Inc()
	telemetry.Fail(e.span, "given_up", "given up: "+reason)
	e.span.End()
	e.late, e.reason = true, reason
	l.free++
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

// sweep gives up messages whose time is over and queues those that are likely
// lost. With last set it gives up all except running commits and closes the
// ledger. It returns the messages that it gave up.
//
// A message is likely lost, and does not merely wait, if it takes twice as long
// as the slowest recent one, and a message or a copy sent a whole resend time
// after it has returned, or nothing has.
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
			from = e.created // it could not be sent yet, and must not wait indefinitely
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
		l.outbox.put(e)
		notify(l.filled)
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
		return "not sent"
	case last:
		return "session ended before it returned"
	}
	return "not returned in time"
}

// lostMessages returns the remembered lost messages in the order of their keys, and
// those whose commit is running: they are lost unless the database finds their rows.
func (l *ledger) lostMessages() (all []LostMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, stamp := range slices.Sorted(maps.Keys(l.entries)) {
		if e := l.entries[stamp]; e.state == lost || e.state == committing {
			all = append(all, LostMessage{Service1: stamp, Reason: cmp.Or(e.reason, commitFailed)})
		}
	}
	return all
}

// hopsUntilNow returns a copy of what the ledger has collected.
func (l *ledger) hopsUntilNow() *hopMeter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hops.copy()
}

// account is the figures of a ledger.
type account struct {
	generated, stored, resent, duplicates int64
	busy, commits                         int
	newest                                message.Stamp
}

func (l *ledger) account() account {
	l.mu.Lock()
	defer l.mu.Unlock()
	return account{
		generated: l.generated, stored: l.stored, resent: l.resent, duplicates: l.duplicates.Load(),
		busy: l.slots - l.free, commits: l.commits, newest: l.newest,
	}
}

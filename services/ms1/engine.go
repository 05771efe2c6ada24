package ms1

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// State is what MS1 is doing.
type State string

// The states of MS1. A session that was accepted but has no number yet counts
// as running.
const (
	Idle     State = "idle"
	Running  State = "running"  // messages are being made
	Draining State = "draining" // no more are made; those under way come back or are given up
)

const (
	// sweepEvery is how often deadlines are looked at.
	sweepEvery = 50 * time.Millisecond
	// beginTimeout bounds the transactions before the answer to /start.
	beginTimeout = 3 * time.Second
	// settleTimeout is how long a drained session waits for commits under way.
	settleTimeout = time.Second
	// recordTimeout is the first try to write a session's figures; each further
	// one gets twice as long, up to longestRecord, since counting the rows of a
	// day takes minutes. recordRetry is the time between two.
	recordTimeout = 2 * time.Second
	longestRecord = 5 * time.Minute
	recordRetry   = time.Second
	// shutdownTimeout is what a session gets to end when the program stops:
	// the drain, the commits under way and one try to write the figures.
	shutdownTimeout = 5500 * time.Millisecond
)

// link carries encoded messages to MS2.
type link interface {
	// Run keeps a connection until ctx is cancelled. It calls connected, with
	// a number that grows, each time a new one stands.
	Run(ctx context.Context, connected func(connection uint64)) error
	// Send writes a frame and returns the number of the connection that took
	// it. It blocks while the peer does not read, and fails when there is no
	// connection or it breaks.
	Send(frame []byte) (connection uint64, err error)
	// Ready returns nil while a connection stands.
	Ready(ctx context.Context) error
}

// engine runs sessions, one at a time.
type engine struct {
	config InteractionConfig
	store  Store
	link   link
	now    func() time.Time // for stamps; deadlines use the monotonic clock
	log    zerolog.Logger
	tel    *telemetry.Telemetry
	meters *meters

	committer *committer
	sessions  sync.WaitGroup
	quit      chan struct{} // closed when the program stops
	quitAt    time.Time     // when that was; set before
	outboxed  chan struct{} // something to send, or a connection to send it on

	// opening is held while sessions are opened, or closed as interrupted, in
	// the database: of what is open there none may be alive.
	opening sync.Mutex

	mu         sync.Mutex
	starting   chan struct{} // closed when a /start under way has its outcome
	session    *session      // under way, or the last one
	outbox     []*round      // to be sent; a round is in it at most once
	connection uint64        // the newest of the link
	recovered  bool          // no session of a crashed program is open in the database
}

// session is a session under way, or what is left of the last one. The
// engine's mutex guards it but for the channels.
type session struct {
	row      Session
	interval time.Duration
	began    time.Time     // by the monotonic clock
	total    time.Duration // 0 while under way
	state    State
	drained  bool  // nothing is under way any more, but for commits
	recorded bool  // the figures of the row are the database's
	notYet   error // why they are not recorded
	hops     *hopMeter

	last       message.Stamp // of the newest key
	rounds     map[message.Stamp]*round
	givenUp    map[message.Stamp]struct{}
	committing int // rounds in the committer
	generated  int64
	stored     int64
	resent     int64
	duplicates int64

	slots chan struct{} // a token for each message that may yet be under way
	stop  chan EndReason
	poke  chan struct{} // a commit has its outcome
	ended chan struct{} // closed when the last figures stand, recorded or not
}

// round is a message that was not stored yet.
type round struct {
	session    *session
	message    message.Message
	span       trace.Span
	queued     bool      // in the outbox, or being written
	commit     *commit   // not nil while the message is in the committer
	late       bool      // was given up before; holds no slot
	made       time.Time // by the monotonic clock, as the next three
	sent       time.Time // first send
	resendAt   time.Time
	resendWait time.Duration
	connection uint64 // that took the newest copy
}

// commit is one try to store a message, for all requests that wait for it.
type commit struct {
	done chan struct{}
	err  error
}

func newEngine(c InteractionConfig, store Store, l link, now func() time.Time, log zerolog.Logger, tel *telemetry.Telemetry) *engine {
	e := &engine{
		config: c, store: store, link: l, now: now, log: log, tel: tel,
		committer: newCommitter(store),
		quit:      make(chan struct{}),
		outboxed:  make(chan struct{}, 1),
	}
	e.meters = newMeters(tel.Metrics, e)
	return e
}

// run serves sessions until ctx is cancelled, then drains the one under way.
func (e *engine) run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { e.committer.run(inner) })
	wg.Go(func() { e.send(inner) })
	wg.Go(func() { e.recover(ctx) })

	<-ctx.Done()
	e.mu.Lock()
	e.quitAt = time.Now()
	close(e.quit)
	starting := e.starting
	e.mu.Unlock()
	if starting != nil {
		<-starting
	}
	e.mu.Lock()
	if s := e.session; s != nil && s.state != Idle {
		s.end(Shutdown)
	}
	e.mu.Unlock()
	e.sessions.Wait()
	cancel()
	wg.Wait()
	return nil
}

func (e *engine) stopping() bool {
	select {
	case <-e.quit:
		return true
	default:
		return false
	}
}

// recover closes what a crash left open, as soon as the store can be used.
func (e *engine) recover(ctx context.Context) {
	for ctx.Err() == nil {
		if e.store.Ready(ctx) == nil {
			err := e.recoverOnce(ctx)
			if err == nil {
				return
			}
			e.log.Warn().Err(err).Msg("closing interrupted sessions failed, will try again")
		}
		select {
		case <-ctx.Done():
		case <-time.After(sweepEvery):
		}
	}
}

func (e *engine) recoverOnce(ctx context.Context) error {
	e.opening.Lock()
	defer e.opening.Unlock()
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	e.mu.Lock()
	begun := e.session != nil
	e.mu.Unlock()
	if begun {
		return nil // it was done before that session began
	}
	if err := e.closeInterrupted(ctx); err != nil {
		return err
	}
	return e.loadLast(ctx)
}

// closeInterrupted ends the sessions that are open in the database. The caller
// holds opening, and no session is under way.
func (e *engine) closeInterrupted(ctx context.Context) error {
	closed, err := e.store.CloseInterrupted(ctx, message.StampOf(e.now()))
	for _, row := range closed {
		e.log.Warn().Int64("session_id", row.ID).Int64("stored", *row.Stored).
			Msgf("session %d was interrupted: %d messages are stored, how many were generated is unknown", row.ID, *row.Stored)
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recovered = true
	return nil
}

// loadLast makes the newest session of the database the last one.
func (e *engine) loadLast(ctx context.Context) error {
	row, err := e.store.LastSession(ctx)
	if errors.Is(err, ErrNoSession) {
		return nil
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = &session{row: row, state: Idle, recorded: true}
	return nil
}

// NotReadyError is the error of a start while something is missing.
type NotReadyError struct{ Missing map[string]error }

func (e *NotReadyError) Error() string {
	parts := make([]string, 0, len(e.Missing))
	for _, name := range slices.Sorted(maps.Keys(e.Missing)) {
		parts = append(parts, fmt.Sprintf("%s: %v", name, e.Missing[name]))
	}
	return "not ready: " + strings.Join(parts, "; ")
}

// BusyError is the error of a start while another session starts, runs or
// drains.
type BusyError struct {
	SessionID int64 // 0 if it has no number yet
	State     State
}

func (e *BusyError) Error() string {
	if e.SessionID == 0 {
		return "a session is being started"
	}
	return fmt.Sprintf("session %d is %s", e.SessionID, e.State)
}

// ErrIdle is the error of a stop when no session is under way.
var ErrIdle = errors.New("no session is under way")

// NotRecordedError is the error of a stop whose session has ended while its
// figures could not be written to the database.
type NotRecordedError struct {
	Summary Summary
	Err     error
}

func (e *NotRecordedError) Error() string {
	return fmt.Sprintf("session %d has ended, its figures are not recorded yet: %v", e.Summary.ID, e.Err)
}

func (e *NotRecordedError) Unwrap() error { return e.Err }

// checks are what a session needs.
func (e *engine) checks() []httpserver.Check {
	return []httpserver.Check{{Name: "database", Probe: e.store.Ready}, {Name: "ms2", Probe: e.link.Ready}}
}

// start begins a session and returns its number. Its errors are
// *NotReadyError and *BusyError. Once it has begun the session no longer
// depends on ctx.
func (e *engine) start(ctx context.Context, intervalSeconds, inFlight int) (id int64, err error) {
	e.mu.Lock()
	switch s := e.session; {
	case e.stopping():
		err = &NotReadyError{map[string]error{"ms1": errStopping}}
	case e.starting != nil:
		err = &BusyError{}
	case s != nil && s.state != Idle && s.hasEnded():
		err = &NotReadyError{map[string]error{"database": fmt.Errorf("the figures of session %d are not recorded yet", s.row.ID)}}
	case s != nil && s.state != Idle:
		err = &BusyError{SessionID: s.row.ID, State: s.state}
	}
	if err != nil {
		e.mu.Unlock()
		return 0, err
	}
	outcome := make(chan struct{})
	e.starting = outcome
	e.mu.Unlock()

	e.opening.Lock()
	defer e.opening.Unlock()
	ctx = context.WithoutCancel(ctx) // a client that leaves must not leave half a session
	s, err := e.begin(ctx, intervalSeconds, inFlight)

	e.mu.Lock()
	e.starting = nil
	if err == nil {
		e.session = s
		e.sessions.Go(func() { e.interact(s) })
	}
	e.mu.Unlock()
	close(outcome)
	if err != nil {
		return 0, err
	}
	return s.row.ID, nil
}

func (e *engine) begin(ctx context.Context, intervalSeconds, inFlight int) (*session, error) {
	missing := map[string]error{}
	for name, err := range httpserver.Probe(ctx, e.checks()) {
		if err != nil {
			missing[name] = err
		}
	}
	if len(missing) > 0 {
		return nil, &NotReadyError{missing}
	}
	meter, err := newHopMeter()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	if err := e.closeInterrupted(ctx); err != nil {
		return nil, &NotReadyError{map[string]error{"database": err}}
	}
	startedAt := message.StampOf(e.now())
	id, err := e.store.Begin(ctx, Opening{StartedAt: startedAt, IntervalSeconds: intervalSeconds, InFlight: inFlight})
	if err != nil {
		return nil, &NotReadyError{map[string]error{"database": err}}
	}
	s := &session{
		row:      Session{ID: id, StartedAt: startedAt, IntervalSeconds: intervalSeconds, InFlight: inFlight},
		interval: time.Duration(intervalSeconds) * time.Second,
		began:    time.Now(),
		state:    Running,
		hops:     meter,
		last:     startedAt - 1,
		rounds:   make(map[message.Stamp]*round, inFlight),
		givenUp:  map[message.Stamp]struct{}{},
		slots:    make(chan struct{}, inFlight),
		stop:     make(chan EndReason, 1),
		poke:     make(chan struct{}, 1),
		ended:    make(chan struct{}),
	}
	for range inFlight {
		s.slots <- struct{}{}
	}
	return s, nil
}

// end asks the session to stop. Only the first reason counts.
func (s *session) end(reason EndReason) {
	select {
	case s.stop <- reason:
	default:
	}
}

// hasEnded says whether the last figures stand, recorded or not.
func (s *session) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// interact is the life of a session.
func (e *engine) interact(s *session) {
	e.log.Info().Int64("session_id", s.row.ID).Msgf("session %d begins: %s, %d in flight", s.row.ID, s.interval, s.row.InFlight)
	reason := e.generate(s)
	e.drain(s, reason)
	e.record(s, reason)
}

// generate makes messages while slots are free, until the interval is over or
// the session is stopped.
func (e *engine) generate(s *session) EndReason {
	interval := time.NewTimer(time.Until(s.began.Add(s.interval)))
	defer interval.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		// The end goes before another message.
		select {
		case reason := <-s.stop:
			return reason
		case <-interval.C:
			return IntervalElapsed
		default:
		}
		select {
		case reason := <-s.stop:
			return reason
		case <-interval.C:
			return IntervalElapsed
		case <-sweep.C:
			e.sweep(s, false)
		case <-s.slots:
			e.makeRound(s)
		}
	}
}

// makeRound makes the next message of the session and has it sent.
func (e *engine) makeRound(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.last = max(message.StampOf(e.now()), s.last+1)
	r := &round{
		session:    s,
		message:    message.Message{SessionID: s.row.ID, Service1: s.last},
		made:       time.Now(),
		resendWait: time.Duration(e.config.ResendAfterSeconds) * time.Second,
	}
	_, r.span = e.tel.StartRoot(context.Background(), r.message.Key(), "round",
		trace.WithSpanKind(trace.SpanKindProducer),
		trace.WithAttributes(messageAttributes(r.message)...))
	s.rounds[s.last] = r
	s.generated++
	e.meters.generated.Inc()
	e.enqueue(r)
}

// enqueue has a round sent. The caller holds the mutex.
func (e *engine) enqueue(r *round) {
	r.queued = true
	e.outbox = append(e.outbox, r)
	poke(e.outboxed)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func messageAttributes(m message.Message) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.Int64("tricycle.session_id", m.SessionID),
		attribute.String("tricycle.service1_timestamp", m.Service1.String()),
	}
}

// drain waits until every message came back or was given up. When the
// interval is over each message has its full time; a stop ends all of them
// after the drain time.
func (e *engine) drain(s *session, reason EndReason) {
	e.mu.Lock()
	s.state = Draining
	e.mu.Unlock()
	drainTime := time.Duration(e.config.DrainSeconds) * time.Second
	var deadline time.Time
	if reason != IntervalElapsed {
		deadline = time.Now().Add(drainTime)
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	// Every slot is free again when as many tokens as there are were taken.
	for back := 0; back < s.row.InFlight && (deadline.IsZero() || time.Now().Before(deadline)); {
		select {
		case <-s.slots:
			back++
		case <-s.stop:
			if deadline.IsZero() {
				deadline = time.Now().Add(drainTime)
			}
		case <-sweep.C:
			e.sweep(s, false)
		}
	}
	e.sweep(s, true)
	e.mu.Lock()
	s.drained = true
	e.mu.Unlock()
}

// sweep looks at the deadlines of the messages under way: what was not heard
// of for long is sent again and in the end given up. With last set, all of
// them are given up.
func (e *engine) sweep(s *session, last bool) {
	now := time.Now()
	giveUpAfter := time.Duration(e.config.GiveUpAfterSeconds) * time.Second
	e.mu.Lock()
	defer e.mu.Unlock()
	dropped := false
	for _, r := range s.rounds {
		if r.commit != nil {
			continue
		}
		from := r.sent
		if from.IsZero() {
			from = r.made // it could not be sent yet, and must not wait for ever
		}
		switch {
		case last, now.Sub(from) >= giveUpAfter:
			e.giveUp(r)
			dropped = dropped || r.queued
		case !r.queued && !now.Before(r.resendAt):
			e.enqueue(r)
		}
	}
	if dropped {
		e.outbox = slices.DeleteFunc(e.outbox, func(r *round) bool { return !r.isUnderWay() })
	}
}

// isUnderWay says whether the message was sent, or is about to be, and
// neither stored nor given up nor in a commit.
func (r *round) isUnderWay() bool {
	return r.commit == nil && r.session.rounds[r.message.Service1] == r
}

// giveUp counts a message as lost. If it comes back late it is still stored.
func (e *engine) giveUp(r *round) {
	s := r.session
	delete(s.rounds, r.message.Service1)
	s.givenUp[r.message.Service1] = struct{}{}
	if r.late {
		return // a late one whose commit failed
	}
	e.meters.givenUp.Inc()
	r.span.SetStatus(codes.Error, "given up: it did not come back in time")
	r.span.SetAttributes(semconv.ErrorTypeKey.String("given_up"))
	r.span.End()
	e.log.Debug().Stringer("trace_id", r.span.SpanContext().TraceID()).Stringer("key", r.message.Key()).Msg("message given up")
	s.slots <- struct{}{} // never blocks: one token a message
}

// send writes what is in the outbox to the link.
func (e *engine) send(ctx context.Context) {
	var broken uint64 // the connection that failed last
	for {
		e.mu.Lock()
		var r *round
		if len(e.outbox) > 0 && e.connection > broken {
			r = e.outbox[0]
			e.outbox = e.outbox[1:]
		}
		using := e.connection
		e.mu.Unlock()
		if r == nil {
			select {
			case <-e.outboxed:
				continue
			case <-ctx.Done():
				return
			}
		}
		connection, err := e.link.Send(r.message.Encode())
		e.mu.Lock()
		switch {
		case err != nil:
			broken = using
			e.outbox = append([]*round{r}, e.outbox...)
		case !r.isUnderWay():
			r.queued = false // it was given up, or came back, meanwhile
		default:
			e.written(r, connection)
		}
		e.mu.Unlock()
	}
}

// written notes that a copy of the message went out. The caller holds the
// mutex.
func (e *engine) written(r *round, connection uint64) {
	now := time.Now()
	r.queued = false
	r.connection = connection
	if r.sent.IsZero() {
		r.sent = now
	} else {
		r.session.resent++
		e.meters.resent.Inc()
		r.span.AddEvent("resend")
	}
	r.resendAt = now.Add(r.resendWait)
	r.resendWait = min(2*r.resendWait, maxResend)
	if connection != e.connection {
		e.enqueue(r) // the connection has been replaced since
	}
}

// connected sends again what is under way on connections before this one.
func (e *engine) connected(connection uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.connection = connection
	poke(e.outboxed)
	if e.session == nil {
		return
	}
	rounds := e.session.rounds
	for _, stamp := range slices.Sorted(maps.Keys(rounds)) {
		if r := rounds[stamp]; r.commit == nil && !r.queued && !r.late {
			e.enqueue(r)
		}
	}
}

// Outcome is what became of a message that came back.
type Outcome string

// The outcomes of a message on /store.
const (
	OutcomeStored  Outcome = "stored"  // it has a row now
	OutcomeRepeat  Outcome = "repeat"  // it had a row before
	OutcomeUnknown Outcome = "unknown" // it was never sent
)

// takeBack stores a message that came back, with all four stamps. An error
// means that it is not known to be stored, and that the caller should try
// again.
func (e *engine) takeBack(ctx context.Context, m message.Message) (Outcome, error) {
	e.mu.Lock()
	s := e.session
	if s == nil || s.row.ID != m.SessionID || s.state == Idle {
		e.mu.Unlock()
		return e.takeBackLate(ctx, nil, m)
	}
	r := s.rounds[m.Service1]
	if r == nil {
		if _, ok := s.givenUp[m.Service1]; !ok {
			e.mu.Unlock()
			return e.takeBackLate(ctx, s, m)
		}
		delete(s.givenUp, m.Service1)
		r = &round{session: s, message: m, late: true, span: trace.SpanFromContext(context.Background())}
		s.rounds[m.Service1] = r
	}
	c, first := r.commit, false
	if c == nil {
		c, first = &commit{done: make(chan struct{})}, true
		r.commit = c
		s.committing++
	}
	e.mu.Unlock()

	if first {
		_, span := e.tel.Tracer.Start(ctx, "INSERT messages", trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(
				semconv.DBOperationName("INSERT"),
				semconv.DBCollectionName("messages")))
		e.committer.add(insert{message: m, span: span, settle: func(err error) { e.settle(r, c, m, err) }})
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the commit: %w", ctx.Err())
	}
	switch {
	case errors.Is(c.err, ErrSessionEnded):
		return e.takeBackLate(ctx, nil, m)
	case c.err != nil:
		return "", c.err
	case first:
		return OutcomeStored, nil
	}
	e.countDuplicate(s)
	return OutcomeRepeat, nil
}

// errRecovering is the error of a message that comes before it is known which
// sessions were interrupted: the database would still take its session for one
// under way, which nobody waits for.
var errRecovering = errors.New("interrupted sessions are not closed yet")

// takeBackLate leaves the decision on a message to the database. s is the
// session under way, if the message belongs to it.
func (e *engine) takeBackLate(ctx context.Context, s *session, m message.Message) (Outcome, error) {
	e.mu.Lock()
	recovered := e.recovered
	e.mu.Unlock()
	if !recovered {
		return "", errRecovering
	}
	late, err := e.store.StoreLate(ctx, m)
	switch {
	case err != nil:
		return "", err
	case late == Added:
		e.meters.late.Inc()
		e.log.Debug().Int64("session_id", m.SessionID).Stringer("key", m.Key()).Msg("stored a message that came back after the end of its session")
		return OutcomeStored, nil
	case late == Repeated:
		e.countDuplicate(s)
		return OutcomeRepeat, nil
	}
	return OutcomeUnknown, nil
}

func (e *engine) countDuplicate(s *session) {
	e.meters.duplicates.Inc()
	if s != nil {
		e.mu.Lock()
		s.duplicates++
		e.mu.Unlock()
	}
}

// settle notes the outcome of a commit.
func (e *engine) settle(r *round, c *commit, m message.Message, err error) {
	s := r.session
	e.mu.Lock()
	c.err = err
	r.commit = nil
	s.committing--
	switch {
	case err == nil:
		delete(s.rounds, m.Service1) // none are left if the session was recorded meanwhile
		s.stored++
		e.meters.stored.Inc()
		hops := m.Hops()
		s.hops.add(hops)
		e.meters.observe(hops)
		if !r.late {
			r.span.End()
			s.slots <- struct{}{} // never blocks: one token a message
		}
	case s.state == Idle: // the session was recorded without it
	case r.late || s.drained || errors.Is(err, ErrSessionEnded):
		e.giveUp(r)
	}
	e.mu.Unlock()
	close(c.done)
	poke(s.poke)
}

// record writes the last figures of a drained session into its row, says them
// and makes way for the next session. If the database is away it says so and
// tries again until it is back or the program stops.
func (e *engine) record(s *session, reason EndReason) {
	settled := time.NewTimer(settleTimeout)
	defer settled.Stop()
	for waiting := true; waiting; {
		e.mu.Lock()
		waiting = s.committing > 0
		e.mu.Unlock()
		if waiting {
			select {
			case <-s.poke:
			case <-settled.C:
				waiting = false // End waits for them, or shuts them out
			}
		}
	}

	e.mu.Lock()
	s.total = time.Since(s.began)
	closing := Closing{
		EndedAt: max(message.StampOf(e.now()), s.last), Generated: s.generated,
		Resent: s.resent, Duplicates: s.duplicates, Reason: reason,
	}
	s.row.EndedAt, s.row.EndReason = closing.EndedAt, &closing.Reason
	e.mu.Unlock()

	for try, timeout := 1, recordTimeout; ; try, timeout = try+1, min(2*timeout, longestRecord) {
		ctx, cancel := e.recordContext(timeout)
		row, err := e.store.End(ctx, s.row.ID, closing)
		cancel()
		over := err == nil || e.stopping()

		e.mu.Lock()
		s.notYet = err
		if err == nil {
			s.row, s.recorded = row, true
		}
		summary := s.summary()
		e.mu.Unlock()
		if try == 1 || over {
			e.say(summary, err)
		}
		if over {
			e.finish(s)
		}
		if try == 1 {
			close(s.ended)
		}
		if over {
			return
		}
		select {
		case <-time.After(recordRetry):
		case <-e.quit:
		}
	}
}

// recordContext ends after the timeout. While the program runs, asking it to
// stop leaves what is left of the time for that, and half a second at least.
func (e *engine) recordContext(timeout time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	go func() {
		select {
		case <-e.quit:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(max(time.Until(e.quitAt.Add(shutdownTimeout)), settleTimeout/2)):
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// finish forgets the messages of a session and makes way for the next.
func (e *engine) finish(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.state = Idle
	s.rounds, s.givenUp = nil, nil
	e.outbox = slices.DeleteFunc(e.outbox, func(r *round) bool { return r.session == s })
}

// stop ends the session under way and returns its summary once that is
// recorded. Its errors are ErrIdle, *NotRecordedError and ctx's; a caller that
// leaves aborts nothing.
func (e *engine) stop(ctx context.Context) (Summary, error) {
	e.mu.Lock()
	starting := e.starting
	e.mu.Unlock()
	if starting != nil {
		select {
		case <-starting:
		case <-ctx.Done():
			return Summary{}, ctx.Err()
		}
	}
	e.mu.Lock()
	s := e.session
	idle := s == nil || s.state == Idle
	e.mu.Unlock()
	if idle {
		return Summary{}, ErrIdle
	}
	s.end(Stopped)
	select {
	case <-s.ended:
	case <-ctx.Done():
		return Summary{}, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !s.recorded {
		return Summary{}, &NotRecordedError{Summary: s.summary(), Err: s.notYet}
	}
	return s.summary(), nil
}

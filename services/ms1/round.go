package ms1

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
)

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
}

// commit is one try to store a message, for all requests that wait for it.
type commit struct {
	done chan struct{}
	err  error
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
		for r == nil && len(e.outbox) > 0 && e.connection > broken {
			if r, e.outbox = e.outbox[0], e.outbox[1:]; !r.isUnderWay() { // it came back meanwhile
				r.queued, r = false, nil
			}
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
	if r.sent.IsZero() {
		r.sent = now
	} else {
		r.session.resent++
		e.meters.resent.Inc()
		r.span.AddEvent("resend")
	}
	r.resendAt = now.Add(r.resendWait)
	r.resendWait = min(2*r.resendWait, maxResend)
	if connection < e.connection {
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
		if r := rounds[stamp]; !r.queued {
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
				semconv.DBSystemNameKey.String(e.store.System()),
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

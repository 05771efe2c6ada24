package ms1

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// maxLate is the number of lookups of late messages in the database at once.
// Unknown messages must not take the connections that commits need.
const maxLate = 3

// errRecovering is the error of a message that arrives before the interrupted
// sessions are closed: in the database its session would still be open.
var errRecovering = errors.New("interrupted sessions are not closed yet")

var client = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}

func messageAttributes(m message.Message) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.Int64("tricycle.session_id", m.SessionID),
		attribute.String("tricycle.service1_timestamp", m.Service1.String()),
	}
}

// arrival is a returned message, which has all four stamps, and its outcome.
type arrival struct {
	ctx     context.Context // has the parent of its spans
	message message.Message
	outcome Outcome
	err     error // the outcome is unknown: the caller should retry
}

// receive stores the returned messages of one request and sets the outcome of
// each, which is the one that it would have alone.
func receive(ctx context.Context, e *engine, arrivals ...*arrival) {
	e.mu.Lock()
	r := receiver{ctx: ctx, engine: e, recovered: e.recovered, newest: e.newest, commit: newCommit()}
	if s := e.current; s != nil && s.state != Idle {
		r.session = s
	}
	e.mu.Unlock()
	var inserts []insert
	var committing []func()
	var asking sync.WaitGroup
	var asked []*arrival
	var asks []func()
	for _, a := range arrivals {
		switch in, wait, ask := r.begin(a); {
		case wait != nil:
			inserts, committing = append(inserts, in...), append(committing, wait)
		case ask != nil && len(arrivals) == 1:
			ask()
		case ask != nil:
			asked, asks = append(asked, a), append(asks, ask)
		}
	}
	if len(asks) > 0 {
		asking.Go(func() {
			if len(asks) > 1 && r.repeats(asked) {
				return
			}
			for _, ask := range asks {
				asking.Go(ask)
			}
		})
	}
	e.committer.add(inserts) // perhaps until they are committed
	for _, wait := range committing {
		wait()
	}
	asking.Wait()
	for _, a := range arrivals {
		if a.outcome != OutcomeRepeat {
			continue
		}
		e.meters.duplicates.Inc()
		if r.of(a) {
			r.session.ledger.duplicates.Add(1)
		}
	}
}

// receiver receives the messages of one request.
type receiver struct {
	ctx       context.Context
	engine    *engine
	session   *runner // in progress, or nil
	recovered bool
	newest    int64   // session id
	commit    *commit // of its messages
}

// of reports whether the session in progress is that of a message.
func (r *receiver) of(a *arrival) bool {
	return r.session != nil && r.session.ledger.sessionID == a.message.SessionID
}

// begin decides on a message, or returns what does: wait waits for a commit,
// perhaps of the inserts that it returns; ask asks the database.
func (r *receiver) begin(a *arrival) (in []insert, wait, ask func()) {
	switch {
	case r.of(a):
		if in, wait = r.claim(a, r.commit); wait == nil && a.outcome == "" {
			return nil, nil, func() { r.ask(a) }
		}
		return in, wait, nil
	case !r.recovered:
		a.err = errRecovering
	case a.message.SessionID > r.newest:
		a.outcome = OutcomeUnknown
	default:
		return nil, nil, func() { r.late(a) }
	}
	return nil, nil, nil
}

// claim decides on a message of the session, or returns what waits for its
// commit, which is attempt or one that is running. If only the database knows it
// does neither.
func (r *receiver) claim(a *arrival, attempt *commit) (in []insert, wait func()) {
	s, l := r.session, r.session.ledger
	verdict, entry, c := l.arrive(a.message.Service1, attempt, time.Now())
	switch verdict {
	case verdictRepeat:
		a.outcome = OutcomeRepeat
		return nil, nil
	case verdictNever:
		a.outcome = OutcomeUnknown
		return nil, nil
	case verdictAsk:
		return nil, nil
	case verdictStore:
		_, span := r.engine.tel.Start(a.ctx, "INSERT messages", client...)
		if span.IsRecording() {
			span.SetAttributes(
				semconv.DBSystemNameKey.String(r.engine.store.System()),
				semconv.DBOperationName("INSERT"),
				semconv.DBCollectionName("messages"))
		}
		in = []insert{{message: a.message, span: span, session: s, entry: entry}}
	case verdictWait:
	}
	return in, func() {
		select {
		case <-c.done:
		case <-r.ctx.Done():
			a.err = fmt.Errorf("wait for commit: %w", r.ctx.Err())
			return
		}
		switch {
		case errors.Is(c.err, ErrSessionEnded):
			r.late(a)
		case c.err != nil:
			a.err = c.err
		case verdict == verdictStore:
			a.outcome = OutcomeStored
		default:
			a.outcome = OutcomeRepeat
		}
	}
}

// settled notes the outcome of a commit and goes on with the session, which ends
// if its row is not open: no message could be stored.
func settled(batch []insert, err error) {
	s := batch[0].session
	over := errors.Is(err, ErrSessionEnded)
	if over {
		s.end(Interrupted) // before a slot is free
	}
	s.logLost(s.ledger.settle(batch, err)...)
	if !over {
		s.written(err)
		s.advance()
	}
}

// repeats reports whether all messages have rows, and if so decides on them. One
// read then replaces one for each: MS3 may read a hundred thousand records again.
func (r *receiver) repeats(as []*arrival) bool {
	id := as[0].message.SessionID
	batch := make([]message.Message, len(as))
	for i, a := range as {
		if batch[i] = a.message; a.message.SessionID != id {
			return false
		}
	}
	if r.turn() != nil {
		return false
	}
	defer func() { <-r.engine.late }()
	if all, err := r.engine.store.Stored(r.ctx, id, batch); err != nil || !all {
		return false
	}
	for _, a := range as {
		a.outcome = OutcomeRepeat
	}
	return true
}

// ask decides on a message of the session that only the database knows.
func (r *receiver) ask(a *arrival) {
	r.late(a)
	if a.outcome != OutcomeUnknown || !r.session.ledger.recall(a.message.Service1) {
		return
	}
	if in, wait := r.claim(a, newCommit()); wait != nil {
		r.engine.committer.add(in)
		wait()
	}
}

// late decides on a message that no running session waits for.
func (r *receiver) late(a *arrival) {
	e := r.engine
	if a.err = r.turn(); a.err != nil {
		return
	}
	defer func() { <-e.late }()
	if a.outcome, a.err = StoreLate(r.ctx, e.store, a.message); a.outcome == OutcomeStored {
		e.meters.late.Inc()
		e.log.Debug().Int64("session_id", a.message.SessionID).Stringer("key", a.message.Key()).Msg("late message stored")
	}
}

// turn waits until the database may be asked. Unless it fails, the caller takes a
// token out of engine.late afterwards.
func (r *receiver) turn() error {
	select {
	case r.engine.late <- struct{}{}:
		return nil
	case <-r.ctx.Done():
		return fmt.Errorf("wait for database: %w", r.ctx.Err())
	}
}

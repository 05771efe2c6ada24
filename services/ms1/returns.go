package ms1

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// maxLate messages are looked up in the database at once, so that those of a
// stranger take no connection from the commits of a session.
const maxLate = 3

// errRecovering is the error of a message that comes before it is known which
// sessions were interrupted: the database would still take its session for one
// under way, which nobody waits for.
var errRecovering = errors.New("interrupted sessions are not closed yet")

func messageAttributes(m message.Message) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.Int64("tricycle.session_id", m.SessionID),
		attribute.String("tricycle.service1_timestamp", m.Service1.String()),
	}
}

// takeBack stores a message that came back, with all four stamps. An error
// means that it is not known to be stored, and that the caller should try
// again.
func takeBack(ctx context.Context, e *engine, m message.Message) (Outcome, error) {
	e.mu.Lock()
	s, recovered, newest := e.session, e.recovered, e.newest
	under := s != nil && s.row.ID == m.SessionID && s.state != Idle
	e.mu.Unlock()
	if !under {
		switch {
		case !recovered:
			return "", errRecovering
		case m.SessionID > newest:
			return OutcomeUnknown, nil
		}
		return repeated(e)(storeLate(ctx, e, m))
	}
	l := s.ledger
	what, entry, c := l.arrive(m.Service1, time.Now())
	if what == claimAsk {
		outcome, err := storeLate(ctx, e, m)
		if err != nil || outcome != OutcomeUnknown {
			if outcome == OutcomeRepeat {
				l.answered()
			}
			return outcome, err
		}
		if !l.recall(m.Service1) {
			return OutcomeUnknown, nil
		}
		what, entry, c = l.arrive(m.Service1, time.Now())
	}
	switch what {
	case claimRepeat:
		return OutcomeRepeat, nil
	case claimNever, claimAsk:
		return OutcomeUnknown, nil
	case claimStore:
		_, span := e.tel.Tracer.Start(ctx, "INSERT messages", trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(
				semconv.DBSystemNameKey.String(e.store.System()),
				semconv.DBOperationName("INSERT"),
				semconv.DBCollectionName("messages")))
		e.committer.add(insert{message: m, span: span, settle: func(err error) { s.sayLost(l.settle(entry, m, err)) }})
	case claimWait:
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the commit: %w", ctx.Err())
	}
	switch {
	case errors.Is(c.err, ErrSessionEnded):
		return repeated(e)(storeLate(ctx, e, m))
	case c.err != nil:
		return "", c.err
	case what == claimStore:
		return OutcomeStored, nil
	}
	l.answered()
	return OutcomeRepeat, nil
}

// storeLate decides on a message that no session under way waits for. The
// database is asked without a lock first: most are repeats, or a stranger's.
func storeLate(ctx context.Context, e *engine, m message.Message) (Outcome, error) {
	select {
	case e.late <- struct{}{}:
		defer func() { <-e.late }()
	case <-ctx.Done():
		return "", fmt.Errorf("waiting for the database: %w", ctx.Err())
	}
	outcome, err := StoreLate(ctx, e.store, m)
	if err == nil && outcome == OutcomeStored {
		e.meters.late.Inc()
		e.log.Debug().Int64("session_id", m.SessionID).Stringer("key", m.Key()).Msg("late message stored")
	}
	return outcome, err
}

// repeated counts a repeat of a message of a session that has ended.
func repeated(e *engine) func(Outcome, error) (Outcome, error) {
	return func(outcome Outcome, err error) (Outcome, error) {
		if outcome == OutcomeRepeat {
			e.meters.duplicates.Inc()
		}
		return outcome, err
	}
}

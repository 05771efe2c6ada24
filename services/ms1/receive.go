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

// maxLate is the number of messages that are looked up in the database at once.
// Unknown messages must not take the connections that commits need.
const maxLate = 3

// errRecovering is the error of a message that arrives before the interrupted
// sessions are closed: in the database its session would still be open.
var errRecovering = errors.New("interrupted sessions are not closed yet")

func messageAttributes(m message.Message) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.Int64("tricycle.session_id", m.SessionID),
		attribute.String("tricycle.service1_timestamp", m.Service1.String()),
	}
}

// receive stores a returned message, which has all four stamps. After an error
// the outcome is unknown and the caller should retry.
func receive(ctx context.Context, e *engine, m message.Message) (Outcome, error) {
	e.mu.Lock()
	s, recovered, newest := e.current, e.recovered, e.newest
	live := s != nil && s.row.ID == m.SessionID && s.state != Idle
	e.mu.Unlock()
	if !live {
		switch {
		case !recovered:
			return "", errRecovering
		case m.SessionID > newest:
			return OutcomeUnknown, nil
		}
		return e.repeated(storeLate(ctx, e, m))
	}
	l := s.ledger
	verdict, entry, c := l.arrive(m.Service1, time.Now())
	if verdict == verdictAsk {
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
		verdict, entry, c = l.arrive(m.Service1, time.Now())
	}
	switch verdict {
	case verdictRepeat:
		return OutcomeRepeat, nil
	case verdictNever, verdictAsk:
		return OutcomeUnknown, nil
	case verdictStore:
		_, span := e.tel.Tracer.Start(ctx, "INSERT messages", trace.WithSpanKind(trace.SpanKindClient),
			trace.WithAttributes(
				semconv.DBSystemNameKey.String(e.store.System()),
				semconv.DBOperationName("INSERT"),
				semconv.DBCollectionName("messages")))
		e.committer.add(insert{message: m, span: span, settle: func(err error) { s.logLost(l.settle(entry, m, err)) }})
	case verdictWait:
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return "", fmt.Errorf("wait for commit: %w", ctx.Err())
	}
	switch {
	case errors.Is(c.err, ErrSessionEnded):
		return e.repeated(storeLate(ctx, e, m))
	case c.err != nil:
		return "", c.err
	case verdict == verdictStore:
		return OutcomeStored, nil
	}
	l.answered()
	return OutcomeRepeat, nil
}

// storeLate decides on a message that no running session waits for. It first
// reads without a lock: most such messages are repeats or unknown.
func storeLate(ctx context.Context, e *engine, m message.Message) (Outcome, error) {
	select {
	case e.late <- struct{}{}:
		defer func() { <-e.late }()
	case <-ctx.Done():
		return "", fmt.Errorf("wait for database: %w", ctx.Err())
	}
	outcome, err := StoreLate(ctx, e.store, m)
	if err == nil && outcome == OutcomeStored {
		e.meters.late.Inc()
		e.log.Debug().Int64("session_id", m.SessionID).Stringer("key", m.Key()).Msg("late message stored")
	}
	return outcome, err
}

// repeated returns its arguments and counts a repeat.
func (e *engine) repeated(outcome Outcome, err error) (Outcome, error) {
	if outcome == OutcomeRepeat {
		e.meters.duplicates.Inc()
	}
	return outcome, err
}

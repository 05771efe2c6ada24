package ms1

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// BenchmarkLedger is the account of one message: created, sent, returned,
// stored.
func BenchmarkLedger(b *testing.B) {
	l := newBook(64)
	l.newSpan = func(message.Message) trace.Span { return noop.Span{} }
	b.ReportAllocs()
	for b.Loop() {
		l.add(0, l.now)
		e, connection := l.next(0)
		l.written(e, connection, nil, l.now)
		if got, _, _ := l.arrive(e.message.Service1, l.now); got != verdictStore {
			b.Fatalf("got verdict %d, want %d", got, verdictStore)
		}
		l.settle(e, e.message, nil)
	}
}

// instantStore commits at once.
type instantStore struct {
	Store
	rows, commits int
}

func (s *instantStore) Insert(_ context.Context, _ int64, batch []message.Message) error {
	s.rows += len(batch)
	s.commits++
	return nil
}

// BenchmarkCommitGrouping measures the time from a row to the outcome of its
// commit. The name is the number of rows of a request.
func BenchmarkCommitGrouping(b *testing.B) {
	for name, rows := range map[string]int{"1 row": 1, "64 rows": 64} {
		b.Run(name, func(b *testing.B) {
			store, settled := &instantStore{}, 0
			c := newCommitter(store, func(batch []insert, _ error) { settled += len(batch) })
			request := make([]insert, rows)
			for i := range request {
				request[i] = insert{message: message.Message{SessionID: 1, Service1: firstStamp}, span: noop.Span{}}
			}
			b.ReportAllocs()
			for b.Loop() {
				c.add(request)
			}
			if settled != store.rows {
				b.Errorf("%d of %d rows are settled", settled, store.rows)
			}
			b.ReportMetric(float64(store.rows)/float64(store.commits), "rows/commit")
		})
	}
}

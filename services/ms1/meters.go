package ms1

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// meters are the metrics of MS1.
type meters struct {
	generated  prometheus.Counter
	stored     prometheus.Counter
	late       prometheus.Counter
	resent     prometheus.Counter
	duplicates prometheus.Counter
	givenUp    prometheus.Counter
	requests   *prometheus.CounterVec
	answered   prometheus.Counter // requests with code 200
	exemplary  atomic.Int64       // end of the last message that became an exemplar, in Unix microseconds

	toMS2, toMS3, toMS1, round, commit prometheus.Observer // hops
}

// exemplarMicroseconds is the least time between two exemplars, which cost more
// than other observations.
const exemplarMicroseconds = 100_000

func newMeters(registry prometheus.Registerer, e *engine) *meters {
	create := promauto.With(registry)
	m := &meters{
		generated:  telemetry.Counter(registry, "tricycle_messages_generated_total", "Messages generated."),
		stored:     telemetry.Counter(registry, "tricycle_messages_stored_total", "Messages whose row was committed during their session."),
		late:       telemetry.Counter(registry, "tricycle_messages_late_total", "Messages whose row was committed after their session had ended."),
		resent:     telemetry.Counter(registry, "tricycle_messages_resent_total", "Sends of a message beyond its first."),
		duplicates: telemetry.Counter(registry, "tricycle_messages_duplicate_total", "Answers 200 of /store that added no row."),
		givenUp:    telemetry.Counter(registry, "tricycle_messages_given_up_total", "Messages that did not return in time. Some may be stored later."),
		requests: telemetry.Counters(registry, "tricycle_store_requests_total",
			"Answers of /store by HTTP status code, without refused headers (401, 403, 415, 421); a request of several messages counts once per message.",
			"code", "200", "400", "404", "408", "413", "503"),
	}
	m.answered = m.requests.WithLabelValues("200")
	hops := create.NewHistogramVec(prometheus.HistogramOpts{
		Name: "tricycle_hop_seconds", Help: "Time between two stamps of a stored message, or from the last one to its commit, by hop.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 14), // 0.1 ms to 15 s
	}, []string{"hop"})
	m.toMS2, m.toMS3 = hops.WithLabelValues("ms1_to_ms2"), hops.WithLabelValues("ms2_to_ms3")
	m.toMS1, m.round = hops.WithLabelValues("ms3_to_ms1"), hops.WithLabelValues("round")
	m.commit = hops.WithLabelValues("commit")
	create.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tricycle_messages_under_way", Help: "Messages that were generated and neither stored nor given up.",
	}, func() float64 {
		if l := e.ledger(); l != nil {
			return float64(l.account().busy)
		}
		return 0
	})
	return m
}

// count counts a refused message or request of /store.
func (m *meters) count(status int) {
	m.requests.WithLabelValues(strconv.Itoa(status)).Inc()
}

// observe counts the hops of a stored message and the time of its commit. A
// message with a trace may become an exemplar; span is nil if it has none.
func (m *meters) observe(stored message.Message, hops message.Hops, commit time.Duration, span trace.Span) {
	var exemplar prometheus.Labels
	last := m.exemplary.Load()
	if span != nil && span.SpanContext().IsSampled() && int64(stored.End) >= last+exemplarMicroseconds &&
		m.exemplary.CompareAndSwap(last, int64(stored.End)) {
		exemplar = prometheus.Labels{"trace_id": span.SpanContext().TraceID().String()}
	}
	observe := func(o prometheus.Observer, d time.Duration) {
		if exemplar == nil {
			o.Observe(d.Seconds())
		} else {
			o.(prometheus.ExemplarObserver).ObserveWithExemplar(d.Seconds(), exemplar)
		}
	}
	observe(m.toMS2, hops.ToMS2)
	observe(m.toMS3, hops.ToMS3)
	observe(m.toMS1, hops.ToMS1)
	observe(m.round, hops.Round)
	observe(m.commit, commit)
}

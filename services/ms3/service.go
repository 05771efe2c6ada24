// Package ms3 implements the third service of the cycle: it takes messages from
// the Kafka topic, sets service3_timestamp and posts them to MS1.
//
//	Kafka ─▶ reader, a member of the group ─▶ messages that wait ────▶ POST /store
//	  ▲                                         │
//	  └──────── offsets, in order ◀─────────────┘ done: stored, or a dead letter
//
// An offset is committed only when its record, and every record fetched before
// it from the same partition, is done. A record is done when MS1 has stored its
// message. Until then the message is posted again, unless it can never be
// stored: then the record goes to the dead-letter topic, so it does not block
// its partition.
//
// A message that waits alone has a request of its own. Where several wait, they
// go together as application/x-ndjson, and MS1 answers each in a line.
//
// After a crash, or a rebalance of the group, records are fetched and posted
// again. MS1 recognises duplicates by the message's key.
package ms3

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// Service is MS3.
type Service struct {
	cluster  *topic.Cluster
	client   *storeClient
	consumer *consumer
	server   *httpserver.Server
}

// Program returns the command of the service.
func Program() program.Program[Config] {
	return program.ForService("ms3", "takes messages from Kafka and posts them to MS1", Defaults(), Config.serves, New)
}

func (c Config) serves() program.Served {
	// MS1 stops first, and drains through MS3: its absence is no reason to
	// restart this.
	return program.Served{Endpoint: c.Endpoint, Ready: "/readyz?exclude=ms1", Observability: c.Observability}
}

// New returns the service, which listens but does not serve before
// [Service.Run]. It fails if it cannot listen or use a file of its configuration.
func New(c Config, log zerolog.Logger, t *telemetry.Telemetry) (*Service, error) {
	if err := c.Kafka.CheckFiles(); err != nil {
		return nil, err
	}
	client, err := newStoreClient(c)
	if err != nil {
		return nil, err
	}
	cluster := topic.NewCluster(c.Kafka, "tricycle-ms3", log)
	s := &Service{cluster: cluster, client: client, consumer: newConsumer(c, cluster, client, t, log)}
	routes := httpserver.Health(log, t.Metrics,
		httpserver.Check{Name: "kafka", Probe: s.consumer.ready},
		httpserver.Check{Name: "ms1", Probe: client.ready},
	)
	if s.server, err = httpserver.Listen(c.Listen, c.TLS, routes.Handler(append([]string{c.Listen}, c.AllowedHosts...)...), log); err != nil {
		return nil, fmt.Errorf("listen for health checks: %w", err)
	}
	return s, nil
}

// Address returns the address that the service listens on, with the real port.
func (s *Service) Address() string { return s.server.Address() }

// Run serves until ctx is cancelled. Then it stops fetching, gives requests in
// flight two seconds, commits the offsets of done records, leaves the group and
// returns within five seconds. It returns an error only if it cannot serve.
func (s *Service) Run(ctx context.Context) error {
	defer s.client.http.CloseIdleConnections()
	return lifecycle.Run(ctx,
		lifecycle.Part{Name: "kafka", Run: s.cluster.Run},
		lifecycle.Part{Name: "http", Run: s.server.Run},
		lifecycle.Part{Name: "consumer", Run: s.consumer.run},
	)
}

// metrics are the metrics of MS3.
type metrics struct {
	fetched, stored, retries, reopened, dropped prometheus.Counter
	dead                                        *prometheus.CounterVec
	storeSeconds                                prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer, o *offsets) *metrics {
	create := promauto.With(registry)
	create.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tricycle_ms3_uncommitted_weight", Help: "Records fetched and not yet committable; each counts once per 4 KiB begun.",
	}, func() float64 { return float64(len(o.room)) })
	return &metrics{
		fetched:  telemetry.Counter(registry, "tricycle_ms3_records_fetched_total", "Records fetched from the topic, duplicates included."),
		stored:   telemetry.Counter(registry, "tricycle_ms3_messages_stored_total", "Messages that MS1 has stored."),
		retries:  telemetry.Counter(registry, "tricycle_ms3_store_retries_total", "Requests to MS1 that failed and were retried."),
		reopened: telemetry.Counter(registry, "tricycle_ms3_reader_reopened_total", "Stalled readers that were replaced."),
		dropped: telemetry.Counter(registry, "tricycle_ms3_dead_letters_dropped_total",
			"Records that can never be stored and that the dead-letter topic refused; the log has their offsets."),
		dead: telemetry.Counters(registry, "tricycle_ms3_dead_letters_total",
			"Records that can never be stored, by reason: malformed or refused.", "reason", "malformed", "refused"),
		storeSeconds: create.NewHistogram(prometheus.HistogramOpts{
			Name: "tricycle_ms3_store_duration_seconds", Help: "Duration of a request to MS1.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
	}
}

// Package ms2 implements the second service of the cycle: it receives messages
// from MS1 over a WebSocket, sets service2_timestamp and writes them to Kafka.
//
//	GET /ws ─▶ peer, one per connection ─▶ queue, 4,096 messages ─▶ few large requests ─▶ Kafka
//
// MS2 sends no acknowledgements: only the commit of MS1's own /store acknowledges
// a message. MS2 may therefore lose everything it holds, and MS1 resends it. It
// only has to fail fast. It closes its connections when it stops (1001), or when
// Kafka has accepted nothing for ten seconds (1013, and it drops the queue). While
// Kafka is unavailable, it refuses new connections. If Kafka is merely slow, the
// queue fills, the peers stop reading, and TCP passes the back-pressure to MS1.
//
// There are at most 64 connections. Each uses a bounded amount of memory, every
// write has a time limit, and six seconds of silence close a connection.
package ms2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxPeers is the limit of WebSocket connections; MS1 needs one. They use
	// about 4 MB. A further one replaces the oldest that has not sent a
	// message, and is refused if every one has.
	maxPeers = 64
	// readBuffer is room in bytes for the frames that MS1 writes at once: 64 with
	// a message of some 150 bytes each.
	readBuffer = 16 << 10
	// drainTime is how long the queue may be written to Kafka after the signal
	// to stop. The shutdown takes at most five seconds.
	drainTime = 4 * time.Second
)

// Service is MS2.
type Service struct {
	log       zerolog.Logger
	telemetry *telemetry.Telemetry
	metrics   *metrics
	topic     string
	spanName  string
	cluster   *topic.Cluster
	queue     *queue
	server    *httpserver.Server
	upgrader  websocket.Upgrader
	ping      time.Duration // between two pings
	drain     time.Duration // for the queue
	opened    zerolog.Logger
	ended     zerolog.Logger
	refused   zerolog.Logger // handshakes
	rejected  zerolog.Logger // frames that are no message

	// open is the context of the connections. It is cancelled to close them,
	// with a closure as its cause, and replaced unless the service stops.
	mu       sync.Mutex
	open     context.Context
	close    context.CancelCauseFunc
	stopping bool
	peers    sync.WaitGroup
	seats    []*seat // of the connections, oldest first
}

// seat is the place of a connection within the limit.
type seat struct {
	sent   atomic.Bool     // a message
	ctx    context.Context // ended: the connection is being closed
	cancel context.CancelCauseFunc
}

// Program returns the command of the service.
func Program() program.Program[Config] {
	return program.ForService("ms2", "takes messages from MS1 over a WebSocket and hands them to MS3 through Kafka", Defaults(), Config.serves, New)
}

func (c Config) serves() program.Served {
	return program.Served{Endpoint: c.Endpoint, Ready: "/readyz", Observability: c.Observability}
}

// New returns the service. It listens, and serves in [Service.Run]. It fails if
// it cannot listen or use a file of its configuration.
func New(c Config, log zerolog.Logger, t *telemetry.Telemetry) (*Service, error) {
	token := credentials.NewToken("token_file", c.TokenFile)
	_, err := token.Value()
	if err := errors.Join(err, c.Kafka.CheckFiles()); err != nil {
		return nil, err
	}
	s := &Service{
		log: log, telemetry: t, metrics: newMetrics(t.Metrics), topic: c.Kafka.Topic, spanName: "receive " + c.Kafka.Topic, ping: pingInterval, drain: drainTime,
		cluster: topic.NewCluster(c.Kafka, "tricycle-ms2", log),
		opened:  logging.Limit(log), ended: logging.Limit(log), refused: logging.Limit(log), rejected: logging.Limit(log),
	}
	s.queue = newQueue(s.cluster, c.Kafka.Topic, s.metrics, log, s.tryAgainLater)
	promauto.With(t.Metrics).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tricycle_ms2_queue_messages", Help: "Messages that were read and not yet acknowledged by Kafka.",
	}, func() float64 { return float64(len(s.queue.slots)) })
	s.open, s.close = context.WithCancelCause(context.Background())
	s.upgrader = websocket.Upgrader{ // without CheckOrigin, it refuses other origins
		HandshakeTimeout: handshakeTimeout,
		ReadBufferSize:   readBuffer,
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			w.Header().Set("Sec-WebSocket-Version", "13") // for a client of another version; RFC 6455, 4.4
			httpserver.Problem{Status: status, Detail: reason.Error()}.Write(w)
		},
	}
	routes := httpserver.Health(log, t.Metrics, httpserver.Check{Name: "kafka", Probe: s.ready})
	routes["/ws"] = map[string]http.HandlerFunc{http.MethodGet: httpserver.WithToken(token, log, s.serveWebSocket)}
	if s.server, err = httpserver.Listen(c.Listen, c.TLS, routes.Handler(append([]string{c.Listen}, c.AllowedHosts...)...), log); err != nil {
		return nil, fmt.Errorf("listen for MS1: %w", err)
	}
	return s, nil
}

// Address returns the address that the service listens on, with the real port.
func (s *Service) Address() string { return s.server.Address() }

// Run serves until ctx is cancelled. Then it stops reading, closes the
// connections with 1001 and writes its queue to Kafka for at most four seconds.
// It returns within five, with an error only if it cannot serve.
func (s *Service) Run(ctx context.Context) error {
	drain, cancel := lifecycle.Grace(ctx, s.drain)
	defer cancel()
	return lifecycle.Run(ctx,
		lifecycle.Part{Name: "kafka", Run: s.cluster.Run},
		lifecycle.Part{Name: "queue", Run: func(ctx context.Context) error { s.queue.run(ctx, drain); return nil }},
		lifecycle.Part{Name: "http", Run: s.server.Run},
		lifecycle.Part{Name: "connections", Run: s.runPeers},
	)
}

// runPeers closes the connections when ctx ends, and returns when nothing more
// is read from them.
func (s *Service) runPeers(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.stopping = true
	s.close(closure{websocket.CloseGoingAway, "MS2 is stopping"})
	s.mu.Unlock()
	s.peers.Wait()
	return nil
}

// tryAgainLater closes every connection because Kafka accepts nothing.
func (s *Service) tryAgainLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close(closure{websocket.CloseTryAgainLater, "kafka accepts no messages; resend everything later"})
	s.open, s.close = context.WithCancelCause(context.Background())
}

// ready returns nil if Kafka accepts messages.
func (s *Service) ready(ctx context.Context) error {
	return cmp.Or(s.cluster.Ready(ctx), s.queue.ready())
}

func (s *Service) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	if s.ready(r.Context()) != nil {
		unavailable(w, "kafka: not ready")
		return
	}
	place, err := s.sit()
	if err != nil {
		unavailable(w, err.Error())
		s.refused.Warn().Err(err).Str("remote", r.RemoteAddr).Msg("websocket handshake refused")
		return
	}
	defer s.leave(place)
	ws, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		s.refused.Warn().Err(err).Str("remote", r.RemoteAddr).Msg("websocket handshake refused")
		return
	}
	s.metrics.connections.Inc()
	defer s.metrics.connections.Dec()
	s.opened.Info().Str("remote", r.RemoteAddr).Msg("connection opened")
	err = s.servePeer(place, ws)
	s.ended.Info().Str("remote", r.RemoteAddr).AnErr("reason", err).Msg("connection closed")
}

func unavailable(w http.ResponseWriter, detail string) {
	w.Header().Set("Retry-After", "1")
	httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: detail}.Write(w)
}

// sit returns a seat for a connection, whose context ends with those of the
// others. The error is that all seats are taken, or that the service stops.
func (s *Service) sit() (*seat, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, errors.New("MS2 is stopping")
	}
	taken := slices.DeleteFunc(slices.Clone(s.seats), func(p *seat) bool { return p.ctx.Err() != nil })
	if len(taken) == maxPeers || len(s.seats) == 2*maxPeers {
		i := slices.IndexFunc(taken, func(p *seat) bool { return !p.sent.Load() })
		if i < 0 || len(s.seats) == 2*maxPeers {
			return nil, fmt.Errorf("all %d connections are in use", maxPeers)
		}
		taken[i].cancel(closure{websocket.CloseTryAgainLater, "too many connections; this one has sent nothing"})
	}
	p := &seat{}
	p.ctx, p.cancel = context.WithCancelCause(s.open)
	s.seats = append(s.seats, p)
	s.peers.Add(1)
	return p, nil
}

func (s *Service) leave(p *seat) {
	defer s.peers.Done()
	p.cancel(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seats = slices.DeleteFunc(s.seats, func(q *seat) bool { return q == p })
}

// metrics are the metrics of MS2.
type metrics struct {
	received, produced, dropped, retries prometheus.Counter
	connections                          prometheus.Gauge
	rejected                             *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	return &metrics{
		received: telemetry.Counter(registry, "tricycle_ms2_messages_received_total", "Well-formed messages read from the WebSocket, including duplicates."),
		produced: telemetry.Counter(registry, "tricycle_ms2_messages_produced_total", "Messages that Kafka has acknowledged."),
		dropped:  telemetry.Counter(registry, "tricycle_ms2_messages_dropped_total", "Messages dropped from the queue, which MS1 resends."),
		retries:  telemetry.Counter(registry, "tricycle_ms2_produce_retries_total", "Requests to Kafka that failed and were retried."),
		connections: promauto.With(registry).NewGauge(prometheus.GaugeOpts{
			Name: "tricycle_ms2_connections", Help: "Open WebSocket connections.",
		}),
		rejected: telemetry.Counters(registry, "tricycle_ms2_frames_rejected_total",
			"Frames that are no message, by reason: binary, malformed or too_large.", "reason", "binary", "malformed", "too_large"),
	}
}

// Package ms1 is the first service and the last: it opens sessions, makes
// messages and sends them to MS2 over a WebSocket, takes them back from MS3 on
// POST /store and stores them.
//
// A session is one interaction: from an accepted GET /start until its interval
// is over or GET /stop breaks it off, and every message of it is stored or
// counted as lost. The only acknowledgement of a message is the commit of its
// row. Until that stands MS1 holds the message and sends it again, so whatever
// fails on the way round costs time, not messages; that the same message may
// come back twice is harmless, because its key has one row.
//
// The package has the rules and the HTTP API. What it talks to is behind two
// interfaces with adapters in folders named by their technology: the [Store]
// (mariadb, sqlite), and the link to MS2 (websocket).
package ms1

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/services/ms1/websocket"
)

// Service is a running MS1.
type Service struct {
	config    Config
	log       zerolog.Logger
	refused   zerolog.Logger // requests that change nothing; at most one a second
	telemetry *telemetry.Telemetry
	now       func() time.Time
	engine    *engine
	server    *httpserver.Server
}

// Run runs MS1 until ctx is cancelled, with its log also on the console and
// with the store that open returns. It calls listening, unless that is nil,
// when the service listens. The checks are as in [New].
func Run(ctx context.Context, c Config, console io.Writer, open func(zerolog.Logger) (Store, error), listening func(*Service), checks ...httpserver.Check) error {
	return program.Serve(ctx, "ms1", c.Logging, c.Tracing, console, func(log zerolog.Logger, tel *telemetry.Telemetry) (*Service, error) {
		store, err := open(log)
		if err != nil {
			return nil, err
		}
		s, err := New(c, store, websocket.New(c.MS2.URL, log), log, tel, checks...)
		if err != nil {
			stopped, stop := context.WithCancel(ctx)
			stop()
			return nil, errors.Join(err, store.Run(stopped)) // which only closes it
		}
		return s, nil
	}, listening)
}

// New returns an MS1 that stores in the store and sends on the link, and
// listens on its address already. It must be run, or closed. The checks are
// for /readyz alone, beside those that /start makes too.
func New(c Config, store Store, l link, log zerolog.Logger, tel *telemetry.Telemetry, checks ...httpserver.Check) (*Service, error) {
	s := &Service{config: c, log: log, refused: logging.Limit(log), telemetry: tel, now: time.Now}
	s.engine = newEngine(c.Interaction, store, l, s.now, log, tel)
	server, err := httpserver.Listen(c.Listen, s.handler(checks), log)
	if err != nil {
		return nil, err
	}
	s.server = server
	return s, nil
}

// Address returns the address of the HTTP API, with the real port.
func (s *Service) Address() string { return s.server.Address() }

// Close releases the listener of a service that will not be run.
func (s *Service) Close() error { return s.server.Close() }

// Run serves until ctx is cancelled. Then the session under way drains, while
// everything that it drains through still works, and its summary is said.
func (s *Service) Run(ctx context.Context) error {
	return lifecycle.Run(ctx,
		lifecycle.Part{Name: "database", Run: s.engine.store.Run},
		lifecycle.Part{Name: "link to ms2", Run: func(ctx context.Context) error { return s.engine.link.Run(ctx, s.engine.connected) }},
		lifecycle.Part{Name: "http", Run: s.server.Run},
		lifecycle.Part{Name: "sessions", Run: s.engine.run},
	)
}

// Status returns what GET /status answers.
func (s *Service) Status(ctx context.Context) Status { return s.engine.status(ctx) }

// Session returns what [Service.Status] does for the session with this number,
// also when another one has begun since; then without what only its process
// knows. Its error is that of the store.
func (s *Service) Session(ctx context.Context, id int64) (Status, error) {
	return s.engine.namedStatus(ctx, id)
}

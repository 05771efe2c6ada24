// Package ms1 implements the first and last service of the cycle: it sends
// messages to MS2, receives them from MS3 and stores them. Messages leave over a
// WebSocket and return on POST /store.
//
// A session is one interaction. It begins with an accepted GET /start and ends
// after its interval or with GET /stop, and each of its messages is stored or
// counted as lost. The only acknowledgement of a message is the commit of its row.
// MS1 holds and resends a message until then, or until it gives the message up. A
// shorter failure elsewhere costs time and no messages. A message that returns twice
// is harmless, because its key has one row.
//
// The package contains the rules and the HTTP API. Two interfaces separate it from
// its adapters, which are named for their technology: the [Store] (mariadb,
// sqlite), and the connection to MS2 (websocket).
package ms1

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
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
	refused   zerolog.Logger // requests that change nothing; these three write at most one a second
	rejected  zerolog.Logger // messages that cannot be stored
	unstarted zerolog.Logger // why a session was not started
	telemetry *telemetry.Telemetry
	engine    *engine
	history   *history
	events    *events
	server    *httpserver.Server
}

// Run runs MS1 until ctx is cancelled, with its log also on the console and
// with the store that open returns. It calls listening, unless that is nil,
// when the service listens. The checks are as in [New].
func Run(ctx context.Context, c Config, console io.Writer, open func(zerolog.Logger) (Store, error), listening func(*Service), checks ...httpserver.Check) error {
	return program.Serve(ctx, "ms1", c, c.Observability, console, func(c Config, log zerolog.Logger, tel *telemetry.Telemetry) (*Service, error) {
		store, err := open(log)
		if err != nil {
			return nil, err
		}
		s, err := New(c, store, websocket.New(c.MS2.URL, c.MS2.Access, log), log, tel, checks...)
		if err != nil {
			stopped, stop := context.WithCancel(ctx)
			stop()
			return nil, errors.Join(err, store.Run(stopped)) // which only closes it
		}
		return s, nil
	}, listening)
}

// New returns an MS1 that stores in the store, sends over the transport and
// listens on its address already. It must be run. The checks are for /readyz
// alone, in addition to those of /start.
func New(c Config, store Store, t transport, log zerolog.Logger, tel *telemetry.Telemetry, checks ...httpserver.Check) (*Service, error) {
	token := credentials.NewToken("token_file", c.TokenFile)
	_, err := token.Value()
	if err := errors.Join(err, c.MS2.CheckFiles("ms2")); err != nil {
		return nil, err
	}
	s := &Service{config: c, log: log, refused: logging.Limit(log), rejected: logging.Limit(log), unstarted: logging.Limit(log), telemetry: tel}
	s.engine = newEngine(c.Interaction, store, t, time.Now, log, tel)
	checks = append(s.engine.checks(), checks...)
	s.history, s.events = newHistory(s.engine), newEvents(s.engine, checks)
	server, err := httpserver.Listen(c.Listen, c.TLS, s.handler(token, checks), log)
	if err != nil {
		return nil, err
	}
	s.server = server
	return s, nil
}

// Address returns the address of the HTTP API, with the real port.
func (s *Service) Address() string { return s.server.Address() }

// Run serves until ctx is cancelled. Then the current session drains, while
// everything that it needs still works, and its summary is logged.
func (s *Service) Run(ctx context.Context) error {
	return lifecycle.Run(ctx,
		lifecycle.Part{Name: "database", Run: s.engine.store.Run},
		lifecycle.Part{Name: "connection to ms2", Run: func(ctx context.Context) error { return s.engine.transport.Run(ctx, s.engine.connected) }},
		lifecycle.Part{Name: "http", Run: s.server.Run},
		lifecycle.Part{Name: "events", Run: s.events.run}, // until the session has drained
		lifecycle.Part{Name: "sessions", Run: s.engine.run},
	)
}

// Status returns the answer to GET /status.
func (s *Service) Status(ctx context.Context) Status { return s.engine.status(ctx) }

// Session returns the [Service.Status] of the session with this number. If
// another one has begun since, it has the columns of its row only. Its error is
// that of the store.
func (s *Service) Session(ctx context.Context, id int64) (Status, error) {
	if now := s.engine.status(ctx); now.Session != nil && now.Session.ID == id {
		return now, nil
	}
	row, err := s.engine.sessionRow(ctx, id)
	return Status{State: Idle, Session: &Summary{Session: row}}, err
}

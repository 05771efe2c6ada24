package ms1

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// State is what MS1 is doing.
type State string

// The states of MS1. A session that was accepted but has no number yet counts
// as running.
const (
	Idle     State = "idle"
	Running  State = "running"  // it generates messages
	Draining State = "draining" // it waits for the messages in flight
)

const (
	// sweepEvery is the time between two checks of deadlines.
	sweepEvery = 50 * time.Millisecond
	// beginTimeout bounds the transactions before the answer to /start.
	beginTimeout = 3 * time.Second
	// settleTimeout is how long a drained session waits for running commits.
	settleTimeout = time.Second
	// recordTimeout bounds the first attempt to write a session's figures, or to
	// close the sessions of a crash. It doubles with each attempt, up to
	// longestRecord, since counting the rows of a day takes minutes. recordRetry
	// is the pause between two attempts.
	recordTimeout = 2 * time.Second
	longestRecord = 5 * time.Minute
	recordRetry   = time.Second
	// shutdownTimeout bounds the end of a session when the program stops: the
	// drain, the running commits and one attempt to write the figures.
	shutdownTimeout = 5500 * time.Millisecond
)

var producer = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindProducer)}

// transport carries encoded messages to MS2.
type transport interface {
	// Run keeps a connection until ctx is cancelled. It calls connected with
	// the number of each new connection; numbers increase.
	Run(ctx context.Context, connected func(connection uint64)) error
	// Send writes frames and returns the number of the connection that took
	// them. It blocks while the peer does not read, and fails if there is no
	// connection or it breaks; then any of the frames may have been taken. It
	// does not keep the frames.
	Send(frames ...[]byte) (connection uint64, err error)
	// Ready returns nil while there is a connection.
	Ready(ctx context.Context) error
}

// engine runs sessions, one at a time.
type engine struct {
	config    InteractionConfig
	store     Store
	transport transport
	now       func() time.Time // for stamps; deadlines use the monotonic clock
	log       zerolog.Logger
	tel       *telemetry.Telemetry
	meters    *meters

	sender    sender
	committer *committer
	runners   sync.WaitGroup
	running   context.Context // ends when the program stops
	quit      func()          // ends it
	quitAt    time.Time       // when that was; set before
	late      chan struct{}   // has a token for each lookup of a late message

	mu         sync.Mutex
	starting   chan struct{} // closed when the current /start has its outcome
	current    *runner       // of the current or the last session
	newest     int64         // no session has a higher number
	fault      error         // of the last session whose figures are not recorded or not right
	connection uint64        // the newest of the transport
	recovered  bool          // no session of a crashed program is open in the database
}

func newEngine(c InteractionConfig, store Store, t transport, now func() time.Time, log zerolog.Logger, tel *telemetry.Telemetry) *engine {
	e := &engine{
		config: c, store: store, transport: t, now: now, log: log, tel: tel,
		committer: newCommitter(store, settled),
		late:      make(chan struct{}, maxLate),
	}
	e.sender = sender{engine: e, filled: make(chan struct{}, 1)}
	e.running, e.quit = context.WithCancel(context.Background())
	e.meters = newMeters(tel.Metrics, e)
	return e
}

// run serves sessions until ctx is cancelled, then drains the current one. It
// returns an error if a session's figures were not recorded or rows are missing.
func (e *engine) run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { e.committer.run(inner) })
	wg.Go(func() { e.sender.run(inner) })
	wg.Go(func() { e.recover(ctx) })

	<-ctx.Done()
	e.mu.Lock()
	e.quitAt = time.Now()
	e.quit()
	starting := e.starting
	e.mu.Unlock()
	if starting != nil {
		<-starting
	}
	e.mu.Lock()
	if s := e.current; s != nil && s.state != Idle {
		s.end(Shutdown)
	}
	e.mu.Unlock()
	e.runners.Wait()
	cancel()
	wg.Wait()
	return e.fault
}

func (e *engine) stopping() bool { return e.running.Err() != nil }

// recover closes the sessions that a crash left open, once the store is ready.
func (e *engine) recover(ctx context.Context) {
	for timeout := recordTimeout; ctx.Err() == nil; {
		if e.store.Ready(ctx) == nil {
			err := e.recoverOnce(ctx, timeout)
			if err == nil {
				return
			}
			e.log.Warn().Err(err).Msg("interrupted sessions not closed")
			timeout = min(2*timeout, longestRecord)
		}
		retry.Pause(ctx, sweepEvery)
	}
}

func (e *engine) recoverOnce(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := e.closeInterrupted(ctx); err != nil {
		return err
	}
	last, err := e.store.Sessions(ctx, 0, 1)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, row := range last {
		e.current, e.newest = &runner{engine: e, row: row, state: Idle, recorded: true}, row.ID
	}
	e.recovered = true
	return nil
}

// closeInterrupted ends the sessions that are open in the database. It is only
// called while no session runs: by the recovery, and then by /start.
func (e *engine) closeInterrupted(ctx context.Context) error {
	closed, err := e.store.CloseInterrupted(ctx, message.StampOf(e.now()))
	for _, row := range closed {
		e.log.Warn().Int64("session_id", row.ID).Int64("stored", *row.Stored).Msg("session was interrupted")
	}
	return err
}

// checks returns the checks of what a session needs.
func (e *engine) checks() []httpserver.Check {
	return []httpserver.Check{{Name: "database", Probe: e.databaseReady}, {Name: "ms2", Probe: e.transport.Ready}}
}

func (e *engine) databaseReady(ctx context.Context) error {
	if err := e.store.Ready(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.recovered {
		return errRecovering
	}
	if s := e.current; s != nil && s.state != Idle {
		return s.unwritable
	}
	return nil
}

// start begins a session and returns its number. Its errors are
// *notReadyError and *busyError. Once it has begun the session no longer
// depends on ctx. It calls accepted before the session does anything.
func (e *engine) start(ctx context.Context, intervalSeconds, inFlight int, accepted func()) (id int64, err error) {
	e.mu.Lock()
	switch s := e.current; {
	case e.stopping():
		err = &notReadyError{map[string]error{"ms1": errStopping}}
	case e.starting != nil:
		err = &busyError{}
	case s != nil && s.state != Idle && s.fault != nil && !s.recorded:
		err = &notReadyError{map[string]error{"database": fmt.Errorf("figures of session %d are not recorded yet", s.row.ID)}}
	case s != nil && s.state != Idle:
		err = &busyError{sessionID: s.row.ID, state: s.state}
	}
	if err != nil {
		e.mu.Unlock()
		return 0, err
	}
	outcome := make(chan struct{})
	e.starting = outcome
	e.mu.Unlock()

	ctx = context.WithoutCancel(ctx) // a client that leaves does not interrupt the start
	s, err := e.begin(ctx, intervalSeconds, inFlight)

	e.mu.Lock()
	e.starting = nil
	if err == nil {
		accepted()
		e.current, e.newest = s, s.row.ID
		s.ledger.connected(e.connection)
		e.runners.Go(s.run)
	}
	e.mu.Unlock()
	close(outcome)
	if err != nil {
		return 0, err
	}
	return s.ledger.sessionID, nil
}

func (e *engine) begin(ctx context.Context, intervalSeconds, inFlight int) (*runner, error) {
	missing := httpserver.Probe(ctx, e.checks())
	maps.DeleteFunc(missing, func(_ string, err error) bool { return err == nil })
	if len(missing) > 0 {
		return nil, &notReadyError{missing}
	}
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	if err := e.closeInterrupted(ctx); err != nil {
		return nil, &notReadyError{map[string]error{"database": err}}
	}
	startedAt := message.StampOf(e.now())
	id, err := e.store.Begin(ctx, Opening{StartedAt: startedAt, IntervalSeconds: intervalSeconds, InFlight: inFlight})
	if err != nil {
		return nil, &notReadyError{map[string]error{"database": err}}
	}
	s := &runner{
		engine:   e,
		row:      Session{ID: id, StartedAt: startedAt, IntervalSeconds: intervalSeconds, InFlight: inFlight},
		interval: time.Duration(intervalSeconds) * time.Second,
		began:    time.Now(),
		state:    Running,
		ledger:   newLedger(id, startedAt, inFlight, e.config),
		stop:     make(chan EndReason, 1),
		ended:    make(chan struct{}),
	}
	s.ledger.meters, s.ledger.filled = e.meters, e.sender.filled
	s.ledger.newSpan = func(m message.Message) trace.Span {
		_, span := e.tel.StartRoot(context.Background(), m.Key(), "round", producer...)
		if span.IsRecording() {
			span.SetAttributes(messageAttributes(m)...)
		}
		return span
	}
	return s, nil
}

// ledger returns that of the current session, or of the last one if this process
// ran it, else nil.
func (e *engine) ledger() *ledger {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.current == nil {
		return nil
	}
	return e.current.ledger
}

// connected resends the messages in flight on earlier connections.
func (e *engine) connected(connection uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.connection = connection
	if e.current != nil && e.current.ledger != nil {
		e.current.ledger.connected(connection)
	}
}

// stop ends the current session and returns its summary. Its errors are errIdle,
// that of ctx, whose end does not interrupt the stop, and beside the summary the
// reason why the figures are not recorded.
func (e *engine) stop(ctx context.Context, accepted func()) (Summary, error) {
	e.mu.Lock()
	starting := e.starting
	e.mu.Unlock()
	if starting != nil {
		select {
		case <-starting:
		case <-ctx.Done():
			return Summary{}, ctx.Err()
		}
	}
	e.mu.Lock()
	s := e.current
	if s == nil || s.state == Idle {
		e.mu.Unlock()
		return Summary{}, errIdle
	}
	first := !s.asked
	s.asked = true
	e.mu.Unlock()
	if first {
		accepted()
	}
	s.end(Stopped)
	select {
	case <-s.ended:
	case <-ctx.Done():
		return Summary{}, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !s.recorded {
		return s.summary(), s.fault
	}
	return s.summary(), nil
}

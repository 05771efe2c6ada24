package ms1

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

func TestMain(m *testing.M) { servicetest.Main(m, openapitest.Complete("ms1")) }

// memoryStore is the store's contract in memory. The real adapters have the
// conformance suite; this one is for what they cannot be made to do at a
// given moment.
type memoryStore struct {
	mu        sync.Mutex
	sessions  []Session
	rows      map[message.Key]message.Message
	fault     error // of every method but Run
	batches   []int // size of each commit
	looks     int   // reads for late messages
	named     map[int64][]LostMessage
	amends    int           // transactions for late messages
	pagesLeft int           // of messages before reads fail; 0: all
	locked    bool          // CloseInterrupted waits for its context
	hold      chan struct{} // if not nil, Insert waits for it to be closed, or for its context
}

func newMemoryStore() *memoryStore {
	return &memoryStore{rows: map[message.Key]message.Message{}, named: map[int64][]LostMessage{}}
}

func (s *memoryStore) System() string { return "memory" }

func (s *memoryStore) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (s *memoryStore) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}

func (s *memoryStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = err
}

// block makes every Insert wait until release is called, or for its context.
func (s *memoryStore) block() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hold := make(chan struct{})
	s.hold = hold
	return func() { close(hold) }
}

func (s *memoryStore) count(id int64) (n int64) {
	for key := range s.rows {
		if key.SessionID == id {
			n++
		}
	}
	return n
}

func (s *memoryStore) CloseInterrupted(ctx context.Context, at message.Stamp) ([]Session, error) {
	s.mu.Lock()
	if s.locked {
		s.mu.Unlock()
		<-ctx.Done()
		return nil, errors.New("the row is locked")
	}
	defer s.mu.Unlock()
	var closed []Session
	for i := range s.sessions {
		if row := &s.sessions[i]; row.EndReason == nil && s.fault == nil {
			row.Finish(Closing{EndedAt: at, Reason: Interrupted}, s.count(row.ID))
			closed = append(closed, *row)
		}
	}
	return closed, s.fault
}

func (s *memoryStore) Begin(ctx context.Context, o Opening) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmp.Or(s.fault, ctx.Err()); err != nil {
		return 0, err
	}
	id := int64(len(s.sessions) + 1)
	s.sessions = append(s.sessions, Session{ID: id, StartedAt: o.StartedAt, IntervalSeconds: o.IntervalSeconds, InFlight: o.InFlight})
	return id, nil
}

func (s *memoryStore) Insert(ctx context.Context, id int64, batch []message.Message) error {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return errors.New("the database does not answer")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		return s.fault
	}
	if s.sessions[id-1].EndReason != nil {
		return ErrSessionEnded
	}
	s.batches = append(s.batches, len(batch))
	for _, m := range batch {
		if m.SessionID != id {
			return errors.New("a message of another session")
		}
		if _, ok := s.rows[m.Key()]; !ok {
			s.rows[m.Key()] = m
		}
	}
	return nil
}

func (s *memoryStore) End(_ context.Context, id int64, c Closing) (Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		return Session{}, s.fault
	}
	row := &s.sessions[id-1]
	if row.EndReason == nil {
		row.Finish(c, s.count(id))
	}
	if _, ok := s.named[id]; !ok {
		s.named[id] = c.Lost
	}
	return *row, nil
}

// LostMessages waits for its context if the store fails, as a real one retries.
func (s *memoryStore) LostMessages(ctx context.Context, id int64, limit int) ([]LostMessage, error) {
	if fault := s.Ready(ctx); fault != nil {
		<-ctx.Done()
		return nil, fault
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.named[id][:min(limit, len(s.named[id]))], nil
}

func (s *memoryStore) Look(_ context.Context, key message.Key) (Session, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	if s.fault != nil || key.SessionID > int64(len(s.sessions)) {
		return Session{}, false, cmp.Or(s.fault, ErrNoSession)
	}
	_, exists := s.rows[key]
	return s.sessions[key.SessionID-1], exists, nil
}

func (s *memoryStore) Stored(_ context.Context, _ int64, batch []message.Message) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	return !slices.ContainsFunc(batch, func(m message.Message) bool { return s.rows[m.Key()] == message.Message{} }), s.fault
}

func (s *memoryStore) Amend(_ context.Context, m message.Message, decide func(*Session, bool) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.amends++
	if s.fault != nil || m.SessionID > int64(len(s.sessions)) {
		return cmp.Or(s.fault, ErrNoSession)
	}
	_, exists := s.rows[m.Key()]
	if decide(&s.sessions[m.SessionID-1], exists) {
		s.rows[m.Key()] = m
	}
	return nil
}

func (s *memoryStore) Session(_ context.Context, id int64) (Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil || id > int64(len(s.sessions)) {
		return Session{}, cmp.Or(s.fault, ErrNoSession)
	}
	return s.sessions[id-1], nil
}

func (s *memoryStore) Sessions(_ context.Context, before int64, limit int) (page []Session, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, row := range slices.Backward(s.sessions) {
		if (before == 0 || row.ID < before) && len(page) < limit {
			page = append(page, row)
		}
	}
	return page, s.fault
}

func (s *memoryStore) Messages(_ context.Context, id int64, which Selection) (page []message.Message, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pagesLeft > 0 {
		if s.pagesLeft--; s.pagesLeft == 0 {
			return nil, errors.New("connection refused")
		}
	}
	for key, m := range s.rows {
		if key.SessionID == id && (which.Slowest || m.Service1 > which.After) {
			page = append(page, m)
		}
	}
	slices.SortFunc(page, func(a, b message.Message) int {
		if which.Slowest {
			return cmp.Compare(b.Hops().Round, a.Hops().Round)
		}
		return cmp.Compare(a.Service1, b.Service1)
	})
	return page[:min(which.Limit, len(page))], s.fault
}

// fakeTransport hands every frame to a function, as MS2 would read it.
type fakeTransport struct {
	mu        sync.Mutex
	number    uint64 // of the connection; 0: none
	connected func(uint64)
	sent      []message.Message
	onSend    func(m message.Message) // in a goroutine of its own
	block     chan struct{}           // if not nil, Send blocks until it is closed
}

func (l *fakeTransport) Run(ctx context.Context, connected func(uint64)) error {
	<-ctx.Done()
	return nil
}

func (l *fakeTransport) Ready(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.number == 0 {
		return errors.New("not connected")
	}
	return nil
}

func (l *fakeTransport) Send(frames ...[]byte) (connection uint64, err error) {
	for _, frame := range frames {
		if connection, err = l.send(frame); err != nil {
			return 0, err
		}
	}
	return connection, nil
}

func (l *fakeTransport) send(frame []byte) (uint64, error) {
	l.mu.Lock()
	block := l.block
	l.mu.Unlock()
	if block != nil {
		<-block
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.number == 0 {
		return 0, errors.New("not connected")
	}
	m, err := message.Decode(frame, message.AtMS2)
	if err != nil {
		return 0, err
	}
	l.sent = append(l.sent, m)
	if l.onSend != nil {
		go l.onSend(m)
	}
	return l.number, nil
}

// connect replaces the connection by one with this number; 0 breaks it.
func (l *fakeTransport) connect(number uint64) {
	l.mu.Lock()
	l.number = number
	connected := l.connected
	l.mu.Unlock()
	if number > 0 {
		connected(number)
	}
}

func (l *fakeTransport) frames() []message.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.sent)
}

// bench is an engine between fakes, inside a synctest bubble.
type bench struct {
	*engine
	t         *testing.T
	store     *memoryStore
	transport *fakeTransport
	stop      func() // SIGTERM, and wait
	ended     error  // of the engine, after stop
	wall      func() time.Time
	console   *servicetest.Console
}

// newBench starts an engine whose messages come back by themselves after
// delay; with a negative delay they never do.
func newBench(t *testing.T, config InteractionConfig, delay time.Duration) *bench {
	t.Helper()
	b := &bench{t: t, store: newMemoryStore(), transport: &fakeTransport{}, wall: time.Now, console: &servicetest.Console{}}
	log := zerolog.New(b.console)
	tel, err := telemetry.New(t.Context(), telemetry.Defaults(), "ms1", "test", log)
	servicetest.NoError(t, err)
	b.engine = newEngine(config, b.store, b.transport, func() time.Time { return b.wall() }, log, tel)
	b.transport.connected = b.engine.connected
	if delay >= 0 {
		b.transport.onSend = func(m message.Message) {
			time.Sleep(delay)
			for {
				if _, err := b.back(m); err == nil || b.engine.stopping() {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.ended = b.engine.run(ctx) }()
	b.stop = func() { cancel(); <-done }
	t.Cleanup(b.stop)
	b.transport.connect(1)
	synctest.Wait() // until it has recovered
	return b
}

// inBench runs a test with the usual configuration in a synctest bubble.
func inBench(t *testing.T, delay time.Duration, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newBench(t, usual(), delay)) })
}

// takes brings a message round and checks the outcome.
func (b *bench) takes(m message.Message, want Outcome) {
	b.t.Helper()
	if got, err := b.back(m); got != want || err != nil {
		b.t.Errorf("%s: got %q, %v, want %q", m.Key(), got, err, want)
	}
}

// wantFrames checks how many frames were sent.
func (b *bench) wantFrames(want int) {
	b.t.Helper()
	if got := len(b.transport.frames()); got != want {
		b.t.Errorf("%d frames, want %d", got, want)
	}
}

// stopSession ends the session as /stop does.
func (b *bench) stopSession() Summary {
	b.t.Helper()
	s, err := b.engine.stop(b.t.Context(), func() {})
	servicetest.NoError(b.t, err)
	return s
}

// back brings a message round, as MS3 does.
func (b *bench) back(m message.Message) (Outcome, error) {
	m.Service2, m.Service3, m.End = m.Service1+100, m.Service1+200, message.StampOf(b.wall())
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	a := &arrival{ctx: ctx, message: m}
	receive(ctx, b.engine, a)
	return a.outcome, a.err
}

func (b *bench) begin(seconds, inFlight int) int64 {
	b.t.Helper()
	id, err := b.start(b.t.Context(), seconds, inFlight, func() {})
	servicetest.NoError(b.t, err)
	return id
}

// wait sleeps, by the bubble's clock, until no session is running.
func (b *bench) wait() Summary {
	b.t.Helper()
	for range 10_000 {
		st := b.status(b.t.Context())
		if st.State == Idle {
			return *st.Session
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatal("the session does not end")
	return Summary{}
}

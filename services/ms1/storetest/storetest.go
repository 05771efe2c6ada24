// Package storetest defines the behaviour of an [ms1.Store] as tests that every
// adapter must pass.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

// Database is one database of an adapter, empty at first.
type Database struct {
	// Open returns a store on the database, as a program of its own would
	// open it. The store does not run yet.
	Open func(t *testing.T) ms1.Store
	// DB is a look past the store. Its connections honour foreign keys.
	DB *sql.DB
	// Wire returns the SQL that has a column of stamps as on the wire.
	Wire func(column string) string
}

// timeout bounds what the tests wait for; none comes near it unless it fails.
const timeout = 20 * time.Second

// t0 is when the sessions of the tests start.
const t0 = message.Stamp(1_795_601_730_123_456)

// Run runs the suite. fresh returns a database of its own for each test.
func Run(t *testing.T, fresh func(t *testing.T) Database) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, d Database)
	}{
		{"sessions are numbered upwards, across restarts and deletions", numbers},
		{"a session reads back as it was written", sessions},
		{"no session yet", noSession},
		{"a message reads back to the microsecond", exactness},
		{"the first row of a key wins", firstRowWins},
		{"a large batch is one Insert", largeBatch},
		{"nothing is added to a session that is not open", notOpen},
		{"End counts the rows, once", end},
		{"End and Insert at the same time", endDuringInsert},
		{"interrupted sessions are closed", interrupted},
		{"late messages", late},
		{"a late message a hundred times at once", lateInParallel},
		{"deleting a session deletes its messages", cascade},
		{"lost messages are named", lostMessages},
		{"sessions in pages", sessionPages},
		{"messages in pages", messagePages},
		{"the slowest messages", slowest},
		{"a database of the first version", firstVersion},
		{"one program per database", oneProgram},
		{"a context that has ended", endedContext},
		{"a store before its Run and after", outsideRun},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, fresh(t))
		})
	}
}

// Start runs the store until stop is called or the test ends, and waits until
// it is ready. Run must end without error.
func Start(t *testing.T, s ms1.Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(timeout):
			t.Error("Run did not end with its context")
		}
	})
	t.Cleanup(stop)
	servicetest.Eventually(t, timeout, "the store is ready", func() bool { return s.Ready(ctx) == nil })
	return stop
}

func (d Database) start(t *testing.T) (ms1.Store, context.Context) {
	t.Helper()
	s := d.Open(t)
	Start(t, s)
	return s, servicetest.Context(t, timeout)
}

// Begin starts a session and returns its number.
func Begin(t *testing.T, ctx context.Context, s ms1.Store) int64 {
	t.Helper()
	id, err := s.Begin(ctx, ms1.Opening{StartedAt: t0, IntervalSeconds: 30, InFlight: 4})
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	return id
}

func finish(t *testing.T, ctx context.Context, s ms1.Store, id int64, c ms1.Closing) ms1.Session {
	t.Helper()
	row, err := s.End(ctx, id, c)
	if err != nil {
		t.Fatalf("End: %v", err)
	}
	return row
}

func insert(t *testing.T, ctx context.Context, s ms1.Store, id int64, batch ...message.Message) {
	t.Helper()
	if err := s.Insert(ctx, id, batch); err != nil {
		t.Fatalf("Insert: %v", err)
	}
}

// Message returns message n of a session: n µs after the session's start.
func Message(id int64, n int) message.Message {
	s := t0 + message.Stamp(n)
	return message.Message{SessionID: id, Service1: s, Service2: s + 1_000, Service3: s + 2_000, End: s + 3_000}
}

// messages are n messages of a session, the first of them number from.
func messages(id int64, from, n int) []message.Message {
	all := make([]message.Message, n)
	for i := range all {
		all[i] = Message(id, from+i)
	}
	return all
}

// rows returns what lies in the database, in order of the key.
func (d Database) rows(t *testing.T, id int64) []message.Message {
	t.Helper()
	rows, err := d.DB.Query(fmt.Sprintf("SELECT session_id, %s, %s, %s, %s FROM messages WHERE session_id = %d ORDER BY service1_timestamp",
		d.Wire("service1_timestamp"), d.Wire("service2_timestamp"), d.Wire("service3_timestamp"), d.Wire("end_timestamp"), id))
	servicetest.NoError(t, err)
	defer rows.Close()
	var all []message.Message
	for rows.Next() {
		var m message.Message
		var stamps [4]string
		servicetest.NoError(t, rows.Scan(&m.SessionID, &stamps[0], &stamps[1], &stamps[2], &stamps[3]))
		m, err := message.Decode(fmt.Appendf(nil,
			`{"session_id":%d,"service1_timestamp":%q,"service2_timestamp":%q,"service3_timestamp":%q,"end_timestamp":%q}`,
			m.SessionID, stamps[0], stamps[1], stamps[2], stamps[3]), message.Stored)
		servicetest.NoError(t, err)
		all = append(all, m)
	}
	servicetest.NoError(t, rows.Err())
	return all
}

func (d Database) wantRows(t *testing.T, id int64, want ...message.Message) {
	t.Helper()
	if got := d.rows(t, id); !slices.Equal(got, want) {
		t.Errorf("got %d rows %v, want %d %v", len(got), got, len(want), want)
	}
}

// figures are a session's numbers, - where unknown.
func figures(s ms1.Session) string {
	text := ""
	for _, f := range []struct {
		name  string
		value *int64
	}{{"generated", s.Generated}, {"stored", s.Stored}, {"resent", s.Resent}, {"duplicates", s.Duplicates}, {"lost", s.Lost}} {
		if f.value == nil {
			text += f.name + " - "
		} else {
			text += fmt.Sprintf("%s %d ", f.name, *f.value)
		}
	}
	if s.EndReason == nil {
		return text + "open"
	}
	return text + string(*s.EndReason)
}

func wantFigures(t *testing.T, s ms1.Session, want string) {
	t.Helper()
	if got := figures(s); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func wantSession(t *testing.T, ctx context.Context, s ms1.Store, id int64, want string) {
	t.Helper()
	row, err := s.Session(ctx, id)
	servicetest.NoError(t, err)
	wantFigures(t, row, want)
}

func wantLate(t *testing.T, ctx context.Context, s ms1.Store, m message.Message, want ms1.Outcome) {
	t.Helper()
	if got, err := ms1.StoreLate(ctx, s, m); err != nil || got != want {
		t.Errorf("StoreLate: got %q, error %v, want %q", got, err, want)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got error %v, want %v", what, err, want)
	}
}

func numbers(t *testing.T, d Database) {
	s := d.Open(t)
	stop := Start(t, s)
	ctx := servicetest.Context(t, timeout)
	var last int64
	next := func() {
		t.Helper()
		id := Begin(t, ctx, s)
		if id <= last {
			t.Errorf("got session %d after %d, want a higher number", id, last)
		}
		last = id
	}
	next()
	next()
	stop()
	s = d.Open(t)
	stop = Start(t, s)
	next()
	if _, err := d.DB.Exec("DELETE FROM sessions"); err != nil {
		t.Fatal(err)
	}
	stop()
	s = d.Open(t)
	Start(t, s)
	next()
}

func sessions(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id, err := s.Begin(ctx, ms1.Opening{StartedAt: t0, IntervalSeconds: 86_400, InFlight: 4_096})
	servicetest.NoError(t, err)
	open, err := s.Session(ctx, id)
	servicetest.NoError(t, err)
	if want := (ms1.Session{ID: id, StartedAt: t0, IntervalSeconds: 86_400, InFlight: 4_096}); open != want {
		t.Errorf("got %+v, want %+v", open, want)
	}
	ended := finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 7, Generated: 12, Resent: 3, Duplicates: 4, Reason: ms1.Stopped})
	read, err := s.Session(ctx, id)
	servicetest.NoError(t, err)
	for _, row := range []ms1.Session{ended, read} {
		if row.ID != id || row.StartedAt != t0 || row.EndedAt != t0+7 {
			t.Errorf("got %+v, want session %d from %v to %v", row, id, t0, t0+7)
		}
		wantFigures(t, row, "generated 12 stored 0 resent 3 duplicates 4 lost 12 stopped")
	}
	newer := Begin(t, ctx, s)
	wantLast(t, ctx, s, newer)
}

func wantLast(t *testing.T, ctx context.Context, s ms1.Store, id int64) {
	t.Helper()
	if last, err := s.Sessions(ctx, 0, 1); err != nil || len(last) != 1 || last[0].ID != id {
		t.Errorf("got last session %v, %v, want %d", last, err, id)
	}
}

func noSession(t *testing.T, d Database) {
	s, ctx := d.start(t)
	if page, err := s.Sessions(ctx, 0, 1); err != nil || len(page) != 0 {
		t.Errorf("Sessions: got %v, %v, want none", page, err)
	}
	_, err := s.Session(ctx, 1)
	wantErr(t, "Session", err, ms1.ErrNoSession)
	_, err = s.End(ctx, 1, ms1.Closing{EndedAt: t0, Reason: ms1.Stopped})
	wantErr(t, "End", err, ms1.ErrNoSession)
	if closed, err := s.CloseInterrupted(ctx, t0); err != nil || len(closed) != 0 {
		t.Errorf("CloseInterrupted: got %v, %v, want nothing", closed, err)
	}
}

func exactness(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id := Begin(t, ctx, s)
	const first, latest = message.Stamp(1), message.Stamp(253402300799999999)
	want := []message.Message{
		{SessionID: id, Service1: first, Service2: latest, Service3: first, End: latest},
		{SessionID: id, Service1: t0, Service2: t0 + 1, Service3: t0 + 999_999, End: t0 + 100_000},
		{SessionID: id, Service1: t0 + 1, Service2: t0 - 1, Service3: 1_000_000, End: 10},
		{SessionID: id, Service1: latest, Service2: first, Service3: latest, End: first},
	}
	insert(t, ctx, s, id, want...)
	d.wantRows(t, id, want...)
}

func firstRowWins(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id, other := Begin(t, ctx, s), Begin(t, ctx, s)
	m := messages(id, 0, 3)
	changed := m[1]
	changed.Service2++
	changed.Service3++
	changed.End++
	insert(t, ctx, s, id)
	insert(t, ctx, s, id, m[0])
	insert(t, ctx, s, id, m[0])
	insert(t, ctx, s, id, m[0], m[1], m[1], changed) // within the batch and across
	insert(t, ctx, s, id, changed, m[2])
	d.wantRows(t, id, m...)
	insert(t, ctx, s, other, Message(other, 0)) // the same stamp in another session is another key
	d.wantRows(t, other, Message(other, 0))
	row := finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 9, Generated: 3, Reason: ms1.IntervalElapsed})
	wantFigures(t, row, "generated 3 stored 3 resent 0 duplicates 0 lost 0 interval elapsed")
}

func largeBatch(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id := Begin(t, ctx, s)
	want := messages(id, 0, 4_096)
	insert(t, ctx, s, id, want...)
	d.wantRows(t, id, want...)
}

func notOpen(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id := Begin(t, ctx, s)
	insert(t, ctx, s, id, messages(id, 0, 2)...)
	finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 9, Generated: 5, Reason: ms1.Stopped})
	wantErr(t, "a new message", s.Insert(ctx, id, messages(id, 2, 1)), ms1.ErrSessionEnded)
	wantErr(t, "a row and a new message", s.Insert(ctx, id, messages(id, 1, 2)), ms1.ErrSessionEnded)
	wantErr(t, "an unknown session", s.Insert(ctx, id+1, messages(id+1, 0, 1)), ms1.ErrSessionEnded)
	for _, c := range []struct {
		batch []message.Message
		want  bool
	}{{messages(id, 0, 2), true}, {messages(id, 1, 2), false}, {messages(id+1, 0, 1), false}} {
		if got, err := s.Stored(ctx, c.batch[0].SessionID, c.batch); got != c.want || err != nil {
			t.Errorf("Stored of %v: got %t, %v, want %t", c.batch, got, err, c.want)
		}
	}
	if err := s.Insert(ctx, id, append(messages(id, 0, 2), Message(id, 0))); err != nil {
		t.Errorf("messages that have their rows: got error %v, want none", err)
	}
	d.wantRows(t, id, messages(id, 0, 2)...)
	d.wantRows(t, id+1)
	wantSession(t, ctx, s, id, "generated 5 stored 2 resent 0 duplicates 0 lost 3 stopped")
}

func end(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id, other := Begin(t, ctx, s), Begin(t, ctx, s)
	insert(t, ctx, s, id, messages(id, 0, 3)...)
	insert(t, ctx, s, other, messages(other, 0, 5)...)
	row := finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 9, Generated: 4, Resent: 2, Duplicates: 1, Reason: ms1.Shutdown})
	const want = "generated 4 stored 3 resent 2 duplicates 1 lost 1 shutdown"
	wantFigures(t, row, want)
	again := finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 99, Generated: 9, Reason: ms1.Stopped})
	wantFigures(t, again, want)
	if again.EndedAt != t0+9 {
		t.Errorf("got end %v, want %v", again.EndedAt, t0+9)
	}
	wantSession(t, ctx, s, id, want)
	wantSession(t, ctx, s, other, "generated - stored - resent - duplicates - lost - open")
	backwards, err := s.End(ctx, other, ms1.Closing{EndedAt: t0 - 9, Generated: 5, Reason: ms1.Stopped})
	if err != nil || backwards.EndedAt != t0 {
		t.Errorf("a clock gone back: got end %v, %v, want the start %v", backwards.EndedAt, err, t0)
	}
}

func endDuringInsert(t *testing.T, d Database) {
	s, ctx := d.start(t)
	for range 5 {
		id := Begin(t, ctx, s)
		var stored atomic.Int64
		halfway := make(chan struct{})
		reached := sync.OnceFunc(func() { close(halfway) })
		defer reached()
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				for i := 0; ; i++ {
					switch err := s.Insert(ctx, id, messages(id, w*1_000_000+i*5, 5)); {
					case errors.Is(err, ms1.ErrSessionEnded):
						return
					case err != nil:
						t.Errorf("Insert: %v", err)
						reached()
						return
					}
					if stored.Add(5) >= 200 {
						reached()
					}
				}
			})
		}
		<-halfway
		row := finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 9, Generated: 1_000_000, Reason: ms1.Stopped})
		writers.Wait()
		if rows := int64(len(d.rows(t, id))); *row.Stored != rows || stored.Load() != rows {
			t.Errorf("got stored %d in the session's row and %d acknowledged, want the number of rows, %d", *row.Stored, stored.Load(), rows)
		}
	}
}

func interrupted(t *testing.T, d Database) {
	s := d.Open(t)
	stop := Start(t, s)
	ctx := servicetest.Context(t, timeout)
	done, empty, some := Begin(t, ctx, s), Begin(t, ctx, s), Begin(t, ctx, s)
	insert(t, ctx, s, some, messages(some, 0, 2)...)
	finish(t, ctx, s, done, ms1.Closing{EndedAt: t0 + 9, Generated: 1, Reason: ms1.Stopped})
	stop() // without the End of the others
	s = d.Open(t)
	Start(t, s)
	future, err := s.Begin(ctx, ms1.Opening{StartedAt: t0 + 1_000, IntervalSeconds: 1, InFlight: 1})
	servicetest.NoError(t, err)
	closed, err := s.CloseInterrupted(ctx, t0+500)
	servicetest.NoError(t, err)
	wants := []struct {
		id      int64
		ended   message.Stamp
		figures string
	}{
		{empty, t0 + 500, "generated - stored 0 resent - duplicates - lost - interrupted"},
		{some, t0 + 500, "generated - stored 2 resent - duplicates - lost - interrupted"},
		{future, t0 + 1_000, "generated - stored 0 resent - duplicates - lost - interrupted"}, // not before its start
	}
	if len(closed) != len(wants) {
		t.Fatalf("got %d sessions closed, want %d", len(closed), len(wants))
	}
	for i, want := range wants {
		if closed[i].ID != want.id || closed[i].EndedAt != want.ended {
			t.Errorf("got session %d ended at %v, want %d at %v", closed[i].ID, closed[i].EndedAt, want.id, want.ended)
		}
		wantFigures(t, closed[i], want.figures)
		wantSession(t, ctx, s, want.id, want.figures)
	}
	wantSession(t, ctx, s, done, "generated 1 stored 0 resent 0 duplicates 0 lost 1 stopped")
	if again, err := s.CloseInterrupted(ctx, t0+999); err != nil || len(again) != 0 {
		t.Errorf("the second time: got %v, %v, want nothing", again, err)
	}
	wantErr(t, "Insert", s.Insert(ctx, some, messages(some, 5, 1)), ms1.ErrSessionEnded)
}

func late(t *testing.T, d Database) {
	s, ctx := d.start(t)
	// Each session ends at 100 µs, with the rows 0 and 1.
	const ended = 100
	lost := func(n int64) *ms1.Closing {
		return &ms1.Closing{EndedAt: t0 + ended, Generated: 2 + n, Resent: 5, Duplicates: 6, Reason: ms1.IntervalElapsed}
	}
	cut := &ms1.Closing{EndedAt: t0 + ended, Reason: ms1.Interrupted}
	for _, c := range []struct {
		name    string
		closing *ms1.Closing // nil: the session runs
		message int
		want    ms1.Outcome
		figures string
	}{
		{"running session, a row", nil, 1, ms1.OutcomeRepeat, "generated - stored - resent - duplicates - lost - open"},
		{"running session, no row", nil, 2, ms1.OutcomeUnknown, "generated - stored - resent - duplicates - lost - open"},
		{"ended with losses, a row", lost(2), 1, ms1.OutcomeRepeat, "generated 4 stored 2 resent 5 duplicates 6 lost 2 interval elapsed"},
		{"ended with losses, no row", lost(2), 2, ms1.OutcomeStored, "generated 4 stored 3 resent 5 duplicates 6 lost 1 interval elapsed"},
		{"ended with losses, at its end", lost(1), ended, ms1.OutcomeStored, "generated 3 stored 3 resent 5 duplicates 6 lost 0 interval elapsed"},
		{"ended with losses, after its end", lost(1), ended + 1, ms1.OutcomeUnknown, "generated 3 stored 2 resent 5 duplicates 6 lost 1 interval elapsed"},
		{"interrupted, a row", cut, 0, ms1.OutcomeRepeat, "generated - stored 2 resent - duplicates - lost - interrupted"},
		{"interrupted, no row", cut, 2, ms1.OutcomeStored, "generated - stored 3 resent - duplicates - lost - interrupted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := Begin(t, ctx, s)
			rows := messages(id, 0, 2)
			insert(t, ctx, s, id, rows...)
			if c.closing != nil {
				finish(t, ctx, s, id, *c.closing)
			}
			m := Message(id, c.message)
			m.End += 777 // a repeat changes no stamp
			got, err := ms1.StoreLate(ctx, s, m)
			if err != nil || got != c.want {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
			if c.want == ms1.OutcomeStored {
				rows = append(rows, m)
				wantLate(t, ctx, s, m, ms1.OutcomeRepeat)
			}
			d.wantRows(t, id, rows...)
			wantSession(t, ctx, s, id, c.figures)
		})
	}
	t.Run("unknown session", func(t *testing.T) {
		wantLate(t, ctx, s, Message(1_000_000, 0), ms1.OutcomeUnknown)
	})
}

func lateInParallel(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id := Begin(t, ctx, s)
	finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 9, Generated: 3, Reason: ms1.Stopped})
	outcomes := map[ms1.Outcome]*atomic.Int64{"": {}, ms1.OutcomeUnknown: {}, ms1.OutcomeStored: {}, ms1.OutcomeRepeat: {}}
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			got, err := ms1.StoreLate(ctx, s, Message(id, 1))
			if err != nil {
				t.Errorf("StoreLate: %v", err)
			}
			outcomes[got].Add(1)
		})
	}
	all.Wait()
	if added, repeated := outcomes[ms1.OutcomeStored].Load(), outcomes[ms1.OutcomeRepeat].Load(); added != 1 || repeated != 99 {
		t.Errorf("got %d added and %d repeated, want 1 and 99", added, repeated)
	}
	d.wantRows(t, id, Message(id, 1))
	wantSession(t, ctx, s, id, "generated 3 stored 1 resent 0 duplicates 0 lost 2 stopped")
}

func cascade(t *testing.T, d Database) {
	s, ctx := d.start(t)
	old, kept := Begin(t, ctx, s), Begin(t, ctx, s)
	insert(t, ctx, s, old, messages(old, 0, 10)...)
	insert(t, ctx, s, kept, messages(kept, 0, 10)...)
	if _, err := d.DB.Exec(fmt.Sprintf("DELETE FROM sessions WHERE id = %d", old)); err != nil {
		t.Fatal(err)
	}
	d.wantRows(t, old)
	d.wantRows(t, kept, messages(kept, 0, 10)...)
	_, err := s.Session(ctx, old)
	wantErr(t, "Session", err, ms1.ErrNoSession)
}

func lostMessages(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id, other := Begin(t, ctx, s), Begin(t, ctx, s)
	insert(t, ctx, s, id, Message(id, 1))
	all := []ms1.LostMessage{{Service1: t0 + 1, Reason: "has a row"}, {Service1: t0 + 2, Reason: "one"}, {Service1: t0 + 3, Reason: "another"}}
	closing := ms1.Closing{EndedAt: t0 + 9, Generated: 3, Reason: ms1.Stopped, Lost: all}
	want := func(what string, limit int, want ...ms1.LostMessage) {
		t.Helper()
		if found, err := s.LostMessages(ctx, id, limit); err != nil || !slices.Equal(found, want) {
			t.Errorf("%s: got %v, error %v, want %v", what, found, err, want)
		}
	}
	want("open", 9)
	for range 2 { // the second changes nothing
		finish(t, ctx, s, id, closing)
		want("ended", 9, all[1:]...)
	}
	want("one of them", 1, all[1])
	wantLate(t, ctx, s, Message(id, 2), ms1.OutcomeStored)
	want("one came late", 9, all[2])
	if _, err := d.DB.Exec(fmt.Sprintf("DELETE FROM sessions WHERE id = %d", id)); err != nil {
		t.Fatal(err)
	}
	want("deleted", 9)

	closing.Lost, id = nil, other // as many as a session names
	for n := range ms1.MaxInFlight {
		closing.Lost = append(closing.Lost, ms1.LostMessage{Service1: t0 + message.Stamp(n), Reason: "many"})
	}
	closing.Generated = ms1.MaxInFlight
	finish(t, ctx, s, other, closing)
	want("many", 2*ms1.MaxInFlight, closing.Lost...)
}

func sessionPages(t *testing.T, d Database) {
	s, ctx := d.start(t)
	want := func(before int64, limit int, want ...int64) {
		t.Helper()
		page, err := s.Sessions(ctx, before, limit)
		servicetest.NoError(t, err)
		found := []int64{}
		for _, row := range page {
			found = append(found, row.ID)
		}
		if !slices.Equal(found, want) {
			t.Errorf("%d before %d: got %v, want %v", limit, before, found, want)
		}
	}
	want(0, 9)
	a, b, c := Begin(t, ctx, s), Begin(t, ctx, s), Begin(t, ctx, s)
	ended := finish(t, ctx, s, b, ms1.Closing{EndedAt: t0 + 9, Generated: 4, Resent: 2, Duplicates: 1, Reason: ms1.Stopped})
	want(0, 9, c, b, a)
	want(0, 2, c, b)
	want(b, 2, a)
	want(a, 2)
	page, err := s.Sessions(ctx, c, 1)
	if err != nil || len(page) != 1 || figures(page[0]) != figures(ended) || page[0].EndedAt != ended.EndedAt || page[0].StartedAt != t0 {
		t.Errorf("got %+v, error %v, want %+v", page, err, ended)
	}
}

func wantMessages(t *testing.T, ctx context.Context, s ms1.Store, id int64, which ms1.Selection, want ...message.Message) {
	t.Helper()
	if page, err := s.Messages(ctx, id, which); err != nil || !slices.Equal(page, want) {
		t.Errorf("%+v: got %d messages %v, error %v, want %d %v", which, len(page), page, err, len(want), want)
	}
}

func messagePages(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id, other := Begin(t, ctx, s), Begin(t, ctx, s)
	const first, latest = message.Stamp(1), message.Stamp(253402300799999999)
	all := append([]message.Message{{SessionID: id, Service1: first, Service2: latest, Service3: first, End: latest}}, messages(id, 0, 4)...)
	insert(t, ctx, s, id, all...)
	insert(t, ctx, s, other, messages(other, 0, 2)...)
	wantMessages(t, ctx, s, id, ms1.Selection{Limit: 9}, all...)
	wantMessages(t, ctx, s, id, ms1.Selection{Limit: 2}, all[:2]...)
	wantMessages(t, ctx, s, id, ms1.Selection{After: first, Limit: 2}, all[1:3]...)
	wantMessages(t, ctx, s, id, ms1.Selection{After: all[2].Service1, Limit: 9}, all[3:]...)
	wantMessages(t, ctx, s, id, ms1.Selection{After: all[4].Service1, Limit: 9})
	wantMessages(t, ctx, s, other+1, ms1.Selection{Limit: 9})
}

func slowest(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id, other := Begin(t, ctx, s), Begin(t, ctx, s)
	all := messages(id, 0, 5)
	for i, end := range []message.Stamp{1_000_000, 7, 999_999, -5, 7} { // across seconds, and negative
		all[i].End = all[i].Service1 + end
	}
	insert(t, ctx, s, id, all...)
	insert(t, ctx, s, other, messages(other, 0, 2)...)
	wantMessages(t, ctx, s, id, ms1.Selection{Slowest: true, Limit: 9}, all[0], all[2], all[1], all[4], all[3])
	wantMessages(t, ctx, s, id, ms1.Selection{Slowest: true, Limit: 2}, all[0], all[2])
}

func firstVersion(t *testing.T, d Database) {
	s := d.Open(t)
	stop := Start(t, s)
	ctx := servicetest.Context(t, timeout)
	id := Begin(t, ctx, s)
	insert(t, ctx, s, id, Message(id, 1))
	stop()
	for _, query := range []string{"DROP TABLE lost_messages", "DELETE FROM goose_db_version WHERE version_id = 2"} {
		if _, err := d.DB.Exec(query); err != nil {
			t.Fatal(err)
		}
	}
	s, ctx = d.start(t)
	d.wantRows(t, id, Message(id, 1))
	lost := ms1.LostMessage{Service1: t0 + 2, Reason: "lost"}
	finish(t, ctx, s, id, ms1.Closing{EndedAt: t0 + 9, Generated: 2, Reason: ms1.Stopped, Lost: []ms1.LostMessage{lost}})
	if found, err := s.LostMessages(ctx, id, 9); err != nil || !slices.Equal(found, []ms1.LostMessage{lost}) {
		t.Errorf("got %v, error %v, want %v", found, err, lost)
	}
}

func oneProgram(t *testing.T, d Database) {
	first, second, third := d.Open(t), d.Open(t), d.Open(t)
	stop := Start(t, first)
	ctx := servicetest.Context(t, timeout)
	err := second.Run(ctx)
	if err == nil || ctx.Err() != nil {
		t.Errorf("the second program: got %v, want a refusal", err)
	}
	if _, again := second.Session(ctx, 1); again == nil || ctx.Err() != nil {
		t.Errorf("a method of the refused store: got error %v, want one at once", again)
	}
	Begin(t, ctx, first) // the first is not disturbed
	stop()
	Start(t, third)
	Begin(t, ctx, third)
}

func endedContext(t *testing.T, d Database) {
	s, ctx := d.start(t)
	id := Begin(t, ctx, s)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for name, err := range each(ended, s, id) {
		if err == nil {
			t.Errorf("%s: got no error, want one", name)
		}
	}
	d.wantRows(t, id)
	wantSession(t, ctx, s, id, "generated - stored - resent - duplicates - lost - open")
	wantLast(t, ctx, s, id)
}

func outsideRun(t *testing.T, d Database) {
	s := d.Open(t)
	if err := s.Ready(context.Background()); err == nil {
		t.Error("Ready before Run: got nil, want what is missing")
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	for name, err := range each(short, s, 1) {
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s before Run: got %v, want why the store cannot be used", name, err)
		}
	}
	Start(t, s)()
	ctx := servicetest.Context(t, timeout)
	if err := s.Ready(ctx); err == nil {
		t.Error("Ready after Run: got nil, want what is missing")
	}
	for name, err := range each(ctx, s, 1) {
		if err == nil {
			t.Errorf("%s after Run: got no error, want one", name)
		}
	}
	if ctx.Err() != nil {
		t.Error("the methods of a closed store waited, expected them to fail at once")
	}
}

// each calls every method once and returns their errors.
func each(ctx context.Context, s ms1.Store, id int64) map[string]error {
	errs := map[string]error{}
	_, errs["CloseInterrupted"] = s.CloseInterrupted(ctx, t0)
	_, errs["Begin"] = s.Begin(ctx, ms1.Opening{StartedAt: t0, IntervalSeconds: 1, InFlight: 1})
	errs["Insert"] = s.Insert(ctx, id, messages(id, 0, 1))
	_, errs["End"] = s.End(ctx, id, ms1.Closing{EndedAt: t0, Reason: ms1.Stopped})
	_, errs["StoreLate"] = ms1.StoreLate(ctx, s, Message(id, 0))
	_, errs["Stored"] = s.Stored(ctx, id, messages(id, 0, 1))
	_, errs["Session"] = s.Session(ctx, id)
	_, errs["Sessions"] = s.Sessions(ctx, 0, 1)
	_, errs["Messages"] = s.Messages(ctx, id, ms1.Selection{Limit: 1})
	return errs
}

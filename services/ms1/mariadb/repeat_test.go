package mariadb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/go-sql-driver/mysql"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

// These are the faults that no server can be made to produce on demand, and
// what the adapter sends to the server where there is none to ask.

const t0 = message.Stamp(1_795_601_730_123_456)

func msg(n int) message.Message {
	s := t0 + message.Stamp(n)
	return message.Message{SessionID: 7, Service1: s, Service2: s + 1, Service3: s + 2, End: s + 3}
}

func serverError(number uint16, state string) error {
	e := &mysql.MySQLError{Number: number, Message: "as the server reports it"}
	copy(e.SQLState[:], state)
	return e
}

var (
	deadlock = serverError(1213, "40001")
	badValue = serverError(1292, "22007")
)

// mocked returns a pool whose connections all follow one script. If pings are
// not in the script, all are answered.
func mocked(t *testing.T, pings bool) (*sql.DB, sqlmock.Sqlmock) {
	t.Helper()
	db, mock, err := sqlmock.New(sqlmock.MonitorPingsOption(pings))
	servicetest.NoError(t, err)
	// sqlmock forgets the script with the last connection, and the adapter
	// throws connections away.
	keep, err := db.Conn(t.Context())
	servicetest.NoError(t, err)
	t.Cleanup(func() {
		keep.Close()
		db.Close()
		if err := mock.ExpectationsWereMet(); err != nil {
			t.Error(err)
		}
	})
	return db, mock
}

// linked returns a store that has a link already. A script without a prepared
// statement refuses it, so the store uses the general one.
func linked(t *testing.T) (*Store, sqlmock.Sqlmock, context.Context) {
	t.Helper()
	db, mock := mocked(t, false)
	s := newStore(Defaults(), zerolog.Nop(), nil)
	alive, end := context.WithCancelCause(t.Context())
	s.set(&pool{ctx: alive, end: end, db: db}, false, nil)
	return s, mock, servicetest.Context(t, 5*time.Second)
}

const insertPattern = `^INSERT INTO messages .+ FROM sessions s JOIN new WHERE s.id = \? AND s.ended_at IS NULL LOCK IN SHARE MODE ON DUPLICATE KEY UPDATE`

func expectInsert(mock sqlmock.Sqlmock) *sqlmock.ExpectedExec { return mock.ExpectExec(insertPattern) }

func expectTransaction(mock sqlmock.Sqlmock) {
	mock.ExpectExec("^START TRANSACTION$").WillReturnResult(sqlmock.NewResult(0, 0))
}

func expectCommit(mock sqlmock.Sqlmock) *sqlmock.ExpectedExec {
	return mock.ExpectExec("^COMMIT$").WillReturnResult(sqlmock.NewResult(0, 0))
}

var sessionColumns = []string{"id", "started_at", "ended_at", "interval_seconds", "in_flight", "generated", "stored", "resent", "duplicates", "lost", "end_reason"}

func expectLocked(mock sqlmock.Sqlmock, row []driver.Value) {
	mock.ExpectQuery(`FROM sessions WHERE id = \? FOR UPDATE$`).WithArgs(7).WillReturnRows(sqlmock.NewRows(sessionColumns).AddRow(row...))
}

func openRow() []driver.Value {
	return []driver.Value{7, t0.Time(), nil, 30, 1, nil, nil, nil, nil, nil, nil}
}

func endedRow() []driver.Value {
	return []driver.Value{7, t0.Time(), (t0 + 9).Time(), 30, 1, 5, 3, 0, 0, 2, "stopped"}
}

func expectCount(mock sqlmock.Sqlmock, n int) {
	mock.ExpectQuery(`^SELECT COUNT\(\*\) FROM messages WHERE session_id = \?`).
		WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(n))
}

func TestFaultsAreRepeated(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault error
	}{
		{"deadlock", deadlock},
		{"lock wait", serverError(1205, "HY000")},
		{"disk full", serverError(1021, "HY000")},
		{"table full", serverError(1114, "HY000")},
		{"changed since the snapshot", serverError(1020, "HY000")},
		{"shutdown", serverError(1053, "08S01")},
		{"too many connections", serverError(1040, "08004")},
		{"too many connections of the user", serverError(1226, "42000")},
		{"dead connection in the pool", driver.ErrBadConn},
		{"connection lost, outcome unknown", mysql.ErrInvalidConn},
		{"network", &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, mock, ctx := linked(t)
			tries := 2
			if errors.Is(c.fault, driver.ErrBadConn) {
				tries = 3 // database/sql repeats by itself first
			}
			for range tries {
				expectInsert(mock).WillReturnError(c.fault)
			}
			expectInsert(mock).WillReturnResult(sqlmock.NewResult(0, 1))
			servicetest.NoError(t, s.Insert(ctx, 7, []message.Message{msg(0)}))
		})
	}
}

func TestLastErrorWhenTheContextEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		script func(sqlmock.Sqlmock)
		want   error
	}{
		{"no answer at all", func(mock sqlmock.Sqlmock) {}, errNoAnswer},
		{"no answer after a fault that tells more", func(mock sqlmock.Sqlmock) { expectInsert(mock).WillReturnError(deadlock) }, deadlock},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, mock, _ := linked(t)
				c.script(mock)
				expectInsert(mock).WillDelayFor(time.Minute).WillReturnResult(sqlmock.NewResult(0, 1))
				if err := s.Insert(servicetest.Context(t, 200*time.Millisecond), 7, []message.Message{msg(0)}); !errors.Is(err, c.want) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got error %v, want %v", err, c.want)
				}
			})
		})
	}
}

// The reason why the database was unavailable is over with that.
func TestLastErrorOfADatabaseThatIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, mock, _ := linked(t)
		back, _, _ := s.current()
		s.set(nil, false, syscall.ECONNREFUSED)
		expectInsert(mock).WillDelayFor(time.Minute).WillReturnResult(sqlmock.NewResult(0, 1))
		time.AfterFunc(50*time.Millisecond, func() { s.set(back, false, nil) })
		if err := s.Insert(servicetest.Context(t, 500*time.Millisecond), 7, []message.Message{msg(0)}); !errors.Is(err, errNoAnswer) {
			t.Errorf("got error %v, want %v", err, errNoAnswer)
		}
	})
}

func TestStatementsUnderWayEndWithTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, mock := mocked(t, false)
		s := newStore(Defaults(), zerolog.Nop(), nil)
		first, lost := context.WithCancelCause(t.Context())
		s.set(&pool{ctx: first, db: db}, false, nil)
		expectInsert(mock).WillDelayFor(time.Minute).WillReturnResult(sqlmock.NewResult(0, 1))
		time.AfterFunc(50*time.Millisecond, func() { lost(errors.New("the lock is lost")) })

		if err := s.Insert(servicetest.Context(t, 300*time.Millisecond), 7, []message.Message{msg(0)}); err == nil || !strings.HasSuffix(err.Error(), ": the lock is lost") {
			t.Errorf("got error %v, want why the link is gone", err)
		}

		expectInsert(mock).WillReturnResult(sqlmock.NewResult(0, 1)) // of the next link
		time.AfterFunc(50*time.Millisecond, func() { s.set(&pool{ctx: t.Context(), db: db}, false, nil) })
		servicetest.NoError(t, s.Insert(servicetest.Context(t, 5*time.Second), 7, []message.Message{msg(0)}))
	})
}

func TestTheStatementOfASingleRowIsPreparedOnce(t *testing.T) {
	s, mock, ctx := linked(t)
	prepared := mock.ExpectPrepare(`^INSERT INTO messages .+ FROM sessions s WHERE s.id = \? AND s.ended_at IS NULL LOCK IN SHARE MODE$`)
	for range 2 {
		prepared.ExpectExec().WithArgs(msg(0).Service1.Time(), msg(0).Service2.Time(), msg(0).Service3.Time(), msg(0).End.Time(), 7).
			WillReturnResult(sqlmock.NewResult(0, 1))
		servicetest.NoError(t, s.Insert(ctx, 7, []message.Message{msg(0)}))
	}
}

func TestBegin(t *testing.T) {
	o := ms1.Opening{StartedAt: t0, IntervalSeconds: 30, InFlight: 4}
	expectInsert := func(mock sqlmock.Sqlmock) *sqlmock.ExpectedExec {
		return mock.ExpectExec("^INSERT INTO sessions").WithArgs(t0.Time(), 30, 4)
	}
	expectLook := func(mock sqlmock.Sqlmock, ids ...int64) {
		rows := sqlmock.NewRows([]string{"id"})
		for _, id := range ids {
			rows.AddRow(id)
		}
		mock.ExpectQuery("^SELECT id FROM sessions WHERE started_at = . AND ended_at IS NULL .+ LOCK IN SHARE MODE$").
			WithArgs(t0.Time()).WillReturnRows(rows)
	}
	for _, c := range []struct {
		name   string
		script func(sqlmock.Sqlmock)
	}{
		{"the answer was lost: the row is taken, not made twice", func(mock sqlmock.Sqlmock) {
			expectInsert(mock).WillReturnError(mysql.ErrInvalidConn)
			expectLook(mock, 42)
		}},
		{"the statement was lost", func(mock sqlmock.Sqlmock) {
			expectInsert(mock).WillReturnError(mysql.ErrInvalidConn)
			expectLook(mock)
			expectInsert(mock).WillReturnResult(sqlmock.NewResult(42, 1))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, mock, ctx := linked(t)
			c.script(mock)
			if id, err := s.Begin(ctx, o); id != 42 || err != nil {
				t.Errorf("got %d, %v, want session 42", id, err)
			}
		})
	}
}

func TestEnd(t *testing.T) {
	closing := ms1.Closing{EndedAt: t0 + 9, Generated: 5, Resent: 1, Duplicates: 2, Reason: ms1.Stopped}
	expectFigures := func(mock sqlmock.Sqlmock) {
		mock.ExpectExec("^UPDATE sessions SET").
			WithArgs((t0 + 9).Time(), 5, 3, 1, 2, 2, "stopped", 7).WillReturnResult(sqlmock.NewResult(0, 1))
	}
	for _, c := range []struct {
		name   string
		script func(sqlmock.Sqlmock)
	}{
		{"the answer to the commit was lost", func(mock sqlmock.Sqlmock) {
			expectTransaction(mock)
			expectLocked(mock, openRow())
			expectCount(mock, 3)
			expectFigures(mock)
			expectCommit(mock).WillReturnError(mysql.ErrInvalidConn)
			expectTransaction(mock)
			expectLocked(mock, endedRow())
			expectCommit(mock)
		}},
		{"the commit was lost", func(mock sqlmock.Sqlmock) {
			expectTransaction(mock)
			expectLocked(mock, openRow())
			expectCount(mock, 2)
			mock.ExpectExec("^UPDATE sessions SET").WillReturnError(deadlock)
			expectTransaction(mock)
			expectLocked(mock, openRow())
			expectCount(mock, 3)
			expectFigures(mock)
			expectCommit(mock)
		}},
		{"no connection at first", func(mock sqlmock.Sqlmock) {
			mock.ExpectExec("^START TRANSACTION").WillReturnError(mysql.ErrInvalidConn)
			expectTransaction(mock)
			expectLocked(mock, endedRow())
			expectCommit(mock)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, mock, ctx := linked(t)
			c.script(mock)
			row, err := s.End(ctx, 7, closing)
			if err != nil || row.ID != 7 || row.EndedAt != t0+9 || *row.Generated != 5 || *row.Stored != 3 || *row.Lost != 2 || *row.EndReason != ms1.Stopped {
				t.Errorf("found %+v, %v", row, err)
			}
		})
	}
}

func TestCloseInterrupted(t *testing.T) {
	expectOpen := func(mock sqlmock.Sqlmock) {
		mock.ExpectQuery("^SELECT id FROM sessions WHERE ended_at IS NULL ORDER BY id$").
			WillReturnRows(sqlmock.NewRows([]string{"id"}).AddRow(7))
	}
	t.Run("closes each", func(t *testing.T) {
		s, mock, ctx := linked(t)
		mock.ExpectQuery("^SELECT id FROM sessions").WillReturnError(deadlock)
		mock.ExpectQuery("^SELECT id FROM sessions").
			WillReturnRows(sqlmock.NewRows([]string{"id"}).AddRow(6).AddRow(7).RowError(1, deadlock))
		expectOpen(mock)
		expectTransaction(mock)
		expectLocked(mock, openRow())
		expectCount(mock, 3)
		mock.ExpectExec("^UPDATE sessions SET").
			WithArgs((t0 + 1).Time(), nil, 3, nil, nil, nil, "interrupted", 7).WillReturnResult(sqlmock.NewResult(0, 1))
		expectCommit(mock)
		closed, err := s.CloseInterrupted(ctx, t0+1)
		if err != nil || len(closed) != 1 || *closed[0].EndReason != ms1.Interrupted || *closed[0].Stored != 3 || closed[0].Lost != nil {
			t.Errorf("got %+v, %v, want session 7 closed with 3 rows", closed, err)
		}
	})
	t.Run("fails", func(t *testing.T) {
		s, mock, ctx := linked(t)
		expectOpen(mock)
		expectTransaction(mock)
		expectLocked(mock, openRow())
		expectCount(mock, 3)
		mock.ExpectExec("^UPDATE sessions SET").WillReturnError(badValue)
		if _, err := s.CloseInterrupted(ctx, t0+1); !errors.Is(err, badValue) {
			t.Errorf("got error %v, want %v", err, badValue)
		}
	})
}

func TestStoreLate(t *testing.T) {
	m := msg(2)
	expectLook := func(mock sqlmock.Sqlmock) {
		mock.ExpectQuery(`FROM sessions WHERE id = \?$`).WithArgs(7).WillReturnRows(sqlmock.NewRows(sessionColumns).AddRow(endedRow()...))
		expectCount(mock, 0)
	}
	expectAdded := func(mock sqlmock.Sqlmock) {
		expectTransaction(mock)
		expectLocked(mock, endedRow())
		expectCount(mock, 0)
		mock.ExpectExec("^INSERT INTO messages .+ VALUES").
			WithArgs(7, m.Service1.Time(), m.Service2.Time(), m.Service3.Time(), m.End.Time()).WillReturnResult(sqlmock.NewResult(0, 1))
		mock.ExpectExec("^DELETE FROM lost_messages").WithArgs(7, m.Service1.Time()).WillReturnResult(sqlmock.NewResult(0, 1))
		mock.ExpectExec("^UPDATE sessions SET").
			WithArgs((t0 + 9).Time(), 5, 4, 0, 0, 1, "stopped", 7).WillReturnResult(sqlmock.NewResult(0, 1))
	}
	for _, c := range []struct {
		name   string
		script func(sqlmock.Sqlmock)
		want   ms1.Outcome
		err    error
	}{
		{"the answer to the commit was lost: not counted twice", func(mock sqlmock.Sqlmock) {
			expectLook(mock)
			expectAdded(mock)
			expectCommit(mock).WillReturnError(mysql.ErrInvalidConn)
			expectTransaction(mock)
			expectLocked(mock, endedRow())
			expectCount(mock, 1)
			expectCommit(mock)
		}, ms1.OutcomeRepeat, nil},
		{"refused", func(mock sqlmock.Sqlmock) {
			expectLook(mock)
			expectTransaction(mock)
			expectLocked(mock, endedRow())
			expectCount(mock, 0)
			mock.ExpectExec("^INSERT INTO messages").WillReturnError(badValue)
		}, "", badValue},
		{"deadlock on the locked look", func(mock sqlmock.Sqlmock) {
			expectLook(mock)
			expectTransaction(mock)
			expectLocked(mock, endedRow())
			mock.ExpectQuery("^SELECT COUNT").WillReturnError(deadlock)
			expectAdded(mock)
			expectCommit(mock)
		}, ms1.OutcomeStored, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, mock, ctx := linked(t)
			c.script(mock)
			if got, err := ms1.StoreLate(ctx, s, m); got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %v, %v, want %v, %v", got, err, c.want, c.err)
			}
		})
	}
}

package mariadb

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// scripted returns a store whose pools are the given ones, one after the
// other; the last is used again and again.
func scripted(pools ...*sql.DB) (*Store, *servicetest.Console) {
	log := &servicetest.Console{}
	s := newStore(Defaults(), zerolog.New(log), func() *sql.DB {
		db := pools[0]
		if len(pools) > 1 {
			pools = pools[1:]
		}
		return db
	})
	s.pingEvery, s.avoid = 5*time.Millisecond, func() {}
	s.probe = func(ctx context.Context, conn *sql.Conn) error { return conn.PingContext(ctx) }
	return s, log
}

// run runs the store until the test ends; the channel has what Run returned.
func run(t *testing.T, s *Store) (ended <-chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	result, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		result <- s.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return result, stop
}

func ready(t *testing.T, s *Store) {
	t.Helper()
	servicetest.Eventually(t, 20*time.Second, "the store is ready", func() bool { return s.Ready(t.Context()) == nil })
}

func expectConnection(mock sqlmock.Sqlmock, id int64, host string) {
	mock.ExpectQuery("^SELECT ID, HOST, .+ FROM information_schema.PROCESSLIST").
		WillReturnRows(sqlmock.NewRows([]string{"ID", "HOST", "name"}).AddRow(id, host, "tricycle/tricycle"))
	mock.ExpectExec("^SET SESSION wait_timeout").WithArgs(4).WillReturnResult(sqlmock.NewResult(0, 0))
}

func expectGetLock(mock sqlmock.Sqlmock, wait, got int) {
	mock.ExpectQuery("^SELECT GET_LOCK").WithArgs("tricycle/tricycle", wait).
		WillReturnRows(sqlmock.NewRows([]string{"got"}).AddRow(got))
}

func expectHolder(mock sqlmock.Sqlmock, id, host, silence any) {
	mock.ExpectQuery(`IS_USED_LOCK\(\?\)`).WithArgs("tricycle/tricycle").
		WillReturnRows(sqlmock.NewRows([]string{"ID", "HOST", "TIME"}).AddRow(id, host, silence))
}

// expectSchema is what goose asks of a database whose schema is up to date, and
// what the store checks then.
func expectSchema(mock sqlmock.Sqlmock) {
	mock.ExpectQuery("SELECT COUNT.+ FROM goose_db_version").WillReturnRows(sqlmock.NewRows([]string{"n"}).AddRow(1))
	mock.ExpectQuery("SELECT EXISTS .+ table_name = 'goose_db_version'").WillReturnRows(sqlmock.NewRows([]string{"e"}).AddRow(true))
	mock.ExpectQuery(`SELECT MAX\(version_id\)`).WillReturnRows(sqlmock.NewRows([]string{"v"}).AddRow(2))
	mock.ExpectQuery("SELECT version_id, is_applied").
		WillReturnRows(sqlmock.NewRows([]string{"version_id", "is_applied"}).AddRow(2, true).AddRow(1, true).AddRow(0, true))
	found := sqlmock.NewRows([]string{"name", "value"})
	for _, s := range schema {
		found.AddRow(s.name, s.value)
	}
	mock.ExpectQuery("information_schema.COLUMNS").WillReturnRows(found)
	mock.ExpectExec("^EXPLAIN INSERT").WillReturnResult(sqlmock.NewResult(0, 0))
}

// Numbers of connections start again with the server, so the number alone
// does not make a connection ours.
func TestOnlyOurDeadConnectionIsKilled(t *testing.T) {
	for name, host := range map[string]any{"ours": "here:1", "other address": "there:1", "hidden address": nil} {
		t.Run(name, func(t *testing.T) {
			db, mock := mocked(t, false)
			expectConnection(mock, 9, "here:2")
			expectGetLock(mock, 0, 0)
			expectHolder(mock, 5, host, nil)
			if host == "here:1" {
				mock.ExpectExec("^KILL CONNECTION").WithArgs(5).WillReturnResult(sqlmock.NewResult(0, 0))
			}
			expectGetLock(mock, 5, 1)
			expectSchema(mock)
			s, _ := scripted(db)
			s.mine = holder{5, "here:1"}
			run(t, s)
			ready(t, s)
		})
	}
}

func TestFailingStartIsRepeatedAndLoggedOnce(t *testing.T) {
	t.Parallel()
	denied := serverError(1045, "28000")
	faults := []func(sqlmock.Sqlmock){
		func(mock sqlmock.Sqlmock) { mock.ExpectQuery("PROCESSLIST").WillReturnError(denied) },
		func(mock sqlmock.Sqlmock) { mock.ExpectQuery("PROCESSLIST").WillReturnError(denied) },
		func(mock sqlmock.Sqlmock) {
			mock.ExpectQuery("PROCESSLIST").WillReturnRows(sqlmock.NewRows([]string{"ID", "HOST", "name"}).AddRow(5, "here:1", "tricycle/tricycle"))
			mock.ExpectExec("wait_timeout").WillReturnError(deadlock)
		},
		func(mock sqlmock.Sqlmock) {
			expectConnection(mock, 5, "here:1")
			mock.ExpectQuery("GET_LOCK").WillReturnError(deadlock)
		},
		func(mock sqlmock.Sqlmock) { // it was freed between the questions
			expectConnection(mock, 5, "here:1")
			expectGetLock(mock, 0, 0)
			expectHolder(mock, nil, nil, nil)
			expectGetLock(mock, 5, 0)
			expectHolder(mock, nil, nil, nil)
		},
		func(mock sqlmock.Sqlmock) { // its program is dead, and the server was frozen until now
			expectConnection(mock, 5, "here:1")
			expectGetLock(mock, 0, 0)
			expectHolder(mock, 12, "there:2", 1)
			expectGetLock(mock, 5, 0)
			expectHolder(mock, 12, "there:2", 4)
		},
		func(mock sqlmock.Sqlmock) {
			expectConnection(mock, 5, "here:1")
			expectGetLock(mock, 0, 0)
			mock.ExpectQuery("IS_USED_LOCK").WillReturnError(deadlock)
		},
		func(mock sqlmock.Sqlmock) {
			expectConnection(mock, 5, "here:1")
			expectGetLock(mock, 0, 1)
			mock.ExpectQuery("SELECT COUNT.+ FROM goose_db_version").WillReturnError(serverError(noTable, "42S02"))
			mock.ExpectQuery("SELECT EXISTS").WillReturnError(deadlock)
		},
		func(mock sqlmock.Sqlmock) {
			expectConnection(mock, 5, "here:1")
			expectGetLock(mock, 0, 1)
			expectSchema(mock)
		},
	}
	var pools []*sql.DB
	for _, script := range faults {
		db, mock := mocked(t, false)
		script(mock)
		pools = append(pools, db)
	}
	s, log := scripted(pools...)
	run(t, s)
	ready(t, s)
	if n := log.Count("Error 1045 (28000)"); n != 1 {
		t.Errorf("got the wrong password logged %d times, want once", n)
	}
	if n := log.Count("database is unavailable"); n != 5 { // twice the same; two deadlocks while locking
		t.Errorf("got %d lines, want one for each change of the error", n)
	}
}

func TestUnreachableServer(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0") // and let go: a port nobody listens at
	servicetest.NoError(t, err)
	taken.Close()
	c := Defaults()
	c.Address = taken.Addr().String()
	log := &servicetest.Console{}
	s, err := Open(c, zerolog.New(log))
	servicetest.NoError(t, err)
	if err := s.Ready(t.Context()); !errors.Is(err, errStarting) {
		t.Errorf("before Run: got error %v, want %v", err, errStarting)
	}
	ended, stop := run(t, s)
	servicetest.Fails(t, time.Second, syscall.ECONNREFUSED.Error(), s.Ready)
	servicetest.Fails(t, 100*time.Millisecond, syscall.ECONNREFUSED.Error(), func(ctx context.Context) error { _, err := s.Session(ctx, 1); return err })
	stop()
	servicetest.NoError(t, <-ended)
	if n := log.Count("connection refused"); n != 1 {
		t.Errorf("got the refusal logged %d times, want once", n)
	}
}

func TestDriverLogIsKept(t *testing.T) {
	log := &servicetest.Console{}
	driverLog{zerolog.New(log)}.Print("packets ", "out of order")
	if log.Count("packets out of order") != 1 {
		t.Errorf("found %q", log.String())
	}
}

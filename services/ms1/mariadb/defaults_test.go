package mariadb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

func openAt(t *testing.T, d *servertest.Database, address string) *Store {
	t.Helper()
	server := mariadbtest.On(t, d)
	server.Address = address
	return open(t, server, io.Discard)
}

// serve starts a store on a server, waits until it is ready and returns how to
// stop it.
func serve(t *testing.T, d *servertest.Database) (s *Store, stop func()) {
	t.Helper()
	s = openAt(t, d, d.Address)
	return s, storetest.Start(t, s)
}

// refusingConn is a connection whose server refuses one statement, and all queries.
type refusingConn struct {
	driver.Conn
	statement string
	err       error
}

func (c refusingConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	if query == c.statement {
		return nil, c.err
	}
	return driver.ResultNoRows, nil
}

func (refusingConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return nil, io.ErrUnexpectedEOF
}

// TestReadsWaitForTheCluster has servers that know Galera, and one that does not.
func TestReadsWaitForTheCluster(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"set session variables: Error 1231": &mysql.MySQLError{Number: 1231},
		"read variables: ":                  &mysql.MySQLError{Number: unknownVariable},
	} {
		got := new(connector).prepare(t.Context(), refusingConn{statement: "SET SESSION wsrep_sync_wait = 1", err: err})
		if got == nil || !strings.HasPrefix(got.Error(), want) {
			t.Errorf("prepare a connection that refuses with %v: %v, want %s", err, got, want)
		}
	}
}

// TestServerDefaults runs a session under each default that a shared server
// may have. The rows are counted by another client, as root.
func TestServerDefaults(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t)
	users := strings.Fields(d.SQL("SELECT CONCAT(QUOTE(User), '@', QUOTE(Host)) FROM mysql.user WHERE User = 'tricycle'"))
	limit := func(n int) string {
		var all []string
		for _, u := range users {
			all = append(all, fmt.Sprintf("ALTER USER %s WITH MAX_USER_CONNECTIONS %d", u, n))
		}
		return strings.Join(all, "; ")
	}
	for _, c := range []struct{ name, on, off string }{
		{"time zone", "SET GLOBAL time_zone='-09:30'", "SET GLOBAL time_zone=SYSTEM"},
		{"SQL mode ORACLE", "SET GLOBAL sql_mode='ORACLE'", "SET GLOBAL sql_mode=DEFAULT"},
		{"SQL mode ANSI", "SET GLOBAL sql_mode='ANSI,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH,TIME_ROUND_FRACTIONAL'", "SET GLOBAL sql_mode=DEFAULT"},
		{"SQL mode empty", "SET GLOBAL sql_mode=''", "SET GLOBAL sql_mode=DEFAULT"},
		{"wait_timeout 2", "SET GLOBAL wait_timeout=2, GLOBAL interactive_timeout=2", "SET GLOBAL wait_timeout=DEFAULT, GLOBAL interactive_timeout=DEFAULT"},
		{"no prepared statements", "SET GLOBAL max_prepared_stmt_count=0", "SET GLOBAL max_prepared_stmt_count=DEFAULT"},
		{"serializable", "SET GLOBAL TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ"},
		{"read uncommitted", "SET GLOBAL TRANSACTION ISOLATION LEVEL READ UNCOMMITTED", "SET GLOBAL TRANSACTION ISOLATION LEVEL REPEATABLE READ"},
		{"read-only transactions", "SET GLOBAL TRANSACTION READ ONLY", "SET GLOBAL TRANSACTION READ WRITE"},
		{"sql_safe_updates", "SET GLOBAL sql_safe_updates=1", "SET GLOBAL sql_safe_updates=0"},
		{"max_join_size", "SET GLOBAL max_join_size=1", "SET GLOBAL max_join_size=DEFAULT"},
		{"sql_select_limit", "SET GLOBAL sql_select_limit=0", "SET GLOBAL sql_select_limit=DEFAULT"},
		{"max_statement_time", "SET GLOBAL max_statement_time=0.000001", "SET GLOBAL max_statement_time=0"},
		{"idle_transaction_timeout", "SET GLOBAL idle_transaction_timeout=1, GLOBAL idle_write_transaction_timeout=1", "SET GLOBAL idle_transaction_timeout=0, GLOBAL idle_write_transaction_timeout=0"},
		{"three connections a user", limit(3), limit(0)},
		{"small packets", "SET GLOBAL max_allowed_packet=1024", "SET GLOBAL max_allowed_packet=DEFAULT"},
		{"completion_type CHAIN", "SET GLOBAL completion_type=1", "SET GLOBAL completion_type=0"},
		{"completion_type RELEASE", "SET GLOBAL completion_type=2", "SET GLOBAL completion_type=0"},
		{"autocommit off", "SET GLOBAL autocommit=0", "SET GLOBAL autocommit=1"},
		{"autocommit off by init_connect", "SET GLOBAL init_connect='SET autocommit=0'", "SET GLOBAL init_connect=''"},
		{"other character set by init_connect", "SET GLOBAL init_connect='SET character_set_results=utf16'", "SET GLOBAL init_connect=''"},
	} {
		t.Run(c.name, func(t *testing.T) { // one after another: they share the server
			d.SQL(c.on)
			defer d.SQL(c.off)
			s, stop := serve(t, d)
			defer stop()
			ctx := servicetest.Context(t, 10*time.Second)
			first := storetest.Message(0, 0).Service1
			id := storetest.Begin(t, ctx, s)
			errs := make(chan error)
			for part := range 8 {
				go func() {
					var batch []message.Message
					for n := range 10 {
						batch = append(batch, storetest.Message(id, 10*part+n))
					}
					if part > 0 {
						errs <- s.Insert(ctx, id, batch)
						return
					}
					var err error
					for row := range slices.Chunk(batch, 1) {
						err = errors.Join(err, s.Insert(ctx, id, row))
					}
					errs <- err
				}()
			}
			for range 8 {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			count := func() string {
				return d.SQL(fmt.Sprintf("SET max_statement_time=0, sql_big_selects=1, sql_select_limit=1000; SELECT COUNT(*), DATE_FORMAT(MIN(service1_timestamp), '%%Y-%%m-%%dT%%H:%%i:%%s.%%fZ') FROM messages WHERE session_id = %d", id))
			}
			want := fmt.Sprintf("80\t%s", first)
			if got := count(); got != want {
				t.Errorf("another client counts %q, want %q", got, want)
			}
			closing := ms1.Closing{EndedAt: first, Generated: 80 + ms1.MaxInFlight, Reason: ms1.Stopped}
			for n := range ms1.MaxInFlight {
				closing.Lost = append(closing.Lost, ms1.LostMessage{Service1: storetest.Message(id, 80+n).Service1, Reason: "not returned in time"})
			}
			row, err := s.End(ctx, id, closing)
			if err != nil || *row.Stored != 80 || *row.Lost != ms1.MaxInFlight {
				t.Fatalf("end: %+v, %v, want 80 stored and %d lost", row, err, ms1.MaxInFlight)
			}
			stop()
			if got := count(); got != want {
				t.Errorf("another client counts %q after the end, want %q", got, want)
			}
		})
	}
}

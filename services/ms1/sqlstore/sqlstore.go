// Package sqlstore implements the statements of an [ms1.Store] that MariaDB and
// SQLite share. An adapter embeds [Statements] and adds connections, retries,
// transactions and its dialect.
//
// No statement relies on arriving only once, or in time: an existing row of
// messages never changes. Each statement that adds rows reads the session's row
// and locks it, so it precedes the end of that session or has no effect.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

// ErrNewerSchema is the error of [Migrate] for a database that a newer program
// has migrated.
var ErrNewerSchema = errors.New("a newer program has used the database")

// Migrate brings the schema up to date with the files in the directory
// migrations.
func Migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, migrations fs.FS, options ...goose.ProviderOption) error {
	files, _ := fs.Sub(migrations, "migrations") // the only error is an invalid path
	schema, err := goose.NewProvider(dialect, db, files, append(options, goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))...)
	if err != nil {
		return err
	}
	version, newest, err := schema.GetVersions(ctx)
	if err != nil {
		return err
	}
	if version > newest {
		return fmt.Errorf("schema version: must be at most %d, got %d: %w", newest, version, ErrNewerSchema)
	}
	_, err = schema.Up(ctx)
	return err
}

// Conn is a connection, a pool of connections or a transaction.
type Conn interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Statements are the methods of an [ms1.Store] that read and write rows.
type Statements struct {
	Stamp     func(message.Stamp) any // argument for a column of stamps
	ForShare  string                  // clause of a SELECT that keeps its rows from changing
	ForUpdate string                  // clause of a SELECT that locks its rows
	KeepFirst string                  // clause of an INSERT that keeps existing rows
	Round     string                  // expression for the microseconds from service1_timestamp to end_timestamp

	// Retry calls try until it succeeds, fails permanently or ctx ends. Its
	// error begins with the operation.
	Retry func(ctx context.Context, operation string, try func(ctx context.Context, db *sql.DB) error) error
	// Transact calls f in a transaction and commits if f returns nil.
	Transact func(ctx context.Context, db *sql.DB, f func(tx Conn) error) error
	// Fresh returns connections that see only committed rows.
	Fresh func(*sql.DB) *sql.DB
	// Readers returns connections for reads that take long.
	Readers func(*sql.DB) *sql.DB

	single single
}

// single is the prepared statement that inserts one new row, which the server
// need not parse each time.
type single struct {
	mu   sync.Mutex
	db   *sql.DB // of the statement
	stmt *sql.Stmt
}

// insert reports whether it inserted the row.
func (s *single) insert(ctx context.Context, db *sql.DB, query string, args []any) bool {
	stmt, err := s.on(ctx, db, query) //nolint:sqlclosecheck // kept for the next row
	if err != nil {
		return false
	}
	done, err := stmt.ExecContext(ctx, args...)
	if err != nil {
		return false
	}
	n, err := done.RowsAffected()
	return err == nil && n == 1
}

// on returns the statement on db, whose end closes it.
func (s *single) on(ctx context.Context, db *sql.DB, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db != db {
		stmt, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, err
		}
		s.db, s.stmt = db, stmt
	}
	return s.stmt, nil
}

const (
	selectSession = "SELECT id, started_at, ended_at, interval_seconds, in_flight, generated, stored, resent, duplicates, lost, end_reason FROM sessions "
	insertMessage = "INSERT INTO messages (session_id, service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp) "
)

// stamp scans a column of stamps; NULL is 0.
type stamp struct{ *message.Stamp }

func (s stamp) Scan(value any) error {
	switch v := value.(type) {
	case time.Time:
		*s.Stamp = message.StampOf(v)
	case string:
		t, err := time.Parse(message.Layout, v)
		*s.Stamp = message.StampOf(t)
		return err
	default:
		*s.Stamp = 0
	}
	return nil
}

func scanSession(row interface{ Scan(...any) error }, s *ms1.Session) error {
	return row.Scan(&s.ID, stamp{&s.StartedAt}, stamp{&s.EndedAt}, &s.IntervalSeconds, &s.InFlight,
		&s.Generated, &s.Stored, &s.Resent, &s.Duplicates, &s.Lost, &s.EndReason)
}

// readSession reads the row of a session, which the lock keeps from changing.
func readSession(ctx context.Context, c Conn, lock string, id int64) (ms1.Session, error) {
	var s ms1.Session
	err := scanSession(c.QueryRowContext(ctx, selectSession+"WHERE id = ?"+lock, id), &s)
	if errors.Is(err, sql.ErrNoRows) {
		return s, ms1.ErrNoSession
	}
	return s, err
}

func (s *Statements) writeSession(ctx context.Context, tx Conn, row ms1.Session) error {
	_, err := tx.ExecContext(ctx, "UPDATE sessions SET ended_at = ?, generated = ?, stored = ?, resent = ?, duplicates = ?, lost = ?, end_reason = ? WHERE id = ?",
		s.Stamp(row.EndedAt), row.Generated, row.Stored, row.Resent, row.Duplicates, row.Lost, row.EndReason, row.ID)
	return err
}

// ReadAll returns all rows of a query.
func ReadAll[T any](ctx context.Context, c Conn, scan func(rows *sql.Rows, row *T) error, query string, args ...any) (all []T, err error) {
	rows, err := c.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var row T
		if err := scan(rows, &row); err != nil {
			return nil, err
		}
		all = append(all, row)
	}
	return all, rows.Err()
}

// Session implements [ms1.Store].
func (s *Statements) Session(ctx context.Context, id int64) (row ms1.Session, err error) {
	err = s.Retry(ctx, fmt.Sprintf("read session %d", id), func(ctx context.Context, db *sql.DB) (err error) {
		row, err = readSession(ctx, db, "", id)
		return err
	})
	return row, err
}

// Sessions implements [ms1.Store].
func (s *Statements) Sessions(ctx context.Context, before int64, limit int) (page []ms1.Session, err error) {
	if before == 0 {
		before = math.MaxInt64
	}
	err = s.Retry(ctx, "read sessions", func(ctx context.Context, db *sql.DB) (err error) {
		page, err = ReadAll(ctx, s.Readers(db), func(rows *sql.Rows, row *ms1.Session) error { return scanSession(rows, row) },
			selectSession+"WHERE id < ? ORDER BY id DESC LIMIT ?", before, limit)
		return err
	})
	return page, err
}

// Messages implements [ms1.Store].
func (s *Statements) Messages(ctx context.Context, id int64, which ms1.Selection) (page []message.Message, err error) {
	query, args := "WHERE session_id = ? AND service1_timestamp > ? ORDER BY service1_timestamp LIMIT ?", []any{id, s.Stamp(max(which.After, 1)), which.Limit}
	if which.After == 0 {
		query = strings.Replace(query, ">", ">=", 1) // than the earliest stamp
	}
	if which.Slowest {
		query, args = "WHERE session_id = ? ORDER BY "+s.Round+" DESC, service1_timestamp LIMIT ?", []any{id, which.Limit}
	}
	err = s.Retry(ctx, fmt.Sprintf("read messages of session %d", id), func(ctx context.Context, db *sql.DB) (err error) {
		page, err = ReadAll(ctx, s.Readers(db), func(rows *sql.Rows, m *message.Message) error {
			m.SessionID = id
			return rows.Scan(stamp{&m.Service1}, stamp{&m.Service2}, stamp{&m.Service3}, stamp{&m.End})
		}, "SELECT service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp FROM messages "+query, args...)
		return err
	})
	return page, err
}

// LostMessages implements [ms1.Store].
func (s *Statements) LostMessages(ctx context.Context, id int64, limit int) (lost []ms1.LostMessage, err error) {
	err = s.Retry(ctx, fmt.Sprintf("read lost messages of session %d", id), func(ctx context.Context, db *sql.DB) (err error) {
		lost, err = ReadAll(ctx, db, func(rows *sql.Rows, m *ms1.LostMessage) error { return rows.Scan(stamp{&m.Service1}, &m.Reason) },
			"SELECT service1_timestamp, reason FROM lost_messages WHERE session_id = ? ORDER BY service1_timestamp LIMIT ?", id, limit)
		return err
	})
	return lost, err
}

// Begin implements [ms1.Store].
func (s *Statements) Begin(ctx context.Context, o ms1.Opening) (id int64, err error) {
	tried := false
	err = s.Retry(ctx, "begin session", func(ctx context.Context, db *sql.DB) error {
		if tried { // the row may exist: only the answer may have been lost
			err := db.QueryRowContext(ctx, "SELECT id FROM sessions WHERE started_at = ? AND ended_at IS NULL ORDER BY id DESC LIMIT 1"+s.ForShare,
				s.Stamp(o.StartedAt)).Scan(&id)
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		tried = true
		done, err := db.ExecContext(ctx, "INSERT INTO sessions (started_at, interval_seconds, in_flight) VALUES (?, ?, ?)",
			s.Stamp(o.StartedAt), o.IntervalSeconds, o.InFlight)
		if err != nil {
			return err
		}
		id, err = done.LastInsertId()
		return err
	})
	return id, err
}

// Insert implements [ms1.Store]. It is one statement, which locks the session's
// row until it has committed. A single row that the prepared statement does not
// insert is left to the general one, which also takes a row that exists.
func (s *Statements) Insert(ctx context.Context, sessionID int64, batch []message.Message) error {
	if len(batch) == 0 {
		return nil
	}
	args := make([]any, 0, 4*len(batch)+1)
	for _, m := range batch {
		args = append(args, s.Stamp(m.Service1), s.Stamp(m.Service2), s.Stamp(m.Service3), s.Stamp(m.End))
	}
	args = append(args, sessionID)
	whereOpen := " WHERE s.id = ? AND s.ended_at IS NULL" + s.ForShare
	query := insertMessage + "WITH new (stamp1, stamp2, stamp3, stamp4) AS (VALUES (?, ?, ?, ?)" + strings.Repeat(", (?, ?, ?, ?)", len(batch)-1) + ") " +
		"SELECT s.id, new.stamp1, new.stamp2, new.stamp3, new.stamp4 FROM sessions s JOIN new" + whereOpen + s.KeepFirst
	return s.Retry(ctx, fmt.Sprintf("insert %d messages of session %d", len(batch), sessionID), func(ctx context.Context, db *sql.DB) error {
		if len(batch) == 1 && s.single.insert(ctx, db, insertMessage+"SELECT s.id, ?, ?, ?, ? FROM sessions s"+whereOpen, args) {
			return nil
		}
		done, err := db.ExecContext(ctx, query, args...)
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == int64(len(batch)) {
			return err
		}
		all, err := s.haveRows(ctx, db, sessionID, batch...)
		if err == nil && !all {
			return ms1.ErrSessionEnded
		}
		return err
	})
}

// Stored implements [ms1.Store].
func (s *Statements) Stored(ctx context.Context, sessionID int64, batch []message.Message) (all bool, err error) {
	err = s.Retry(ctx, fmt.Sprintf("look up %d messages of session %d", len(batch), sessionID), func(ctx context.Context, db *sql.DB) (err error) {
		all, err = s.haveRows(ctx, db, sessionID, batch...)
		return err
	})
	return all, err
}

// haveRows reports whether every message has a row.
func (s *Statements) haveRows(ctx context.Context, c Conn, sessionID int64, batch ...message.Message) (bool, error) {
	keys := map[message.Stamp]bool{}
	args := []any{sessionID}
	for _, m := range batch {
		if !keys[m.Service1] {
			keys[m.Service1] = true
			args = append(args, s.Stamp(m.Service1))
		}
	}
	n, err := count(ctx, c, " AND service1_timestamp IN (?"+strings.Repeat(", ?", len(keys)-1)+")", args...)
	return n == int64(len(keys)), err
}

func count(ctx context.Context, c Conn, and string, args ...any) (n int64, err error) {
	err = c.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages WHERE session_id = ?"+and, args...).Scan(&n)
	return n, err
}

// End implements [ms1.Store]. It counts over fresh connections, so it does not
// count rows that the writing connections have not committed.
func (s *Statements) End(ctx context.Context, sessionID int64, c ms1.Closing) (row ms1.Session, err error) {
	err = s.change(ctx, fmt.Sprintf("end session %d", sessionID), sessionID, s.Fresh, func(ctx context.Context, tx Conn, current ms1.Session) error {
		if row = current; row.EndedAt != 0 {
			return nil
		}
		rows, err := count(ctx, tx, "", sessionID)
		if err != nil {
			return err
		}
		row.Finish(c, rows)
		if err := s.insertLost(ctx, tx, sessionID, c.Lost); err != nil {
			return err
		}
		return s.writeSession(ctx, tx, row)
	})
	return row, err
}

// insertLost adds the lost messages that have no row. The statements are as small
// as those of messages, whatever packets the server takes.
func (s *Statements) insertLost(ctx context.Context, tx Conn, sessionID int64, lost []ms1.LostMessage) error {
	for some := range slices.Chunk(lost, 128) {
		var args []any
		for _, m := range some {
			args = append(args, sessionID, s.Stamp(m.Service1), m.Reason)
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO lost_messages (session_id, service1_timestamp, reason) VALUES (?, ?, ?)"+
			strings.Repeat(", (?, ?, ?)", len(some)-1), args...); err != nil {
			return err
		}
	}
	if len(lost) == 0 {
		return nil
	}
	_, err := tx.ExecContext(ctx, "DELETE FROM lost_messages WHERE session_id = ? AND EXISTS (SELECT 1 FROM messages m "+
		"WHERE m.session_id = lost_messages.session_id AND m.service1_timestamp = lost_messages.service1_timestamp)", sessionID)
	return err
}

// CloseInterrupted implements [ms1.Store].
func (s *Statements) CloseInterrupted(ctx context.Context, at message.Stamp) (closed []ms1.Session, err error) {
	var open []int64
	err = s.Retry(ctx, "find interrupted sessions", func(ctx context.Context, db *sql.DB) (err error) {
		open, err = ReadAll(ctx, db, func(rows *sql.Rows, id *int64) error { return rows.Scan(id) },
			"SELECT id FROM sessions WHERE ended_at IS NULL ORDER BY id")
		return err
	})
	for _, id := range open {
		row, err := s.End(ctx, id, ms1.Closing{EndedAt: at, Reason: ms1.Interrupted})
		if err != nil {
			return closed, err
		}
		closed = append(closed, row)
	}
	return closed, err
}

// Look implements [ms1.Store].
func (s *Statements) Look(ctx context.Context, key message.Key) (row ms1.Session, exists bool, err error) {
	err = s.Retry(ctx, "look up message "+key.String(), func(ctx context.Context, db *sql.DB) (err error) {
		if row, err = readSession(ctx, db, "", key.SessionID); err == nil {
			exists, err = s.haveRows(ctx, db, key.SessionID, message.Message{Service1: key.Service1})
		}
		return err
	})
	return row, exists, err
}

// Amend implements [ms1.Store].
func (s *Statements) Amend(ctx context.Context, m message.Message, decide func(row *ms1.Session, exists bool) bool) error {
	return s.change(ctx, "store late message "+m.Key().String(), m.SessionID, nil, func(ctx context.Context, tx Conn, row ms1.Session) error {
		exists, err := s.haveRows(ctx, tx, m.SessionID, m)
		if err != nil || !decide(&row, exists) {
			return err
		}
		if _, err := tx.ExecContext(ctx, insertMessage+"VALUES (?, ?, ?, ?, ?)",
			m.SessionID, s.Stamp(m.Service1), s.Stamp(m.Service2), s.Stamp(m.Service3), s.Stamp(m.End)); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM lost_messages WHERE session_id = ? AND service1_timestamp = ?",
			m.SessionID, s.Stamp(m.Service1)); err != nil {
			return err
		}
		return s.writeSession(ctx, tx, row)
	})
}

// change calls f in a transaction that holds the session's row, over the
// connections that over returns, unless that is nil.
func (s *Statements) change(ctx context.Context, operation string, id int64, over func(*sql.DB) *sql.DB, f func(ctx context.Context, tx Conn, row ms1.Session) error) error {
	return s.Retry(ctx, operation, func(ctx context.Context, db *sql.DB) error {
		if over != nil {
			db = over(db)
		}
		return s.Transact(ctx, db, func(tx Conn) error {
			row, err := readSession(ctx, tx, s.ForUpdate, id)
			if err != nil {
				return err
			}
			return f(ctx, tx, row)
		})
	})
}

package mariadb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

const (
	selectSession = "SELECT id, started_at, ended_at, interval_seconds, in_flight, generated, stored, resent, duplicates, lost, end_reason FROM sessions "
	updateSession = "UPDATE sessions SET ended_at = ?, generated = ?, stored = ?, resent = ?, duplicates = ?, lost = ?, end_reason = ? WHERE id = ?"
	insertMessage = "INSERT INTO messages (session_id, service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp) "
)

func scanSession(row *sql.Row) (ms1.Session, error) {
	var s ms1.Session
	var started, ended sql.NullTime
	err := row.Scan(&s.ID, &started, &ended, &s.IntervalSeconds, &s.InFlight,
		&s.Generated, &s.Stored, &s.Resent, &s.Duplicates, &s.Lost, &s.EndReason)
	if errors.Is(err, sql.ErrNoRows) {
		return s, ms1.ErrNoSession
	}
	s.StartedAt = message.StampOf(started.Time)
	if ended.Valid {
		s.EndedAt = message.StampOf(ended.Time)
	}
	return s, err
}

func writeSession(ctx context.Context, tx *sql.Conn, s ms1.Session) error {
	_, err := tx.ExecContext(ctx, updateSession,
		s.EndedAt.Time(), s.Generated, s.Stored, s.Resent, s.Duplicates, s.Lost, s.EndReason, s.ID)
	return err
}

// Session implements [ms1.Store].
func (s *Store) Session(ctx context.Context, id int64) (ms1.Session, error) {
	return s.read(ctx, fmt.Sprintf("reading session %d", id), "WHERE id = ?", id)
}

// LostMessages implements [ms1.Store].
func (s *Store) LostMessages(ctx context.Context, id int64, limit int) (named []ms1.LostMessage, err error) {
	err = s.repeat(ctx, fmt.Sprintf("reading the lost messages of session %d", id), func(ctx context.Context, db *sql.DB) error {
		named = nil
		rows, err := db.QueryContext(ctx, "SELECT service1_timestamp, reason FROM lost_messages WHERE session_id = ? ORDER BY service1_timestamp LIMIT ?", id, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var service1 sql.NullTime
			var m ms1.LostMessage
			if err := rows.Scan(&service1, &m.Reason); err != nil {
				return err
			}
			m.Service1 = message.StampOf(service1.Time)
			named = append(named, m)
		}
		return rows.Err()
	})
	return named, err
}

// LastSession implements [ms1.Store].
func (s *Store) LastSession(ctx context.Context) (ms1.Session, error) {
	return s.read(ctx, "reading the last session", "ORDER BY id DESC LIMIT 1")
}

func (s *Store) read(ctx context.Context, doing, where string, args ...any) (row ms1.Session, err error) {
	err = s.repeat(ctx, doing, func(ctx context.Context, db *sql.DB) (err error) {
		row, err = scanSession(db.QueryRowContext(ctx, selectSession+where, args...))
		return err
	})
	return row, err
}

// Begin implements [ms1.Store].
func (s *Store) Begin(ctx context.Context, o ms1.Opening) (id int64, err error) {
	tried := false
	err = s.repeat(ctx, "opening a session", func(ctx context.Context, db *sql.DB) error {
		if tried { // and perhaps done: only the answer may have been lost
			err := db.QueryRowContext(ctx, "SELECT id FROM sessions WHERE started_at = ? AND ended_at IS NULL ORDER BY id DESC LIMIT 1 LOCK IN SHARE MODE",
				o.StartedAt.Time()).Scan(&id)
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		tried = true
		done, err := db.ExecContext(ctx, "INSERT INTO sessions (started_at, interval_seconds, in_flight) VALUES (?, ?, ?)",
			o.StartedAt.Time(), o.IntervalSeconds, o.InFlight)
		if err != nil {
			return err
		}
		id, err = done.LastInsertId()
		return err
	})
	return id, err
}

// Insert implements [ms1.Store]. It is one statement, which holds a shared
// lock on the session's row until it has committed.
func (s *Store) Insert(ctx context.Context, sessionID int64, batch []message.Message) error {
	if len(batch) == 0 {
		return nil
	}
	rows := make([]any, 0, 4*len(batch)+1)
	for _, m := range batch {
		rows = append(rows, m.Service1.Time(), m.Service2.Time(), m.Service3.Time(), m.End.Time())
	}
	rows = append(rows, sessionID)
	query := insertMessage + "WITH new (service1, service2, service3, end) AS (VALUES (?, ?, ?, ?)" +
		strings.Repeat(", (?, ?, ?, ?)", len(batch)-1) + ") " +
		"SELECT s.id, new.service1, new.service2, new.service3, new.end FROM sessions s JOIN new " +
		"WHERE s.id = ? AND s.ended_at IS NULL LOCK IN SHARE MODE " +
		"ON DUPLICATE KEY UPDATE session_id = messages.session_id"
	return s.repeat(ctx, fmt.Sprintf("storing %d messages of session %d", len(batch), sessionID), func(ctx context.Context, db *sql.DB) error {
		done, err := db.ExecContext(ctx, query, rows...)
		if err != nil {
			return err
		}
		// With ClientFoundRows a row that was there already counts as well.
		if n, err := done.RowsAffected(); err != nil || n == int64(len(batch)) {
			return err
		}
		return s.stored(ctx, db, sessionID, batch)
	})
}

// stored returns ErrSessionEnded unless every message has a row.
func (s *Store) stored(ctx context.Context, db *sql.DB, sessionID int64, batch []message.Message) error {
	keys := map[message.Stamp]bool{}
	args := []any{sessionID}
	for _, m := range batch {
		if !keys[m.Service1] {
			keys[m.Service1] = true
			args = append(args, m.Service1.Time())
		}
	}
	var n int
	err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages WHERE session_id = ? AND service1_timestamp IN (?"+
		strings.Repeat(", ?", len(keys)-1)+")", args...).Scan(&n)
	if err == nil && n < len(keys) {
		return ms1.ErrSessionEnded
	}
	return err
}

// End implements [ms1.Store]. It counts over a new connection, so that rows
// which the writing connections have not committed are not counted.
func (s *Store) End(ctx context.Context, sessionID int64, c ms1.Closing) (row ms1.Session, err error) {
	err = s.change(ctx, fmt.Sprintf("ending session %d", sessionID), sessionID, true, func(ctx context.Context, tx *sql.Conn, found ms1.Session) error {
		if row = found; row.EndedAt != 0 {
			return nil
		}
		var rows int64
		if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages WHERE session_id = ?", sessionID).Scan(&rows); err != nil {
			return err
		}
		row.Finish(c, rows)
		if err := nameLost(ctx, tx, sessionID, c.Lost); err != nil {
			return err
		}
		return writeSession(ctx, tx, row)
	})
	return row, err
}

// nameLost adds the lost messages that have no row.
func nameLost(ctx context.Context, tx *sql.Conn, sessionID int64, named []ms1.LostMessage) error {
	if len(named) == 0 {
		return nil
	}
	var args []any
	for _, m := range named {
		args = append(args, sessionID, m.Service1.Time(), m.Reason)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO lost_messages (session_id, service1_timestamp, reason) VALUES (?, ?, ?)"+
		strings.Repeat(", (?, ?, ?)", len(named)-1), args...); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "DELETE l FROM lost_messages l JOIN messages m USING (session_id, service1_timestamp) WHERE l.session_id = ?", sessionID)
	return err
}

// CloseInterrupted implements [ms1.Store].
func (s *Store) CloseInterrupted(ctx context.Context, at message.Stamp) (closed []ms1.Session, err error) {
	var open []int64
	err = s.repeat(ctx, "looking for interrupted sessions", func(ctx context.Context, db *sql.DB) error {
		open = nil
		rows, err := db.QueryContext(ctx, "SELECT id FROM sessions WHERE ended_at IS NULL ORDER BY id")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int64
			if err := rows.Scan(&id); err != nil {
				return err
			}
			open = append(open, id)
		}
		return rows.Err()
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
func (s *Store) Look(ctx context.Context, key message.Key) (row ms1.Session, exists bool, err error) {
	err = s.repeat(ctx, "looking for message "+key.String(), func(ctx context.Context, db *sql.DB) (err error) {
		if row, err = scanSession(db.QueryRowContext(ctx, selectSession+"WHERE id = ?", key.SessionID)); err != nil {
			return err
		}
		exists, err = hasRow(ctx, db, key)
		return err
	})
	return row, exists, err
}

// querier is a database or a connection.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func hasRow(ctx context.Context, q querier, key message.Key) (exists bool, err error) {
	err = q.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages WHERE session_id = ? AND service1_timestamp = ?",
		key.SessionID, key.Service1.Time()).Scan(&exists)
	return exists, err
}

// Amend implements [ms1.Store].
func (s *Store) Amend(ctx context.Context, m message.Message, decide func(row *ms1.Session, exists bool) bool) error {
	return s.change(ctx, "storing late message "+m.Key().String(), m.SessionID, false, func(ctx context.Context, tx *sql.Conn, row ms1.Session) error {
		exists, err := hasRow(ctx, tx, m.Key())
		if err != nil || !decide(&row, exists) {
			return err
		}
		if _, err := tx.ExecContext(ctx, insertMessage+"VALUES (?, ?, ?, ?, ?)",
			m.SessionID, m.Service1.Time(), m.Service2.Time(), m.Service3.Time(), m.End.Time()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM lost_messages WHERE session_id = ? AND service1_timestamp = ?",
			m.SessionID, m.Service1.Time()); err != nil {
			return err
		}
		return writeSession(ctx, tx, row)
	})
}

// change runs f in a transaction that holds the session's row for itself, over
// a new connection if fresh is set.
func (s *Store) change(ctx context.Context, doing string, id int64, fresh bool, f func(ctx context.Context, tx *sql.Conn, row ms1.Session) error) error {
	return s.repeat(ctx, doing, func(ctx context.Context, db *sql.DB) error {
		if fresh {
			db.SetMaxIdleConns(0) // closes them; no connection more is needed for that
			db.SetMaxIdleConns(maxOpen)
		}
		return transact(ctx, db, func(tx *sql.Conn) error {
			row, err := scanSession(tx.QueryRowContext(ctx, selectSession+"WHERE id = ? FOR UPDATE", id))
			if err != nil {
				return err
			}
			return f(ctx, tx, row)
		})
	})
}

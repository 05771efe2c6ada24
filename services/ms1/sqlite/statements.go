package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

const (
	selectSession = "SELECT id, started_at, ended_at, interval_seconds, in_flight, generated, stored, resent, duplicates, lost, end_reason FROM sessions "
	updateSession = "UPDATE sessions SET ended_at = ?, generated = ?, stored = ?, resent = ?, duplicates = ?, lost = ?, end_reason = ? WHERE id = ?"
	insertMessage = "INSERT INTO messages (session_id, service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp) "
)

// querier is a database or a transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func session(ctx context.Context, q querier, where string, args ...any) (ms1.Session, error) {
	var s ms1.Session
	var started, ended sql.NullString
	err := q.QueryRowContext(ctx, selectSession+where, args...).Scan(&s.ID, &started, &ended, &s.IntervalSeconds, &s.InFlight,
		&s.Generated, &s.Stored, &s.Resent, &s.Duplicates, &s.Lost, &s.EndReason)
	if errors.Is(err, sql.ErrNoRows) {
		return s, ms1.ErrNoSession
	}
	if err == nil {
		s.StartedAt, err = stamp(started)
	}
	if err == nil {
		s.EndedAt, err = stamp(ended)
	}
	return s, err
}

func stamp(s sql.NullString) (message.Stamp, error) {
	if !s.Valid {
		return 0, nil
	}
	t, err := time.Parse(message.Layout, s.String)
	return message.StampOf(t), err
}

func writeSession(ctx context.Context, tx *sql.Tx, s ms1.Session) error {
	_, err := tx.ExecContext(ctx, updateSession,
		s.EndedAt.String(), s.Generated, s.Stored, s.Resent, s.Duplicates, s.Lost, s.EndReason, s.ID)
	return err
}

// Session implements [ms1.Store].
func (s *Store) Session(ctx context.Context, id int64) (row ms1.Session, err error) {
	err = s.repeat(ctx, fmt.Sprintf("reading session %d", id), func() (err error) {
		row, err = session(ctx, s.db, "WHERE id = ?", id)
		return err
	})
	return row, err
}

// LostMessages implements [ms1.Store].
func (s *Store) LostMessages(ctx context.Context, id int64, limit int) (named []ms1.LostMessage, err error) {
	err = s.repeat(ctx, fmt.Sprintf("reading the lost messages of session %d", id), func() error {
		named = nil
		rows, err := s.db.QueryContext(ctx, "SELECT service1_timestamp, reason FROM lost_messages WHERE session_id = ? ORDER BY service1_timestamp LIMIT ?", id, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var m ms1.LostMessage
			var service1 sql.NullString
			err := rows.Scan(&service1, &m.Reason)
			if err == nil {
				m.Service1, err = stamp(service1)
			}
			if err != nil {
				return err
			}
			named = append(named, m)
		}
		return rows.Err()
	})
	return named, err
}

// LastSession implements [ms1.Store].
func (s *Store) LastSession(ctx context.Context) (row ms1.Session, err error) {
	err = s.repeat(ctx, "reading the last session", func() (err error) {
		row, err = session(ctx, s.db, "ORDER BY id DESC LIMIT 1")
		return err
	})
	return row, err
}

// Begin implements [ms1.Store].
func (s *Store) Begin(ctx context.Context, o ms1.Opening) (id int64, err error) {
	err = s.change(ctx, "opening a session", func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, "INSERT INTO sessions (started_at, interval_seconds, in_flight) VALUES (?, ?, ?)",
			o.StartedAt.String(), o.IntervalSeconds, o.InFlight)
		if err != nil {
			return err
		}
		id, err = done.LastInsertId()
		return err
	})
	return id, err
}

// Insert implements [ms1.Store].
func (s *Store) Insert(ctx context.Context, sessionID int64, batch []message.Message) error {
	return s.change(ctx, fmt.Sprintf("storing %d messages of session %d", len(batch), sessionID), func(tx *sql.Tx) error {
		// In a session that is not open every row must be there already; the
		// statement adds none then, and the first that is missing ends it.
		insert, err := tx.PrepareContext(ctx, insertMessage+"SELECT id, ?, ?, ?, ? FROM sessions WHERE id = ? AND ended_at IS NULL "+
			"ON CONFLICT (session_id, service1_timestamp) DO NOTHING")
		if err != nil {
			return err
		}
		defer insert.Close()
		for _, m := range batch {
			done, err := insert.ExecContext(ctx, m.Service1.String(), m.Service2.String(), m.Service3.String(), m.End.String(), sessionID)
			if err != nil {
				return err
			}
			if n, err := done.RowsAffected(); err != nil {
				return err
			} else if n > 0 {
				continue
			}
			if n, err := count(ctx, tx, "session_id = ? AND service1_timestamp = ?", sessionID, m.Service1.String()); err != nil {
				return err
			} else if n == 0 {
				return ms1.ErrSessionEnded
			}
		}
		return nil
	})
}

// End implements [ms1.Store]. It counts over another connection, which sees
// only what the first has committed.
func (s *Store) End(ctx context.Context, sessionID int64, c ms1.Closing) (row ms1.Session, err error) {
	err = s.changeOver(ctx, s.other, fmt.Sprintf("ending session %d", sessionID), func(tx *sql.Tx) (err error) {
		row, err = session(ctx, tx, "WHERE id = ?", sessionID)
		if err != nil || row.EndedAt != 0 {
			return err
		}
		return finish(ctx, tx, &row, c)
	})
	return row, err
}

// CloseInterrupted implements [ms1.Store].
func (s *Store) CloseInterrupted(ctx context.Context, at message.Stamp) (closed []ms1.Session, err error) {
	err = s.change(ctx, "closing interrupted sessions", func(tx *sql.Tx) error {
		closed = nil
		for {
			row, err := session(ctx, tx, "WHERE ended_at IS NULL ORDER BY id LIMIT 1")
			if errors.Is(err, ms1.ErrNoSession) {
				return nil
			}
			if err == nil {
				err = finish(ctx, tx, &row, ms1.Closing{EndedAt: at, Reason: ms1.Interrupted})
			}
			if err != nil {
				return err
			}
			closed = append(closed, row)
		}
	})
	if err != nil {
		return nil, err
	}
	return closed, nil
}

func finish(ctx context.Context, tx *sql.Tx, row *ms1.Session, c ms1.Closing) error {
	n, err := count(ctx, tx, "session_id = ?", row.ID)
	if err != nil {
		return err
	}
	row.Finish(c, n)
	for _, m := range c.Lost {
		if _, err := tx.ExecContext(ctx, "INSERT INTO lost_messages (session_id, service1_timestamp, reason) SELECT ?1, ?2, ?3 "+
			"WHERE NOT EXISTS (SELECT 1 FROM messages WHERE session_id = ?1 AND service1_timestamp = ?2)",
			row.ID, m.Service1.String(), m.Reason); err != nil {
			return err
		}
	}
	return writeSession(ctx, tx, *row)
}

// Look implements [ms1.Store].
func (s *Store) Look(ctx context.Context, key message.Key) (row ms1.Session, exists bool, err error) {
	err = s.repeat(ctx, "looking for message "+key.String(), func() (err error) {
		row, exists, err = look(ctx, s.db, key)
		return err
	})
	return row, exists, err
}

func look(ctx context.Context, q querier, key message.Key) (row ms1.Session, exists bool, err error) {
	if row, err = session(ctx, q, "WHERE id = ?", key.SessionID); err != nil {
		return row, false, err
	}
	err = q.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM messages WHERE session_id = ? AND service1_timestamp = ?)",
		key.SessionID, key.Service1.String()).Scan(&exists)
	return row, exists, err
}

// Amend implements [ms1.Store].
func (s *Store) Amend(ctx context.Context, m message.Message, decide func(row *ms1.Session, exists bool) bool) error {
	return s.change(ctx, "storing late message "+m.Key().String(), func(tx *sql.Tx) error {
		row, exists, err := look(ctx, tx, m.Key())
		if err != nil || !decide(&row, exists) {
			return err
		}
		if _, err := tx.ExecContext(ctx, insertMessage+"VALUES (?, ?, ?, ?, ?)",
			m.SessionID, m.Service1.String(), m.Service2.String(), m.Service3.String(), m.End.String()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM lost_messages WHERE session_id = ? AND service1_timestamp = ?",
			m.SessionID, m.Service1.String()); err != nil {
			return err
		}
		return writeSession(ctx, tx, row)
	})
}

func count(ctx context.Context, tx *sql.Tx, where string, args ...any) (n int64, err error) {
	err = tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages WHERE "+where, args...).Scan(&n)
	return n, err
}

// change runs f in a transaction that has the file for itself from its begin.
func (s *Store) change(ctx context.Context, doing string, f func(tx *sql.Tx) error) error {
	return s.changeOver(ctx, s.db, doing, f)
}

func (s *Store) changeOver(ctx context.Context, db *sql.DB, doing string, f func(tx *sql.Tx) error) error {
	return s.repeat(ctx, doing, func() error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // of nothing, after the commit
		if err := f(tx); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		return s.inPlace()
	})
}

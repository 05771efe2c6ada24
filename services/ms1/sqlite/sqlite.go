// Package sqlite stores sessions and messages in a file, for a machine without a
// database server.
//
// Any SQLite tool can open the file at any time, also while the program runs: in
// WAL mode readers and the writer do not block each other. A second file, PATH.lock,
// keeps a second program out. It is a database that is never written and stays
// exclusively locked. This lock works on every system of SQLite, and a crash
// releases it. A commit survives the death of the program; a power failure may
// lose the last ones (synchronous=NORMAL).
//
// The open file can be deleted, or its directory replaced or unmounted. Commits
// would then be lost. Before and after each transaction the store therefore checks
// that its path still leads to the files that it has open.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/rs/zerolog"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/private"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlstore"
)

//go:embed migrations/*.sql
var migrations embed.FS

// lockWait is the time for another program to end and release the lock.
const lockWait = 2 * time.Second

var (
	errStarting = errors.New("database file is not open yet")
	errClosed   = errors.New("store is closed")
)

// Store is an [ms1.Store] in a SQLite file. Its methods can be called at any
// time and from many goroutines; they wait for Run to open the file.
type Store struct {
	sqlstore.Statements
	path  string
	log   zerolog.Logger
	db    *sql.DB // one connection: writers queue here instead of at the file's lock
	other *sql.DB // another connection, which does not write messages but counts them
	reads *sql.DB // a third connection, for reads that take long
	files []fs.FileInfo
	ready chan struct{}
	ended chan struct{}

	walLimit int64         // bytes
	walEvery time.Duration // between two checks of the size
}

// suffixes are those of the files of a database.
var suffixes = []string{"", "-wal", "-shm"}

// Open returns a store in the file, which Run creates if need be; its directory
// must exist.
func Open(path string, log zerolog.Logger) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		path: path, log: log, ready: make(chan struct{}), ended: make(chan struct{}),
		walLimit: 64 << 20, walEvery: 10 * time.Second,
	}
	for _, db := range []**sql.DB{&s.db, &s.other, &s.reads} {
		*db, err = open(path,
			"_txlock=immediate", "_pragma=busy_timeout(250)", "_pragma=journal_mode(WAL)",
			"_pragma=synchronous(NORMAL)", "_pragma=foreign_keys(1)")
		if err != nil {
			return nil, err
		}
	}
	s.Statements = sqlstore.Statements{
		Stamp:     func(s message.Stamp) any { return s.String() },
		KeepFirst: " ON CONFLICT DO NOTHING",
		Round:     micros("end_timestamp") + " - " + micros("service1_timestamp"),
		Retry:     s.retry, Transact: transact,
		Fresh:   func(*sql.DB) *sql.DB { return s.other },
		Readers: func(*sql.DB) *sql.DB { return s.reads },
	}
	return s, nil
}

// micros returns the expression for a column of stamps in microseconds since
// 1970.
func micros(column string) string {
	return fmt.Sprintf("(unixepoch(substr(%s, 1, 19)) * 1000000 + substr(%[1]s, 21, 6))", column)
}

// open returns a pool of one connection, which is opened when it is needed.
func open(path string, options ...string) (*sql.DB, error) {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // a Windows drive: file:///C:/…
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: strings.Join(options, "&")}).String())
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// System implements [ms1.Store].
func (s *Store) System() string { return "sqlite" }

// Run implements [ms1.Store]. It can be called once.
func (s *Store) Run(ctx context.Context) error {
	defer close(s.ended)
	defer s.db.Close()
	defer s.other.Close()
	defer s.reads.Close()
	unlock, err := Lock(ctx, s.path+".lock")
	if err != nil {
		return fmt.Errorf("lock database %s: %w", s.path, err)
	}
	defer unlock()
	if err := s.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("open database %s: %w", s.path, err)
	}
	close(s.ready)
	s.log.Info().Str("file", s.path).Msg("database is ready")
	s.watchLog(ctx)
	// A running statement has the only connection; the file is closed after it.
	for _, db := range []*sql.DB{s.reads, s.other, s.db} {
		conn, inUse := db.Conn(context.WithoutCancel(ctx))
		if inUse == nil {
			inUse = conn.Close()
		}
		err = errors.Join(err, inUse, db.Close())
	}
	return err
}

// prepare opens the file, brings its schema up to date and remembers which
// files these are.
func (s *Store) prepare(ctx context.Context) error {
	if err := private.File(s.path); err != nil {
		return err
	}
	for _, suffix := range suffixes {
		if err := private.Restrict(s.path + suffix); err != nil {
			return err
		}
	}
	if err := sqlstore.Migrate(ctx, goose.DialectSQLite3, s.db, migrations); err != nil {
		return err
	}
	for _, db := range []*sql.DB{s.db, s.other, s.reads} {
		if err := verify(ctx, db); err != nil {
			return err
		}
	}
	for _, suffix := range suffixes {
		info, err := os.Stat(s.path + suffix)
		if err != nil {
			return err
		}
		s.files = append(s.files, info)
	}
	return nil
}

// verify reads back the settings that the store relies on. SQLite ignores some
// that it cannot have: the file system may not support WAL mode.
func verify(ctx context.Context, db *sql.DB) error {
	for _, setting := range []struct{ name, want string }{
		{"journal_mode", "wal"}, {"synchronous", "1"}, {"foreign_keys", "1"}, {"locking_mode", "normal"}, {"query_only", "0"},
	} {
		var got string
		if err := db.QueryRowContext(ctx, "PRAGMA "+setting.name).Scan(&got); err != nil {
			return err
		}
		if got != setting.want {
			return fmt.Errorf("%s: must be %s, got %s", setting.name, setting.want, got)
		}
	}
	return nil
}

// watchLog keeps the write-ahead log short until ctx is cancelled. A reader that
// does not end keeps it from being truncated: its size is reported then.
func (s *Store) watchLog(ctx context.Context) {
	look := time.NewTicker(s.walEvery)
	defer look.Stop()
	for reported := int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		size := s.logSize()
		if size <= s.walLimit {
			reported = 0
			continue
		}
		_, err := s.other.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
		if size = s.logSize(); size > s.walLimit && size >= 2*reported && ctx.Err() == nil {
			reported = size
			s.log.Warn().AnErr("error", err).Str("file", s.path+"-wal").Int64("size_bytes", size).Msg("a reader keeps the log growing")
		}
	}
}

func (s *Store) logSize() int64 {
	info, err := os.Stat(s.path + "-wal")
	if err != nil {
		return 0
	}
	return info.Size()
}

// Lock locks the file, which it creates if need be, for this program alone until
// unlock is called or the program ends. Another program that holds the lock gets
// two seconds to end.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	db, err := open(path, "_txlock=exclusive", fmt.Sprintf("_pragma=busy_timeout(%d)", lockWait.Milliseconds()))
	if err != nil {
		return nil, err
	}
	if err := private.File(path); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), db.Close())
	}
	// The transaction keeps the only connection as long as the file is locked.
	tx, err := db.BeginTx(context.WithoutCancel(ctx), nil)
	if err == nil {
		return func() {
			_ = tx.Rollback()
			_ = db.Close()
		}, nil
	}
	db.Close()
	if code(err) == sqlite3.SQLITE_BUSY {
		err = private.ErrLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// Ready implements [ms1.Store].
func (s *Store) Ready(context.Context) error {
	select {
	case <-s.ended:
		return errClosed
	default:
	}
	select {
	case <-s.ready:
		return s.inPlace()
	default:
		return errStarting
	}
}

// inPlace returns an error if the path of a file leads to another one than that
// which is open.
func (s *Store) inPlace() error {
	for i, suffix := range suffixes {
		now, err := os.Stat(s.path + suffix)
		if err != nil {
			return fmt.Errorf("database file is gone: %w", err)
		}
		if !os.SameFile(now, s.files[i]) {
			return fmt.Errorf("database file was replaced: %s", s.path+suffix)
		}
	}
	return nil
}

// retry calls try until it succeeds, fails permanently or ctx ends, and returns
// the last error of the database then. The files must be in place before and
// after.
func (s *Store) retry(ctx context.Context, operation string, try func(context.Context, *sql.DB) error) error {
	backoff := retry.Backoff{First: 10 * time.Millisecond, Most: 500 * time.Millisecond}
	var last error
	for {
		err := s.Ready(ctx)
		if err == nil {
			err = try(ctx, s.db)
		}
		if err == nil {
			err = s.inPlace()
		}
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // else the attempt was cut short, and an earlier error tells more
			last = err
		}
		if permanent(err) || backoff.Wait(ctx) != nil {
			return fmt.Errorf("%s: %w", operation, last)
		}
	}
}

// transact calls f in a transaction that holds the file's lock.
func transact(ctx context.Context, db *sql.DB, f func(tx sqlstore.Conn) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // of nothing, after the commit
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// permanent reports whether another attempt would fail as well.
func permanent(err error) bool {
	switch code(err) {
	case sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR:
		return true
	}
	return errors.Is(err, errClosed) || errors.Is(err, ms1.ErrSessionEnded) || errors.Is(err, ms1.ErrNoSession)
}

// code returns SQLite's primary result code, 0 if there is none.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

package sqlite_test

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Database {
		path := filepath.Join(t.TempDir(), "tricycle.db")
		return storetest.Database{
			Open: func(t *testing.T) ms1.Store { return open(t, path) },
			DB:   look(t, path),
			Wire: func(column string) string { return column },
		}
	})
}

func open(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(path, zerolog.Nop())
	servicetest.NoError(t, err)
	return s
}

// look opens the file as another program would that reads it at any time.
func look(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", (&url.URL{
		Scheme: "file", Path: filepath.ToSlash(path), RawQuery: "_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)",
	}).String())
	servicetest.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// refused runs a store that cannot start.
func refused(t *testing.T, path string) string {
	t.Helper()
	s := open(t, path)
	ctx := servicetest.Context(t, 10*time.Second)
	err := s.Run(ctx)
	if err == nil || ctx.Err() != nil {
		t.Fatalf("Run: got %v, want an error at once", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("got %q, want one line", err)
	}
	return err.Error()
}

func TestFilesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		path func(t *testing.T) string
		want string
	}{
		{"no such directory", func(t *testing.T) string {
			return filepath.Join(t.TempDir(), "missing", "tricycle.db")
		}, "lock database "},
		{"the directory is a file", func(t *testing.T) string {
			return filepath.Join(servicetest.File(t, "file", "text"), "tricycle.db")
		}, "lock database "},
		{"not a database", func(t *testing.T) string {
			return servicetest.File(t, "tricycle.db", strings.Repeat("not a database ", 100))
		}, "file is not a database"},
		{"a directory", func(t *testing.T) string { return t.TempDir() }, "open database "},
		{"a newer schema", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "tricycle.db")
			storetest.Start(t, open(t, path))()
			if _, err := look(t, path).Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)"); err != nil {
				t.Fatal(err)
			}
			return path
		}, "schema version: must be at most 2, got 99"},
		{"used by another program", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "tricycle.db")
			storetest.Start(t, open(t, path))
			return path
		}, "tricycle.db.lock: locked by another program"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path(t)
			if got := refused(t, path); !strings.Contains(got, c.want) || !strings.Contains(got, path) {
				t.Errorf("got %q, want %q and the path %s", got, c.want, path)
			}
		})
	}
}

func TestNamesOfFiles(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	for _, name := range []string{"with space.db", "a%20b.db", "q?u=e&r#y.db", "велосипед.db"} {
		path := filepath.Join(directory, name)
		storetest.Start(t, open(t, path))()
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestOtherPrograms(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tricycle.db")
	s := open(t, path)
	storetest.Start(t, s)
	ctx := servicetest.Context(t, 20*time.Second)
	id := storetest.Begin(t, ctx, s)
	other, err := look(t, path).Conn(ctx)
	servicetest.NoError(t, err)
	defer other.Close()
	exec := func(query string) {
		t.Helper()
		if _, err := other.ExecContext(ctx, query); err != nil {
			t.Fatal(err)
		}
	}
	insert := func(ctx context.Context, n int) error {
		return s.Insert(ctx, id, []message.Message{storetest.Message(id, n)})
	}

	t.Run("a reader stops nobody, and sees one state", func(t *testing.T) {
		exec("BEGIN")
		for n := range 3 {
			var rows int
			if err := other.QueryRowContext(ctx, "SELECT COUNT(*) FROM messages").Scan(&rows); err != nil || rows != 0 {
				t.Errorf("got %d rows, %v, want those of the reader's begin, none", rows, err)
			}
			if err := insert(ctx, n); err != nil {
				t.Errorf("Insert: %v", err)
			}
		}
		exec("COMMIT")
	})
	t.Run("a writer is waited for", func(t *testing.T) {
		exec("BEGIN IMMEDIATE")
		servicetest.Fails(t, time.Second, "database is locked", func(ctx context.Context) error { return insert(ctx, 5) })
		done := make(chan error, 1)
		go func() { done <- insert(ctx, 6) }()
		exec("COMMIT")
		servicetest.NoError(t, <-done)
	})
	t.Run("a stamp that is none", func(t *testing.T) {
		exec("UPDATE sessions SET started_at = 'yesterday'")
		servicetest.Fails(t, 100*time.Millisecond, `"yesterday"`, func(ctx context.Context) error {
			_, err := s.Session(ctx, id)
			return err
		})
	})
	t.Run("a table that is gone", func(t *testing.T) {
		exec("DROP TABLE messages")
		if err := insert(ctx, 7); err == nil || ctx.Err() != nil {
			t.Errorf("got error %v, want one at once", err)
		}
	})
}

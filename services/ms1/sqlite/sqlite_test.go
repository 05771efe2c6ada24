package sqlite_test

import (
	"database/sql"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
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
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// look opens the file as another program would that reads it at any time.
func look(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", (&url.URL{
		Scheme: "file", Path: filepath.ToSlash(path), RawQuery: "_pragma=foreign_keys(1)&_pragma=busy_timeout(5000)",
	}).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

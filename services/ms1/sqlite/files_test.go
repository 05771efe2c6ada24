package sqlite

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

// running is a store whose file is DIR/data/tricycle.db.
func running(t *testing.T, log zerolog.Logger) (s *Store, directory string) {
	t.Helper()
	directory = filepath.Join(t.TempDir(), "data")
	servicetest.NoError(t, os.Mkdir(directory, 0o755))
	s, err := Open(filepath.Join(directory, "tricycle.db"), log)
	servicetest.NoError(t, err)
	s.walLimit, s.walEvery = 1<<20, 10*time.Millisecond
	storetest.Start(t, s)
	return s, directory
}

func TestFilesThatAreNotThereAnyMore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ lose, restore func(directory string) error }{
		"the database is deleted": {func(directory string) error { return os.Remove(filepath.Join(directory, "tricycle.db")) }, nil},
		"its log is deleted":      {func(directory string) error { return os.Remove(filepath.Join(directory, "tricycle.db-wal")) }, nil},
		"its index is replaced": {func(directory string) error {
			path := filepath.Join(directory, "tricycle.db-shm")
			return os.Rename(path+".new", path)
		}, nil},
		"the directory is deleted": {os.RemoveAll, nil},
		"the directory is renamed": {
			func(directory string) error { return os.Rename(directory, directory+".away") },
			func(directory string) error { return os.Rename(directory+".away", directory) },
		},
		"the directory is another one": {
			func(directory string) error {
				if err := os.Rename(directory, directory+".away"); err != nil {
					return err
				}
				return os.CopyFS(directory, os.DirFS(directory+".away"))
			},
			func(directory string) error {
				if err := os.RemoveAll(directory); err != nil {
					return err
				}
				return os.Rename(directory+".away", directory)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, directory := running(t, zerolog.Nop())
			servicetest.File(t, filepath.Join(directory, "tricycle.db-shm.new"), "")
			id := storetest.Begin(t, t.Context(), s)
			servicetest.NoError(t, s.Insert(t.Context(), id, []message.Message{storetest.Message(id, 0)}))
			servicetest.NoError(t, c.lose(directory))
			closing := ms1.Closing{EndedAt: storetest.Message(1, 9).Service1, Generated: 2, Reason: ms1.Stopped}
			for _, method := range []func(context.Context) error{
				s.Ready,
				func(ctx context.Context) error { _, err := s.End(ctx, id, closing); return err },
				func(ctx context.Context) error { return s.Insert(ctx, id, []message.Message{storetest.Message(id, 1)}) },
			} {
				servicetest.Fails(t, 100*time.Millisecond, "database file ", method)
			}
			if c.restore == nil {
				return
			}
			servicetest.NoError(t, c.restore(directory))
			servicetest.NoError(t, s.Insert(t.Context(), id, []message.Message{storetest.Message(id, 1)}))
			if got, err := s.End(t.Context(), id, closing); err != nil || *got.Stored != 2 {
				t.Errorf("got %+v, %v, want two rows", got, err)
			}
		})
	}
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	t.Parallel()
	s, directory := running(t, zerolog.Nop())
	for _, suffix := range append(suffixes, ".lock") {
		if info, err := os.Lstat(s.path + suffix); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, expected mode 600", suffix, info.Mode(), err)
		}
	}
	for _, suffix := range append(suffixes, ".lock") {
		path := filepath.Join(directory, "another.db")
		_ = os.Remove(path + suffix) // of the turn before
		servicetest.NoError(t, os.Symlink(filepath.Join(directory, "target"), path+suffix))
		linked, err := Open(path, zerolog.Nop())
		servicetest.NoError(t, err)
		if err := linked.Run(servicetest.Context(t, 5*time.Second)); err == nil || !strings.Contains(err.Error(), path+suffix+": must be a file, got a symbolic link") {
			t.Errorf("%s: got %v, want that it is a link", suffix, err)
		}
		servicetest.NoError(t, os.Remove(path+suffix))
	}
}

func TestSettingsAreReadBack(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]string{
		"_pragma=journal_mode(DELETE)": "journal_mode: must be wal, got delete",
		"_pragma=synchronous(OFF)":     "synchronous: must be 1, got 0",
		"_pragma=foreign_keys(0)":      "foreign_keys: must be 1, got 0",
		"_pragma=query_only(1)":        "query_only: must be 0, got 1",
	} {
		options := []string{option}
		for _, right := range []string{"_pragma=journal_mode(WAL)", "_pragma=synchronous(NORMAL)", "_pragma=foreign_keys(1)"} {
			if name, _, _ := strings.Cut(right, "("); !strings.HasPrefix(option, name) {
				options = append(options, right)
			}
		}
		db, err := open(filepath.Join(t.TempDir(), "tricycle.db"), options...)
		servicetest.NoError(t, err)
		if err := verify(t.Context(), db); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		db.Close()
	}
}

func TestAReaderThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	said := &servicetest.Console{}
	s, _ := running(t, zerolog.New(said))
	id := storetest.Begin(t, t.Context(), s)
	reader, err := open(s.path, "mode=ro")
	servicetest.NoError(t, err)
	defer reader.Close()
	tx, err := reader.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
	servicetest.NoError(t, err)
	servicetest.NoError(t, tx.QueryRow("SELECT COUNT(*) FROM messages").Scan(new(int)))
	n := 0
	servicetest.Eventually(t, 20*time.Second, "the log grows", func() bool {
		batch := make([]message.Message, 1000)
		for i := range batch {
			n++
			batch[i] = storetest.Message(id, n)
		}
		servicetest.NoError(t, s.Insert(t.Context(), id, batch))
		return s.logSize() > s.walLimit
	})
	servicetest.Eventually(t, 20*time.Second, "the size is reported", func() bool {
		return said.Has(`"size_bytes":`) && said.Has("a reader keeps the log growing")
	})
	servicetest.NoError(t, tx.Rollback())
	servicetest.Eventually(t, 20*time.Second, "the log is truncated", func() bool { return s.logSize() == 0 })
}

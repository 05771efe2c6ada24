package mariadb

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/tricycle-relay/tricycle/lib/retry"
)

// lockPrefix and the name of the database make the name of the lock: locks
// belong to the whole server.
const lockPrefix = "tricycle/"

const (
	// lockWait is how long another program may take to end before this one
	// gives up.
	lockWait = 5 * time.Second
	// lease is how long the server keeps the lock for a program that has
	// fallen silent. It is less than lockWait, so that only a program that is
	// alive can keep the next one out.
	lease = 4 * time.Second
)

//go:embed migrations/*.sql
var migrations embed.FS

// holder is a connection as the server sees it. Numbers start again with the
// server, so the client's address stands beside it.
type holder struct {
	id   int64
	host string // address:port, empty if the server does not tell
}

// System implements [ms1.Store].
func (s *Store) System() string { return "mariadb" }

// Run implements [ms1.Store].
func (s *Store) Run(ctx context.Context) error {
	pause := retry.Backoff{First: 50 * time.Millisecond, Most: time.Second}
	said := ""
	for {
		err := s.hold(ctx, func() {
			pause.Reset()
			said = ""
		})
		if ctx.Err() != nil {
			s.set(nil, true, errClosed)
			return nil
		}
		if errors.As(err, new(finalError)) {
			s.set(nil, true, err)
			return err
		}
		s.avoid()
		s.set(nil, false, err)
		if err.Error() != said {
			said = err.Error()
			s.log.Warn().Err(err).Msg("the database cannot be used; trying again")
		}
		_ = pause.Wait(ctx) // hold ends with ctx
	}
}

// hold makes a link and keeps it until it breaks or ctx ends. It calls up when
// the database can be used.
func (s *Store) hold(ctx context.Context, up func()) error {
	db := s.open()
	defer db.Close()
	limited, cancel := context.WithTimeout(ctx, dialTimeout+lockWait+answerTimeout)
	defer cancel()
	conn, err := db.Conn(limited)
	if err != nil {
		return s.failed("connecting to", err)
	}
	defer conn.Close()
	if err := s.lock(limited, conn); err != nil {
		return s.failed("locking", err)
	}

	linked, lost := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		lost(s.watch(linked, conn))
	}()
	defer func() {
		lost(nil)
		<-watching
	}()
	if err := s.migrate(linked, db); err != nil {
		return s.failed("bringing up to date the schema of", err)
	}
	up()
	s.set(&link{ctx: linked, end: lost, db: db}, false, nil)
	s.log.Info().Str("address", s.config.Address).Str("database", s.config.Name).Msg("the database is ready")
	<-linked.Done()
	err = s.failed("watching", context.Cause(linked))
	s.set(nil, false, err)
	return err
}

func (s *Store) failed(doing string, err error) error {
	return fmt.Errorf("%s database %q at %s: %w", doing, s.config.Name, s.config.Address, plain(err))
}

// lock takes the lock of the database on this connection. If a connection that
// this store had before still holds it, which the server does not know to be
// dead, it is killed.
func (s *Store) lock(ctx context.Context, conn *sql.Conn) error {
	var me holder
	if err := conn.QueryRowContext(ctx,
		"SELECT ID, HOST FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()").Scan(&me.id, &me.host); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "SET SESSION wait_timeout = ?", int(lease.Seconds())); err != nil {
		return err
	}
	name := lockPrefix + s.config.Name
	var other holder
	for _, wait := range []time.Duration{0, lockWait} {
		var got sql.NullBool
		if err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(?, ?)", name, int(wait.Seconds())).Scan(&got); err != nil {
			return err
		}
		if got.Bool {
			s.mine = me
			return nil
		}
		var id sql.NullInt64
		var host sql.NullString
		if err := conn.QueryRowContext(ctx, "SELECT ID, (SELECT HOST FROM information_schema.PROCESSLIST p WHERE p.ID = l.ID) "+
			"FROM (SELECT IS_USED_LOCK(?) AS ID) l", name).Scan(&id, &host); err != nil {
			return err
		}
		other = holder{id.Int64, host.String}
		if wait == 0 && other == s.mine && other.id != 0 {
			// An error means that it has gone by itself; the next wait will tell.
			_, err := conn.ExecContext(ctx, "KILL CONNECTION ?", other.id)
			s.log.Info().Int64("connection", other.id).AnErr("kill", err).Msg("killed our own dead connection that held the database")
		}
	}
	if other.id == 0 {
		return errors.New("another program held it until now")
	}
	return finalError{fmt.Errorf("another program uses it: found its lock held by connection %d, expected one program per database", other.id)}
}

// watch returns why the lock's connection is dead, or nil at the end of ctx.
func (s *Store) watch(ctx context.Context, conn *sql.Conn) error {
	tick := time.NewTicker(s.pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		err := s.probe(limited, conn)
		silent := limited.Err() != nil
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
		case silent:
			return errNoAnswer
		default:
			return plain(err)
		}
	}
}

// migrate brings the schema up to date.
func (s *Store) migrate(ctx context.Context, db *sql.DB) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	schema, err := goose.NewProvider(goose.DialectMySQL, db, files,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()), goose.WithIsolateDDL(true))
	if err != nil {
		return err
	}
	found, known, err := schema.GetVersions(ctx)
	if err != nil {
		return err
	}
	if found > known {
		return finalError{fmt.Errorf("found schema version %d, expected at most %d: a newer program has used it", found, known)}
	}
	_, err = schema.Up(ctx)
	return err
}

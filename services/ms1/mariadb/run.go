package mariadb

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlstore"
)

// lockPrefix and the name of the database are the name of the lock: locks
// belong to the whole server.
const lockPrefix = "tricycle/"

const (
	// lockWait is the time for another program to end and release the lock.
	lockWait = 5 * time.Second
	// lease is how long the server keeps the lock of a silent connection. It is
	// less than lockWait: only a running program can keep the next one out.
	lease = 4 * time.Second
)

//go:embed migrations/*.sql
var migrations embed.FS

// holder is a connection as the server lists it. Its numbers start again with
// the server, so the client's address is compared as well.
type holder struct {
	id   int64
	host string // address:port, empty if hidden
}

// errInUse is the error of a database whose lock another program holds.
var errInUse = errors.New("database is in use by another MS1")

// Run implements [ms1.Store].
func (s *Store) Run(ctx context.Context) error {
	backoff := retry.Backoff{First: 50 * time.Millisecond, Most: time.Second}
	logged := ""
	for {
		err := s.hold(ctx, func() {
			backoff.Reset()
			logged = ""
		})
		if ctx.Err() != nil {
			s.set(nil, true, errClosed)
			return nil
		}
		if errors.Is(err, errInUse) || errors.Is(err, sqlstore.ErrNewerSchema) {
			s.set(nil, true, err)
			return err
		}
		s.avoid()
		if err.Error() != logged {
			logged = err.Error()
			s.log.Warn().Err(err).Msg("database is unavailable")
		}
		s.set(nil, false, err)
		_ = backoff.Wait(ctx) // its end is noticed above
	}
}

// hold connects and keeps the pool until it breaks or ctx ends. It calls up
// when the database can be used.
func (s *Store) hold(ctx context.Context, up func()) error {
	db := s.open()
	defer db.Close()
	limited, cancel := context.WithTimeout(ctx, dialTimeout+lockWait+answerTimeout)
	defer cancel()
	conn, err := db.Conn(limited)
	if err != nil {
		return s.failed("connect to", err)
	}
	defer conn.Close()
	if err := s.lock(limited, conn); err != nil {
		return s.failed("lock", err)
	}

	alive, end := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { end(s.watch(alive, db, conn)) })
	defer watching.Wait()
	defer end(nil)
	if err := migrate(alive, db); err != nil {
		return s.failed("migrate", cmp.Or(context.Cause(alive), err))
	}
	up()
	s.set(&pool{ctx: alive, end: end, db: db}, false, nil)
	s.log.Info().Str("address", s.config.Address).Str("database", s.config.Name).Msg("database is ready")
	<-alive.Done()
	err = s.failed("watch", context.Cause(alive))
	s.set(nil, false, err)
	return err
}

// migrate brings the schema up to date and verifies it.
func migrate(ctx context.Context, db *sql.DB) error {
	// A start that ended between goose's first two statements, for instance for lack
	// of the privilege to insert, has left an empty table.
	// Only then is the privilege needed: an account may be limited to our tables.
	var versions int
	err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM goose_db_version").Scan(&versions)
	if err == nil && versions == 0 {
		_, err = db.ExecContext(ctx, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, TRUE)")
	}
	if err != nil && refusal(err) != noTable {
		return err
	}
	if err := sqlstore.Migrate(ctx, goose.DialectMySQL, db, migrations, goose.WithIsolateDDL(true)); err != nil {
		return err
	}
	return verify(ctx, db)
}

func (s *Store) failed(operation string, err error) error {
	return fmt.Errorf("%s database %q at %s: %w", operation, s.config.Name, s.config.Address, plain(err))
}

// lock takes the database's lock on this connection. If an earlier connection
// of this store still holds it, dead and unnoticed by the server, it is killed.
func (s *Store) lock(ctx context.Context, conn *sql.Conn) error {
	var me holder
	var name string // the server may take names in another case for the same database
	if err := conn.QueryRowContext(ctx, "SELECT ID, HOST, CONCAT(?, IF(@@lower_case_table_names, LOWER(DB), DB)) "+
		"FROM information_schema.PROCESSLIST WHERE ID = CONNECTION_ID()", lockPrefix).Scan(&me.id, &me.host, &name); err != nil {
		return err
	}
	if _, err := conn.ExecContext(ctx, "SET SESSION wait_timeout = ?", int(lease.Seconds())); err != nil {
		return err
	}
	var other holder
	var silence sql.NullInt64 // seconds
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
		if err := conn.QueryRowContext(ctx, "SELECT l.ID, HOST, TIME FROM (SELECT IS_USED_LOCK(?) AS ID) l "+
			"LEFT JOIN information_schema.PROCESSLIST p ON p.ID = l.ID", name).Scan(&id, &host, &silence); err != nil {
			return err
		}
		other = holder{id.Int64, host.String}
		if wait == 0 && other == s.mine && other.id != 0 {
			// An error means that it has just ended; the next wait shows.
			_, err := conn.ExecContext(ctx, "KILL CONNECTION ?", other.id)
			s.log.Info().Int64("connection", other.id).AnErr("error", err).Msg("killed own dead connection")
		}
	}
	// A server that was frozen may end the wait before it frees a dead program's lock.
	if other.id == 0 || silence.Int64 >= int64(lease.Seconds()) {
		return errors.New("another program held the lock until now")
	}
	return fmt.Errorf("%w (connection %d)", errInUse, other.id)
}

// admitted returns the reason why the server admits no connection beside the
// lock's. The pool's own end when they are idle for long, and the server may refuse
// others since: there are too many, or the account is locked.
func (s *Store) admitted(ctx context.Context, db *sql.DB) error {
	busy := func() bool { return db.Stats().InUse > 1 }
	if busy() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var err error
	for range 2 { // the first may use a connection that has died
		if err = db.PingContext(ctx); err == nil || busy() {
			return nil
		}
	}
	return s.failed("connect to", err)
}

// locked notes why the server takes no rows, for example because somebody has
// locked a table, if there is a pool.
func (s *Store) locked(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch before := s.cause; {
	case s.pool == nil:
		return
	case before == nil && err != nil:
		s.log.Warn().Err(err).Msg("database takes no rows")
	case before != nil && err == nil:
		s.log.Info().Msg("database takes rows again")
	}
	s.cause = err
}

// watch returns the reason why the pool must end, or nil at the end of ctx.
func (s *Store) watch(ctx context.Context, db *sql.DB, conn *sql.Conn) error {
	tick := time.NewTicker(s.pingEvery)
	defer tick.Stop()
	var refused error
	admitted := make(chan error, 1)
	admitted <- nil
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		select {
		case refused = <-admitted:
			go func() { admitted <- s.admitted(ctx, db) }() // a connection takes long on a slow link
		default:
		}
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		err := s.probe(limited, conn)
		silent := limited.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			s.locked(refused)
		case refusal(err) == tableLocked:
			s.locked(s.failed("insert into", err))
		case silent:
			return errNoAnswer
		default:
			return plain(err)
		}
	}
}

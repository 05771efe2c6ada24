// Package mariadb stores sessions and messages in a MariaDB database.
//
// [Store.Run] connects to the server. One connection holds the lock 'one MS1 per
// database', and a pool beside it does the work. Every second the lock's
// connection checks that the server accepts writes and would take a row. If it
// does not, or if the read-only server refuses a statement, the whole pool ends at
// once, including statements in flight; only a locked table is waited for. The
// store then dials again, another address first, and its methods wait and retry.
// A silent connection is thus noticed within seconds, and no dead connection stays
// in the pool.
package mariadb

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/dial"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlstore"
)

const (
	dialTimeout = 2 * time.Second
	// answerTimeout is the time of a statement's first attempt. It doubles with
	// each attempt without an answer: counting the rows of a day takes minutes.
	answerTimeout = 3 * time.Second
	maxOpen       = 8 // connections, the lock's included
	maxLifetime   = 10 * time.Minute
)

var (
	errClosed   = errors.New("store is closed")
	errStarting = errors.New("not connected yet")
	errNoAnswer = errors.New("no answer in time")
)

// Store is an [ms1.Store] in MariaDB. Its methods can be called at any time
// and from many goroutines; they wait until Run has a pool.
type Store struct {
	sqlstore.Statements
	config    Config
	log       zerolog.Logger
	open      func() *sql.DB // without connections yet
	dialer    dial.Dialer
	pingEvery time.Duration
	probe     func(context.Context, *sql.Conn) error // an error if no row could be committed
	avoid     func()                                 // dials the last pool's address last

	mu     sync.Mutex
	pool   *pool // nil while the database is unavailable
	cause  error // of that, or of a locked table
	closed bool  // there will be no other pool
	mine   holder
}

// pool is the connections to a server whose lock this store holds.
type pool struct {
	ctx context.Context         // ends with the cause when the pool is not usable any more
	end context.CancelCauseFunc // of ctx
	db  *sql.DB
}

// Open returns a store for the database of the configuration, which must be
// valid. It connects in Run. It fails if a file of the configuration cannot be
// used.
func Open(c Config, log zerolog.Logger) (*Store, error) {
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return nil, fmt.Errorf("database.address: %w", err)
	}
	// The files are read for each connection.
	prepare := func(m *mysql.Config) (err error) {
		if m.Passwd, err = config.Secret("database.password_file", c.PasswordFile); err != nil {
			return err
		}
		return c.TLS.apply(m, host)
	}
	if err := prepare(mysql.NewConfig()); err != nil {
		return nil, err
	}
	m := mysql.NewConfig()
	m.Net, m.Addr, m.DBName = "tcp", c.Address, c.Name
	m.User = c.User
	_ = m.Apply(mysql.BeforeConnect(func(_ context.Context, m *mysql.Config) error { return prepare(m) })) // never fails
	m.ParseTime, m.Loc = true, time.UTC
	m.InterpolateParams = true // one trip to the server for a statement instead of three
	m.ClientFoundRows = true   // an INSERT counts existing rows as well
	// Every statement, COMMIT included, has a context with a deadline instead of
	// a ReadTimeout, which would interrupt a long count. The Commit of a sql.Tx
	// has no context, so transact does without.
	m.Timeout, m.WriteTimeout = dialTimeout, answerTimeout
	m.Logger = driverLog{log}
	if _, err := mysql.NewConnector(m); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	now := &connector{}
	var store *Store
	store = newStore(c, log, func() *sql.DB {
		now, _ = newConnector(m, &store.dialer, c.explain) // m was tried above
		db := sql.OpenDB(now)
		db.SetMaxOpenConns(maxOpen)
		db.SetMaxIdleConns(maxOpen)
		db.SetConnMaxLifetime(maxLifetime)
		return db
	})
	store.probe = func(ctx context.Context, conn *sql.Conn) error {
		err := conn.Raw(func(raw any) error { return now.check(ctx, raw.(driver.Conn), writable) })
		if p, _, _ := store.current(); p != nil && err == nil { // else the tables may not exist yet
			_, err = conn.ExecContext(ctx, explained)
		}
		return err
	}
	store.avoid = func() {
		now.mu.Lock()
		defer now.mu.Unlock()
		if now.remote != "" {
			store.dialer.Avoid(now.remote)
		}
	}
	return store, nil
}

func newStore(c Config, log zerolog.Logger, open func() *sql.DB) *Store {
	s := &Store{config: c, log: log, open: open, pingEvery: time.Second, cause: errStarting}
	s.Statements = sqlstore.Statements{
		Stamp:    func(s message.Stamp) any { return s.Time() },
		ForShare: " LOCK IN SHARE MODE", ForUpdate: " FOR UPDATE", KeepFirst: " ON DUPLICATE KEY UPDATE session_id = messages.session_id",
		Round: "TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp)",
		Retry: s.retry, Transact: transact,
		Fresh:   fresh,
		Readers: func(db *sql.DB) *sql.DB { return db },
	}
	return s
}

// fresh closes the idle connections, and waits for none in use.
func fresh(db *sql.DB) *sql.DB {
	db.SetMaxIdleConns(0)
	db.SetMaxIdleConns(maxOpen)
	return db
}

// driverLog takes the lines that the driver would print to stderr: details of
// errors that are returned as well.
type driverLog struct{ log zerolog.Logger }

func (d driverLog) Print(v ...any) {
	d.log.Debug().Str("detail", fmt.Sprint(v...)).Msg("database driver reports")
}

// System implements [ms1.Store].
func (s *Store) System() string { return "mariadb" }

// Ready implements [ms1.Store]. It sends nothing to the server: the pool is
// watched all the time.
func (s *Store) Ready(context.Context) error {
	_, _, err := s.current()
	return err
}

func (s *Store) current() (p *pool, closed bool, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool, s.closed, s.cause
}

func (s *Store) set(p *pool, closed bool, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool, s.closed, s.cause = p, closed, cause
}

// retry calls try until it succeeds, fails permanently or ctx ends, and returns
// the last error of the database then.
func (s *Store) retry(ctx context.Context, operation string, try func(ctx context.Context, db *sql.DB) error) error {
	backoff := retry.Backoff{First: 20 * time.Millisecond, Most: 500 * time.Millisecond}
	timeout := answerTimeout
	var last error
	away := false // as last reports
	for {
		p, closed, cause := s.current()
		switch {
		case closed:
			return fmt.Errorf("%s: %w", operation, cause)
		case p == nil:
			last, away = cause, true
		case ctx.Err() == nil:
			if away { // it is back
				last, away = nil, false
			}
			err := p.try(ctx, timeout, try)
			switch {
			case err == nil:
				return nil
			case permanent(err):
				return fmt.Errorf("%s: %w", operation, err)
			case !errors.Is(err, errNoAnswer):
				last = err
			default:
				timeout *= 2
				if last == nil || ctx.Err() == nil { // else the attempt was cut short, and an earlier error tells more
					last = err
				}
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", operation, cmp.Or(last, ctx.Err()))
		}
		_ = backoff.Wait(ctx) // its end is noticed above
	}
}

// try calls f once, until the timeout or the end of ctx or the pool.
func (p *pool) try(ctx context.Context, timeout time.Duration, f func(context.Context, *sql.DB) error) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	err := f(ctx, p.db)
	switch {
	case err == nil || permanent(err):
		return err
	case endsPool(err):
		p.end(plain(err))
		return plain(err)
	case p.ctx.Err() != nil:
		return context.Cause(p.ctx)
	case ctx.Err() != nil:
		return errNoAnswer
	case refusal(err) == tableDenied: // a connection keeps the privileges on databases that it was opened with
		fresh(p.db)
	}
	return plain(err)
}

// permanent reports whether the server refuses the statement itself. Other
// errors may pass: a deadlock, a full disk, a server that shuts down, too many
// connections, a missing privilege.
func permanent(err error) bool {
	if refused, ok := errors.AsType[*mysql.MySQLError](err); ok {
		class := string(refused.SQLState[:2])
		return class == "22" || class == "23" // data exception, integrity constraint violation
	}
	return errors.Is(err, ms1.ErrSessionEnded) || errors.Is(err, ms1.ErrNoSession)
}

// plain removes the addresses from a network error. The local port differs in
// each attempt, so the same error would look new in the log.
func plain(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}

// transact calls f in a transaction. After an error it closes the connection,
// which may be dead; the server rolls back.
func transact(ctx context.Context, db *sql.DB, f func(tx sqlstore.Conn) error) error {
	tx, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer tx.Close()
	_, err = tx.ExecContext(ctx, "START TRANSACTION")
	if err == nil {
		err = f(tx)
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		_ = tx.Raw(func(any) error { return driver.ErrBadConn })
	}
	return err
}

// Package mariadb stores sessions and messages in a MariaDB database.
//
// [Store.Run] owns the access to the server, a 'link': one connection that holds
// the lock 'one MS1 per database', and a pool for the work. Every second the
// lock's connection checks that the server accepts writes. If it does not, or if
// the read-only server refuses a statement, the whole link ends at once, including
// statements in flight. The store then dials again, another address first, and its
// methods wait and retry. A silent link is thus noticed within seconds, and no dead
// connection stays in the pool.
//
// No statement may rely on arriving once or in time. A row that exists is never
// changed. Every statement that adds rows locks the row of its session. It runs
// completely before the end of that session or has no effect.
package mariadb

import (
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
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

const (
	dialTimeout = 2 * time.Second
	// answerTimeout is what a statement gets at first. Each repeat of one that
	// did not answer gets twice as much as the last: the count at the end of a
	// session of a day takes minutes.
	answerTimeout = 3 * time.Second
	maxOpen       = 8 // connections, the lock's included
	maxLifetime   = 10 * time.Minute
)

var (
	errClosed   = errors.New("the store is closed")
	errStarting = errors.New("not connected to the database yet")
	errNoAnswer = errors.New("the database did not answer in time")
)

// finalError is what repeating cannot mend.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// Store is an [ms1.Store] in MariaDB. Its methods can be called at any time
// and from many goroutines; they wait for Run to have a link.
type Store struct {
	config    Config
	log       zerolog.Logger
	open      func() *sql.DB // a pool without connections yet
	dialer    dial.Dialer
	pingEvery time.Duration
	probe     func(context.Context, *sql.Conn) error // an error if no row could be committed
	avoid     func()                                 // has the address of the last link tried last

	mu     sync.Mutex
	link   *link // nil while the database cannot be used
	why    error // why not
	closed bool  // there will never be a link again
	mine   holder
}

// link is what Run has when the database can be used.
type link struct {
	ctx context.Context         // cancelled with the reason when the lock is lost
	end context.CancelCauseFunc // does that
	db  *sql.DB
}

// Open returns a store for the database of the configuration, which must be
// valid. It reads the password and connects to nothing.
func Open(c Config, log zerolog.Logger) (*Store, error) {
	password, err := config.Secret("database.password_file", c.PasswordFile)
	if err != nil {
		return nil, err
	}
	m := mysql.NewConfig()
	m.Net, m.Addr, m.DBName = "tcp", c.Address, c.Name
	m.User, m.Passwd = c.User, password
	m.ParseTime, m.Loc = true, time.UTC
	m.InterpolateParams = true // one trip to the server for a statement instead of three
	m.ClientFoundRows = true   // see Insert
	// There is no ReadTimeout: it would cut off a long count. Every statement
	// has a context with a deadline instead, COMMIT included; that is why no
	// sql.Tx, whose Commit has none, is used here.
	m.Timeout, m.WriteTimeout = dialTimeout, answerTimeout
	m.Logger = driverLog{log}
	if _, err := mysql.NewConnector(m); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	now := &connector{}
	var store *Store
	store = newStore(c, log, func() *sql.DB {
		now, _ = newConnector(m, &store.dialer) // m was tried above
		db := sql.OpenDB(now)
		db.SetMaxOpenConns(maxOpen)
		db.SetMaxIdleConns(maxOpen)
		db.SetConnMaxLifetime(maxLifetime)
		return db
	})
	store.probe = func(ctx context.Context, conn *sql.Conn) error {
		return conn.Raw(func(raw any) error { return now.check(ctx, raw.(driver.Conn), writable) })
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
	return &Store{
		config: c, log: log, open: open, pingEvery: time.Second, why: errStarting,
		probe: func(ctx context.Context, conn *sql.Conn) error { return conn.PingContext(ctx) },
		avoid: func() {},
	}
}

// driverLog takes what the driver would print to stderr: details of errors
// that are returned as well.
type driverLog struct{ log zerolog.Logger }

func (d driverLog) Print(v ...any) { d.log.Debug().Msg("database driver: " + fmt.Sprint(v...)) }

// Ready implements [ms1.Store]. It asks nothing of the server: the link is
// watched all the time.
func (s *Store) Ready(context.Context) error {
	_, _, err := s.current()
	return err
}

func (s *Store) current() (l *link, closed bool, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link, s.closed, s.why
}

func (s *Store) set(l *link, closed bool, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link, s.closed, s.why = l, closed, why
}

// repeat tries until it succeeds, fails for good or ctx ends, and returns the
// last error of the database then.
func (s *Store) repeat(ctx context.Context, doing string, try func(ctx context.Context, db *sql.DB) error) error {
	pause := retry.Backoff{First: 20 * time.Millisecond, Most: 500 * time.Millisecond}
	timeout := answerTimeout
	var last error
	for {
		l, closed, why := s.current()
		switch {
		case closed:
			return fmt.Errorf("%s: %w", doing, why)
		case l == nil:
			last = why
		case ctx.Err() == nil:
			err := l.try(ctx, timeout, try)
			switch {
			case err == nil:
				return nil
			case final(err):
				return fmt.Errorf("%s: %w", doing, err)
			case !errors.Is(err, errNoAnswer):
				last = err
			default:
				timeout *= 2
				if last == nil || ctx.Err() == nil { // else the try was cut short, and its error says less
					last = err
				}
			}
		}
		if ctx.Err() != nil {
			if last == nil {
				last = ctx.Err()
			}
			return fmt.Errorf("%s: %w", doing, last)
		}
		_ = pause.Wait(ctx) // the last error says more
	}
}

// try runs f once, until the timeout, the end of ctx or the end of the link.
func (l *link) try(ctx context.Context, timeout time.Duration, f func(context.Context, *sql.DB) error) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	err := f(ctx, l.db)
	switch {
	case err == nil || final(err):
		return err
	case endsLink(err):
		l.end(plain(err))
		return plain(err)
	case l.ctx.Err() != nil:
		return context.Cause(l.ctx)
	case ctx.Err() != nil:
		return errNoAnswer
	}
	return plain(err)
}

// final says that the statement itself is refused: repeating cannot help. All
// else may pass: a deadlock, a full disk, a server that shuts down, too many
// connections, a right not granted yet.
func final(err error) bool {
	var refused *mysql.MySQLError
	if errors.As(err, &refused) {
		class := string(refused.SQLState[:2])
		return class == "22" || class == "23" // data exception, integrity constraint violation
	}
	return errors.Is(err, ms1.ErrSessionEnded) || errors.Is(err, ms1.ErrNoSession)
}

// plain takes the addresses out of a network error. The port of this side
// differs with every try, and would make the same error look new in the log.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}

// transact runs f in a transaction. After an error the connection is thrown
// away: the server rolls back, and nothing has to be said on what may be dead.
func transact(ctx context.Context, db *sql.DB, f func(tx *sql.Conn) error) error {
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
		_ = tx.Raw(func(any) error { return driver.ErrBadConn }) // the error is the wish
	}
	return err
}

package mariadb

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Database {
		server := mariadbtest.New(t)
		return storetest.Database{
			Open: func(t *testing.T) ms1.Store { return open(t, server, zerolog.NewTestWriter(t)) },
			DB:   server.DB,
			Wire: func(column string) string { return "DATE_FORMAT(" + column + ", '%Y-%m-%dT%H:%i:%s.%fZ')" },
		}
	})
}

func open(t *testing.T, s mariadbtest.Database, log io.Writer) *Store {
	t.Helper()
	c := Config{Address: s.Address, Name: s.Name, User: s.User, PasswordFile: s.PasswordFile}
	store, err := Open(c, zerolog.New(log).Level(zerolog.InfoLevel))
	servicetest.NoError(t, err)
	return store
}

func setUp(t *testing.T, server mariadbtest.Database) (s *Store, log *servicetest.Console, ctx context.Context, id int64) {
	t.Helper()
	log = &servicetest.Console{}
	s = open(t, server, log)
	storetest.Start(t, s)
	ctx = servicetest.Context(t, 40*time.Second)
	return s, log, ctx, storetest.Begin(t, ctx, s)
}

func insert(ctx context.Context, s *Store, id int64, n int) error {
	return s.Insert(ctx, id, []message.Message{storetest.Message(id, n)})
}

func exec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func TestLockWaitIsRepeated(t *testing.T) {
	t.Parallel()
	server := mariadbtest.New(t)
	s, _, ctx, id := setUp(t, server)
	other, err := server.DB.Begin()
	servicetest.NoError(t, err)
	defer other.Rollback()
	if _, err := other.Exec("SELECT id FROM sessions WHERE id = ? FOR UPDATE", id); err != nil {
		t.Fatal(err)
	}
	servicetest.Fails(t, 3*time.Second, "Error 1205 (HY000): Lock wait timeout", func(ctx context.Context) error { return insert(ctx, s, id, 0) })
	done := make(chan error, 1)
	go func() { done <- insert(ctx, s, id, 1) }()
	servicetest.NoError(t, other.Rollback())
	servicetest.NoError(t, <-done)
}

func TestKilledConnectionsLoseNothing(t *testing.T) {
	t.Parallel()
	server := mariadbtest.New(t)
	s, log, ctx, id := setUp(t, server)
	var acknowledged atomic.Int64
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			size := 1 + 4*(w%2)
			for b := 0; ; b++ {
				select {
				case <-stop:
					return
				default:
				}
				batch := make([]message.Message, size)
				for i := range batch {
					batch[i] = storetest.Message(id, w*1_000_000+b*size+i)
				}
				if err := s.Insert(ctx, id, batch); err != nil {
					t.Errorf("Insert: %v", err)
					return
				}
				acknowledged.Add(int64(size))
			}
		})
	}
	working := func(after int64) {
		t.Helper()
		servicetest.Eventually(t, 20*time.Second, "more messages are stored", func() bool { return acknowledged.Load() >= after+100 && s.Ready(ctx) == nil })
	}
	const rounds = 6
	for round := range rounds {
		working(acknowledged.Load())
		for _, c := range mariadbtest.Column(t, server.DB, "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = ? AND ID <> CONNECTION_ID()", server.Name) {
			_, _ = server.DB.Exec("KILL CONNECTION ?", c) // an error: it has gone by itself
		}
		servicetest.Eventually(t, 20*time.Second, "the loss is noticed", func() bool { return log.Count("database is ready") >= round+2 })
	}
	working(acknowledged.Load())
	close(stop)
	writers.Wait()
	sent := acknowledged.Load()
	row, err := s.End(ctx, id, ms1.Closing{EndedAt: storetest.Message(id, 1_000_000).Service1, Generated: sent, Reason: ms1.Stopped})
	servicetest.NoError(t, err)
	if *row.Stored != sent || *row.Lost != 0 {
		t.Errorf("got stored %d, lost %d, want %d, 0", *row.Stored, *row.Lost, sent)
	}
}

func TestServerThatKeepsOurDeadConnections(t *testing.T) {
	t.Parallel()
	server := mariadbtest.New(t)
	direct := server.Address
	r := relaytest.New(t, "127.0.0.1:0", direct)
	server.Address = r.Address
	s, log, ctx, id := setUp(t, server)
	r.Abandon()
	servicetest.Eventually(t, 20*time.Second, "the lock is taken back", func() bool { return log.Count("database is ready") >= 2 && s.Ready(ctx) == nil })
	if n := log.Count("killed own dead connection"); n != 1 {
		t.Errorf("got %d kills, want 1", n)
	}
	servicetest.NoError(t, insert(ctx, s, id, 0))
	server.Address = direct
	if err := open(t, server, io.Discard).Run(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("another program: got %v, want a refusal", err)
	}
}

func TestSilentLinkIsNoticed(t *testing.T) {
	t.Parallel()
	server := mariadbtest.New(t)
	r := relaytest.New(t, "127.0.0.1:0", server.Address)
	server.Address = r.Address
	s, log, ctx, id := setUp(t, server)
	started := time.Now()
	r.Silence() // new ones work
	servicetest.NoError(t, insert(ctx, s, id, 0))
	servicetest.NoError(t, insert(ctx, s, id, 1))
	servicetest.Eventually(t, 20*time.Second, "the silence of the lock's connection is noticed", func() bool { return log.Has("no answer in time") })
	if took := time.Since(started); took > 12*time.Second {
		t.Errorf("took %v, expected less than 12 s", took)
	}
}

func TestSchema(t *testing.T) {
	t.Parallel()
	server := mariadbtest.New(t)
	storetest.Start(t, open(t, server, io.Discard))()
	// A start that was cut short before it could note what it had done.
	exec(t, server.DB, "DELETE FROM goose_db_version WHERE version_id >= 1")
	exec(t, server.DB, "DROP TABLE messages")
	storetest.Start(t, open(t, server, io.Discard))()
	exec(t, server.DB, "SELECT * FROM messages")
	exec(t, server.DB, "DELETE FROM goose_db_version")
	storetest.Start(t, open(t, server, io.Discard))()
	exec(t, server.DB, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)")
	if err := open(t, server, io.Discard).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "schema version: must be at most 2, got 99") {
		t.Errorf("got error %v, want that the schema is newer", err)
	}
}

// Tables of the same names may be those of another program, or somebody has
// changed ours: duplicates would be two rows, or two messages one.
func TestTablesOfOthersAreRefused(t *testing.T) {
	t.Parallel()
	for change, want := range map[string]string{
		"ALTER TABLE messages DROP FOREIGN KEY messages_of_session, DROP PRIMARY KEY":                     "unique keys of messages: must be session_id,service1_timestamp, got nothing",
		"ALTER TABLE messages MODIFY service1_timestamp DATETIME NOT NULL":                                "type of messages.service1_timestamp: must be datetime(6), got datetime",
		"ALTER TABLE messages DROP FOREIGN KEY messages_of_session; ALTER TABLE messages ENGINE = MyISAM": "engine of messages: must be InnoDB, got MyISAM",
		"ALTER TABLE messages ADD UNIQUE (end_timestamp)":                                                 "unique keys of messages: must be session_id,service1_timestamp, got end_timestamp,session_id,service1_timestamp",
		"DROP TABLE lost_messages":                    "engine of lost_messages: must be InnoDB, got nothing",
		"ALTER TABLE sessions DROP COLUMN started_at": "type of sessions.started_at: must be datetime(6), got nothing",
		"ALTER TABLE messages ADD extra INT NOT NULL": "Field 'extra' doesn't have a default value",
	} {
		t.Run(change, func(t *testing.T) {
			t.Parallel()
			server := mariadbtest.New(t)
			storetest.Start(t, open(t, server, io.Discard))()
			for _, statement := range strings.Split(change, "; ") {
				exec(t, server.DB, statement)
			}
			s := open(t, server, io.Discard)
			run(t, s)
			servicetest.Fails(t, time.Second, want, s.Ready)
		})
	}
}

// Once the tables exist, no other privileges are needed.
func TestAccountForExistingTables(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t)
	_, stop := serve(t, d)
	stop()
	for _, host := range []string{"%", "localhost"} {
		d.SQL("REVOKE ALL PRIVILEGES, GRANT OPTION FROM tricycle@'" + host + "'; " +
			"GRANT SELECT ON tricycle.goose_db_version TO tricycle@'" + host + "'; " +
			"GRANT SELECT, INSERT, UPDATE ON tricycle.sessions TO tricycle@'" + host + "'; " +
			"GRANT SELECT, INSERT, UPDATE ON tricycle.messages TO tricycle@'" + host + "'; " +
			"GRANT SELECT, INSERT, DELETE ON tricycle.lost_messages TO tricycle@'" + host + "'")
	}
	serve(t, d)
}

const poolConnections = "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'tricycle' AND ID <> IS_USED_LOCK('tricycle/tricycle')"

// Without a session no statement fails, and yet no session could begin.
func TestReadinessWithoutASession(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t)
	s, _ := serve(t, d)
	client, err := sql.Open("mysql", "root@unix("+d.Socket+")/tricycle")
	servicetest.NoError(t, err)
	defer client.Close()
	client.SetMaxOpenConns(1) // locks belong to a connection
	const account = " 'tricycle'@'%', 'tricycle'@'localhost'"
	for _, c := range []struct{ name, away, back, want string }{
		{"messages locked", "LOCK TABLES messages READ", "UNLOCK TABLES", "Lock wait timeout"},
		{"sessions locked", "LOCK TABLES sessions READ", "UNLOCK TABLES", "Lock wait timeout"},
		{"server locked", "FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES", "Lock wait timeout"},
		{"table moved", "RENAME TABLE messages TO elsewhere", "RENAME TABLE elsewhere TO messages", "messages"},
		{"database dropped", "DROP DATABASE tricycle", "CREATE DATABASE tricycle", "Unknown database"},
		{"account locked", "ALTER USER" + account + " ACCOUNT LOCK", "ALTER USER" + account + " ACCOUNT UNLOCK", "account is locked"},
		{"TLS required", "SET GLOBAL require_secure_transport=ON", "SET GLOBAL require_secure_transport=OFF", "tls.mode"},
		{"privilege revoked", "REVOKE INSERT ON tricycle.* FROM" + account, "GRANT ALL ON tricycle.* TO" + account, "INSERT command denied"},
	} {
		exec(t, client, c.away)
		switch c.name { // these count for new connections
		case "privilege revoked":
			d.SQL("KILL USER tricycle")
		case "account locked", "TLS required": // as after ten idle minutes
			for id := range strings.FieldsSeq(d.SQL(poolConnections)) {
				d.SQL("KILL " + id)
			}
		}
		servicetest.Fails(t, time.Second, c.want, s.Ready)
		exec(t, client, c.back)
		ready(t, s)
		storetest.Begin(t, t.Context(), s)
	}
}

// Privileges on a database count for new connections. Those that were opened
// without one must not refuse rows after it is granted again.
func TestPrivilegeIsGrantedAgain(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t)
	s, _ := serve(t, d)
	id := storetest.Begin(t, t.Context(), s)
	d.SQL("REVOKE UPDATE ON tricycle.* FROM tricycle@'%', tricycle@localhost")
	for connection := range strings.FieldsSeq(d.SQL(poolConnections)) {
		d.SQL("KILL " + connection)
	}
	servicetest.Eventually(t, 20*time.Second, "the row is refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		return refusal(insert(ctx, s, id, 0)) == tableDenied
	})
	d.SQL("GRANT UPDATE ON tricycle.* TO tricycle@'%', tricycle@localhost")
	ctx := servicetest.Context(t, 20*time.Second)
	servicetest.NoError(t, insert(ctx, s, id, 0))
}

// On Windows and macOS a server takes both names for one database.
func TestOneProgramPerDatabaseInAnyCase(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t, "--lower-case-table-names=1")
	serve(t, d)
	other := open(t, mariadbtest.Database{Address: d.Address, Name: "Tricycle", User: d.User, PasswordFile: d.PasswordFile}, io.Discard)
	ctx := servicetest.Context(t, 20*time.Second)
	want := fmt.Sprintf(`lock database "Tricycle" at %s: database is in use by another MS1 (connection %s)`, d.Address, d.SQL("SELECT IS_USED_LOCK('tricycle/tricycle')"))
	if err := other.Run(ctx); err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
	if err := other.Ready(ctx); err == nil || err.Error() != want {
		t.Errorf("Ready: got error %v, want %s", err, want)
	}
}

// A server that is not told to be strict would store a stamp that is none.
func TestBadValueIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	s, _, ctx, id := setUp(t, mariadbtest.New(t))
	m := storetest.Message(id, 0)
	m.Service2 = 0
	if err := s.Insert(ctx, id, []message.Message{m}); refusal(err) == 0 || ctx.Err() != nil {
		t.Errorf("got error %v, want the server's refusal", err)
	}
}

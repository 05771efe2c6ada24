package mariadb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/tricycle-relay/tricycle/lib/dial"
)

const (
	connectTimeout  = 3 * time.Second // handshake and settings included
	isolation       = "transaction_isolation"
	accessMode      = "transaction_read_only"
	sessionLifetime = "600" // seconds without a statement; as maxLifetime
)

// setting is a variable of the server and the value that correctness needs, as
// SHOW VARIABLES prints it.
type setting struct{ name, value string }

// settings are the session variables that are set and read back on every new
// connection: a server's defaults and its init_connect may be anything.
var settings = []setting{
	{"autocommit", "ON"},
	{"completion_type", "NO_CHAIN"},
	{"time_zone", "+00:00"},
	{"sql_mode", "STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"},
	{"character_set_client", "utf8mb4"},
	{"character_set_connection", "utf8mb4"},
	{"character_set_results", "utf8mb4"},
	{"foreign_key_checks", "ON"},
	{"unique_checks", "ON"},
	{"sql_auto_is_null", "OFF"},
	{"sql_safe_updates", "OFF"},
	{"sql_big_selects", "ON"},
	{"sql_select_limit", "18446744073709551615"},
	{"max_statement_time", "0.000000"},
	{"idle_transaction_timeout", "0"},
	{"idle_readonly_transaction_timeout", "0"},
	{"idle_write_transaction_timeout", "0"},
	{"wait_timeout", sessionLifetime},
	// A statement that waits longer than its caller would pile up on the
	// server, and the caller would not learn why it waits. The second is for the
	// locks of ALTER TABLE.
	{"innodb_lock_wait_timeout", "1"},
	{"lock_wait_timeout", "1"},
}

// transactions are the settings that SET SESSION TRANSACTION changes. Their
// variables are called tx_… before MariaDB 11.1.
var transactions = []setting{{isolation, "REPEATABLE-READ"}, {accessMode, "OFF"}}

// writable are the global variables without which no row can be committed. Even
// a user with the privilege to write must not: the server is no primary.
var writable = []setting{{"read_only", "OFF"}, {"innodb_read_only", "OFF"}}

// identity are the variables that tell one server from another.
var identity = []string{"hostname", "port", "server_id", "server_uid", "datadir"}

// unfitError is the reason why a server or a connection cannot be used. It
// ends the pool.
type unfitError struct{ error }

func (e unfitError) Unwrap() error { return e.error }

// connector opens the connections of one pool, all to the same server.
type connector struct {
	driver.Connector
	explain func(error) error // of a failure to connect
	mu      sync.Mutex
	server  string // identity of the first connection's server
	remote  string // address of the newest connection
}

// newConnector returns a connector that dials by d and explains its failures.
func newConnector(c *mysql.Config, d *dial.Dialer, explain func(error) error) (*connector, error) {
	n := &connector{explain: explain}
	c = c.Clone()
	c.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if err == nil {
			n.mu.Lock()
			n.remote = conn.RemoteAddr().String()
			n.mu.Unlock()
		}
		return conn, err
	}
	var err error
	n.Connector, err = mysql.NewConnector(c)
	return n, err
}

// Connect implements [driver.Connector]. The connection has all settings.
func (n *connector) Connect(ctx context.Context) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := n.Connector.Connect(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil && !errors.As(err, new(*net.OpError)): // it did connect
		return nil, fmt.Errorf("no greeting of a MariaDB server: %w", err)
	default:
		return nil, n.explain(err)
	}
	if err := n.prepare(ctx, conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (n *connector) prepare(ctx context.Context, conn driver.Conn) error {
	var set []string
	for _, s := range settings {
		value := s.value
		if strings.Trim(value, "0123456789.") != "" {
			value = "'" + value + "'"
		}
		set = append(set, s.name+" = "+value)
	}
	// A node of a Galera cluster may not have applied yet what this program has
	// committed on another one. A server may be built without this variable.
	const galera = "SET SESSION wsrep_sync_wait = 1"
	for _, statement := range []string{"SET " + strings.Join(set, ", "), "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE", galera} {
		_, err := conn.(driver.ExecerContext).ExecContext(ctx, statement, nil)
		if err != nil && (statement != galera || refusal(err) != unknownVariable) {
			return fmt.Errorf("set session variables: %w", err)
		}
	}
	return n.check(ctx, conn, slices.Concat(settings, transactions, writable))
}

// check reads variables and returns an unfitError that names the first one
// with another value, or if another server answers than before.
func (n *connector) check(ctx context.Context, conn driver.Conn, want []setting) error {
	names := slices.Clone(identity)
	for _, s := range want {
		names = append(names, s.name, oldName(s.name))
	}
	found, err := variables(ctx, conn, names)
	if err != nil {
		return fmt.Errorf("read variables: %w", err)
	}
	for _, s := range want {
		if value, ok := found[oldName(s.name)]; ok {
			found[s.name] = value
		}
	}
	if err := compare(found, want); err != nil {
		return unfitError{fmt.Errorf("setting %w", err)}
	}
	var server string
	for _, name := range identity {
		server += name + "=" + found[name] + " "
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.server == "" {
		n.server = server
	}
	if n.server != server {
		return unfitError{errors.New("address leads to another server now")}
	}
	return nil
}

func oldName(name string) string {
	if name == isolation || name == accessMode {
		return "tx_" + strings.TrimPrefix(name, "transaction_")
	}
	return name
}

// variables returns the values that the connection sees.
func variables(ctx context.Context, conn driver.Conn, names []string) (map[string]string, error) {
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx,
		"SHOW SESSION VARIABLES WHERE Variable_name IN ('"+strings.Join(names, "', '")+"')", nil)
	if err != nil {
		return nil, err
	}
	found, row := map[string]string{}, make([]driver.Value, 2)
	for err = rows.Next(row); err == nil; err = rows.Next(row) {
		found[fmt.Sprintf("%s", row[0])] = fmt.Sprintf("%s", row[1]) // bytes
	}
	if !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, rows.Close())
	}
	return found, rows.Close()
}

// endsPool reports whether the server can commit nothing now and another one
// may: it became read-only or is no part of its cluster.
func endsPool(err error) bool {
	if errors.As(err, new(unfitError)) {
		return true
	}
	return slices.Contains([]uint16{
		1036, // table is read-only
		1047, // cluster node is not ready
		1290, // server runs with --read-only
		1792, // transaction is read-only
		1836, // server is in read-only mode
		1874, // InnoDB is in read-only mode
	}, refusal(err))
}

// Refusals of a server.
const (
	tableDenied     = 1142 // for lack of a privilege
	noTable         = 1146
	unknownVariable = 1193
	tableLocked     = 1205 // or a row
)

// refusal returns the number of a server's error, 0 if it is none.
func refusal(err error) uint16 {
	if refused, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return refused.Number
	}
	return 0
}

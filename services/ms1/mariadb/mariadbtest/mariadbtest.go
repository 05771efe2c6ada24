// Package mariadbtest provides a database for tests on the MariaDB server that
// the environment names.
package mariadbtest

import (
	"crypto/rand"
	"database/sql"
	"os"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// Database is the access to an empty MariaDB database, as the section
// 'database' of a configuration does.
type Database struct {
	Address, Name, User, PasswordFile string
	DB                                *sql.DB // the same database, for a look past the store
}

// New creates a database of its own for the test, which is dropped at its
// end. It skips the test if there is no server: TRICYCLE_TEST_MARIADB names
// one as USER:PASSWORD@tcp(HOST:PORT)/ and the user must be allowed to create
// databases named tricycle_test_….
func New(t testing.TB) Database {
	t.Helper()
	dsn := os.Getenv("TRICYCLE_TEST_MARIADB")
	if dsn == "" {
		t.Skip("TRICYCLE_TEST_MARIADB is not set: needs a MariaDB server")
	}
	c, err := mysql.ParseDSN(dsn)
	if err != nil {
		t.Fatalf("TRICYCLE_TEST_MARIADB: %v", err)
	}
	name := "tricycle_test_" + strings.ToLower(rand.Text())
	admin := connect(t, c)
	if _, err := admin.Exec("CREATE DATABASE " + name); err != nil {
		t.Fatalf("creating a database for the test: %v", err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec("DROP DATABASE " + name); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	password := servicetest.File(t, "password", c.Passwd+"\n")
	inside := c.Clone()
	inside.DBName = name
	return Database{Address: c.Addr, Name: name, User: c.User, PasswordFile: password, DB: connect(t, inside)}
}

// On returns the access to a server of the test's own, with TLS if the server has it.
func On(t testing.TB, d *servertest.Database) Database {
	t.Helper()
	c := mysql.NewConfig()
	c.Net, c.Addr, c.DBName, c.User, c.Passwd, c.TLSConfig = "tcp", d.Address, "tricycle", d.User, d.Password, "preferred"
	return Database{Address: d.Address, Name: c.DBName, User: d.User, PasswordFile: d.PasswordFile, DB: connect(t, c)}
}

func connect(t testing.TB, c *mysql.Config) *sql.DB {
	t.Helper()
	connector, err := mysql.NewConnector(c)
	servicetest.NoError(t, err)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	return db
}

// Column returns the first column of what a query finds.
func Column(t testing.TB, db *sql.DB, query string, args ...any) (column []string) {
	t.Helper()
	rows, err := db.Query(query, args...)
	servicetest.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var value string
		servicetest.NoError(t, rows.Scan(&value))
		column = append(column, value)
	}
	servicetest.NoError(t, rows.Err())
	return column
}

package mariadb_test

import (
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Database {
		server := storetest.MariaDB(t)
		return storetest.Database{
			Open: func(t *testing.T) ms1.Store { return open(t, server) },
			DB:   server.DB,
			Wire: func(column string) string { return "DATE_FORMAT(" + column + ", '%Y-%m-%dT%H:%i:%s.%fZ')" },
		}
	})
}

func open(t *testing.T, s storetest.Server) *mariadb.Store {
	t.Helper()
	c := mariadb.Config{Address: s.Address, Name: s.Name, User: s.User, PasswordFile: s.PasswordFile}
	store, err := mariadb.Open(c, zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

package mariadb

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

// TestPlannedFailover makes the primary read-only while it stays alive, then
// moves the name to the new one.
func TestPlannedFailover(t *testing.T) {
	t.Parallel()
	old, next := servertest.MariaDB(t), servertest.MariaDB(t)
	next.ShareAccount(old)
	for name, moved := range map[string]bool{"name moved": true, "second address": false} {
		t.Run(name, func(t *testing.T) {
			old.SQL("SET GLOBAL read_only=0")
			ctx := servicetest.Context(t, 40*time.Second)
			first := relaytest.New(t, "127.0.0.2:0", old.Address)
			address := first.Address
			if !moved {
				_, port, _ := net.SplitHostPort(address)
				relaytest.New(t, "127.0.0.3:"+port, next.Address)
				address = "database.test:" + port
			}
			s := openAt(t, old, address)
			s.dialer.LookupHost = func(_ context.Context, host string) ([]string, error) {
				if host != "database.test" {
					return []string{host}, nil
				}
				return []string{"127.0.0.2", "127.0.0.3"}, nil
			}
			storetest.Start(t, s)
			id := storetest.Begin(t, ctx, s)
			servicetest.NoError(t, insert(ctx, s, id, 0))
			// The rows that replication would have copied.
			_, stop := serve(t, next)
			stop()
			next.SQL("REPLACE INTO sessions (id, started_at, interval_seconds, in_flight) SELECT " +
				strconv.FormatInt(id, 10) + ", '2026-11-25 10:15:30', 60, 1")

			old.SQL("SET GLOBAL read_only=1")
			done := make(chan error, 1)
			go func() { done <- s.Insert(ctx, id, []message.Message{storetest.Message(id, 1)}) }()
			if moved {
				servicetest.Fails(t, time.Second, "read_only: must be OFF, got ON", s.Ready)
				first.To(next.Address)
			}
			began := time.Now()
			servicetest.NoError(t, <-done)
			if err := s.Ready(ctx); err != nil {
				t.Errorf("not ready at the new primary: %v", err)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			if got := next.SQL("SELECT COUNT(*) FROM messages WHERE session_id = " + strconv.FormatInt(id, 10)); got != "1" {
				t.Errorf("the new primary has %s rows of the session, want 1", got)
			}
		})
	}
}

// TestMuteAddress has a name whose first address accepts and never answers.
func TestMuteAddress(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t)
	mute := relaytest.New(t, "127.0.0.2:0", "")
	_, port, _ := net.SplitHostPort(mute.Address)
	relaytest.New(t, "127.0.0.3:"+port, d.Address)
	s := openAt(t, d, "database.test:"+port)
	s.dialer.LookupHost = func(context.Context, string) ([]string, error) { return []string{"127.0.0.2", "127.0.0.3"}, nil }
	storetest.Start(t, s) // waits until it is ready
}

func TestAnAddressWithoutMariaDB(t *testing.T) {
	t.Parallel()
	c := Defaults()
	c.Address = relaytest.New(t, "127.0.0.1:0", "").Address
	s, err := Open(c, zerolog.Nop())
	servicetest.NoError(t, err)
	run(t, s)
	servicetest.Fails(t, time.Second, "no greeting of a MariaDB server", s.Ready)
}

// TestNameMovesAlone moves the name while the old server still takes rows: no
// connection of the pool may lead to another server than the lock's.
func TestNameMovesAlone(t *testing.T) {
	t.Parallel()
	old, next := servertest.MariaDB(t), servertest.MariaDB(t)
	next.ShareAccount(old)
	r := relaytest.New(t, "127.0.0.2:0", old.Address)
	s := openAt(t, old, r.Address)
	storetest.Start(t, s)
	ctx := servicetest.Context(t, 20*time.Second)
	storetest.Begin(t, ctx, s)
	r.To(next.Address)
	l, _, _ := s.current()
	l.db.SetMaxIdleConns(0) // the next statement dials
	storetest.Begin(t, ctx, s)
	if held := next.SQL("SELECT IS_USED_LOCK('tricycle/tricycle') IS NOT NULL"); held != "1" {
		t.Error("the new server has a session and nobody holds its lock")
	}
}

package mariadb

import (
	"context"
	"database/sql"
	"fmt"
	"strings"

	"github.com/tricycle-relay/tricycle/services/ms1/sqlstore"
)

// explained is what a commit needs: both tables, the privilege to insert, and no
// lock of somebody else on them. EXPLAIN changes nothing and is not replicated.
const explained = "EXPLAIN INSERT INTO messages (session_id, service1_timestamp, service2_timestamp, service3_timestamp, end_timestamp) " +
	"SELECT id, started_at, started_at, started_at, started_at FROM sessions WHERE FALSE FOR UPDATE"

// schema is what the figures rest on. Tables of these names may belong to another
// program, or somebody has changed ours.
var schema = []setting{
	{"engine of sessions", "InnoDB"},
	{"engine of messages", "InnoDB"},
	{"engine of lost_messages", "InnoDB"},
	{"unique keys of sessions", "id"},
	{"unique keys of messages", "session_id,service1_timestamp"},
	{"unique keys of lost_messages", "session_id,service1_timestamp"},
	{"type of sessions.id", "bigint(20) auto_increment"},
	{"type of sessions.started_at", "datetime(6)"},
	{"type of sessions.ended_at", "datetime(6)"},
	{"type of messages.service1_timestamp", "datetime(6)"},
	{"type of messages.service2_timestamp", "datetime(6)"},
	{"type of messages.service3_timestamp", "datetime(6)"},
	{"type of messages.end_timestamp", "datetime(6)"},
	{"type of lost_messages.service1_timestamp", "datetime(6)"},
}

// verify returns an error that names the first part of the schema that is another
// one, or why no row could be committed.
func verify(ctx context.Context, db *sql.DB) error {
	const ours = " WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME IN ('sessions', 'messages', 'lost_messages')"
	found := map[string]string{}
	if _, err := sqlstore.ReadAll(ctx, db, func(rows *sql.Rows, s *setting) error {
		err := rows.Scan(&s.name, &s.value)
		found[s.name] = s.value
		return err
	}, "SELECT CONCAT('engine of ', TABLE_NAME), COALESCE(ENGINE, TABLE_TYPE) FROM information_schema.TABLES"+ours+
		" UNION ALL SELECT CONCAT('unique keys of ', TABLE_NAME), GROUP_CONCAT(COLUMN_NAME ORDER BY INDEX_NAME, SEQ_IN_INDEX) FROM information_schema.STATISTICS"+ours+
		" AND NON_UNIQUE = 0 GROUP BY TABLE_NAME"+
		" UNION ALL SELECT CONCAT('type of ', TABLE_NAME, '.', COLUMN_NAME), TRIM(CONCAT(COLUMN_TYPE, ' ', EXTRA)) FROM information_schema.COLUMNS"+ours); err != nil {
		return err
	}
	if err := compare(found, schema); err != nil {
		return err
	}
	_, err := db.ExecContext(ctx, explained)
	return err
}

// compare returns an error that names the first setting with another value.
func compare(found map[string]string, want []setting) error {
	for _, s := range want {
		if value, ok := found[s.name]; !ok {
			return fmt.Errorf("%s: must be %s, got nothing", s.name, s.value)
		} else if !strings.EqualFold(value, s.value) {
			return fmt.Errorf("%s: must be %s, got %s", s.name, s.value, value)
		}
	}
	return nil
}

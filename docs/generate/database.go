package generate

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Query is a query for MariaDB. A test runs each.
type Query struct{ Purpose, SQL string }

// Queries are those of the page.
var Queries = []Query{
	{"The sessions, the newest first.",
		"SELECT * FROM sessions ORDER BY id DESC LIMIT 20"},
	{"Do the figures hold? No row is the answer hoped for.",
		"SELECT id, generated, stored, lost, rows_found\n" +
			"FROM sessions JOIN (SELECT session_id, COUNT(*) AS rows_found FROM messages GROUP BY session_id) m ON session_id = id\n" +
			"WHERE ended_at IS NOT NULL AND (stored <> rows_found OR generated <> stored + lost)"},
	{"How long the hops of a session took, in microseconds. Negative times are those of clocks that differ.",
		"SELECT COUNT(*) AS messages,\n" +
			"  AVG(TIMESTAMPDIFF(MICROSECOND, service1_timestamp, service2_timestamp)) AS ms1_to_ms2,\n" +
			"  AVG(TIMESTAMPDIFF(MICROSECOND, service2_timestamp, service3_timestamp)) AS ms2_to_ms3,\n" +
			"  AVG(TIMESTAMPDIFF(MICROSECOND, service3_timestamp, end_timestamp)) AS ms3_to_ms1,\n" +
			"  MAX(TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp)) AS slowest_round\n" +
			"FROM messages WHERE session_id = 1"},
	{"The slowest messages of a session, and the trace of each.",
		"SELECT *, LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/',\n" +
			"         DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 32) AS trace_id\n" +
			"FROM messages WHERE session_id = 1\n" +
			"ORDER BY TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp) DESC LIMIT 10"},
	{"The lost messages of a session and why: at most the 4,096 that were given up last.",
		"SELECT service1_timestamp, reason FROM lost_messages WHERE session_id = 1"},
	{"Messages stored in each second of a session.",
		"SELECT DATE_FORMAT(end_timestamp, '%H:%i:%s') AS second, COUNT(*) AS messages\n" +
			"FROM messages WHERE session_id = 1 GROUP BY second ORDER BY second"},
}

func databasePage(src *source, pages map[string]string) error {
	p := newPage("Database", "MariaDB, the database that `database.name` names. MS1 creates the tables at its start and migrates older ones; the table\n"+
		"`goose_db_version` has their version. Every time is UTC, with microseconds. The embedded database of `allinone` has the same tables and\n"+
		"columns, and a time is text as in [the message](message.md). A session that is deleted takes its messages with it\n"+
		"([how](../operations.md#back-up-restore-delete)).\n\n## Queries\n\nFor MariaDB.")
	for _, q := range Queries {
		p.linef("%s\n\n```sql\n%s;\n```\n", q.Purpose, q.SQL)
	}
	for _, store := range []struct{ title, name string }{{"Tables in MariaDB", "mariadb"}, {"Tables in SQLite", "sqlite"}} {
		p.linef("## %s\n", store.title)
		files, err := filepath.Glob(filepath.Join(src.root, "services/ms1", store.name, "migrations/*.sql"))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("found no migrations of %s, expected some: %w", store.name, errors.Join(err, os.ErrNotExist))
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			p.linef("`%s`:\n\n```sql\n%s\n```\n", filepath.Base(file), bytes.TrimSpace(text))
		}
	}
	pages["database.md"] = p.text()
	return nil
}

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

// Queries are the queries of the page.
var Queries = []Query{
	{"The sessions, the newest first.",
		"SELECT * FROM sessions ORDER BY id DESC LIMIT 20"},
	{"Sessions whose figures do not add up. The result should be empty.",
		"SELECT id, generated, stored, lost, rows_found\n" +
			"FROM sessions JOIN (SELECT session_id, COUNT(*) AS rows_found FROM messages GROUP BY session_id) m ON session_id = id\n" +
			"WHERE ended_at IS NOT NULL AND (stored <> rows_found OR generated <> stored + lost)"},
	{"The times of the hops of a session, in microseconds. A time is negative if two clocks differ.",
		"SELECT COUNT(*) AS messages,\n" +
			"  AVG(TIMESTAMPDIFF(MICROSECOND, service1_timestamp, service2_timestamp)) AS ms1_to_ms2,\n" +
			"  AVG(TIMESTAMPDIFF(MICROSECOND, service2_timestamp, service3_timestamp)) AS ms2_to_ms3,\n" +
			"  AVG(TIMESTAMPDIFF(MICROSECOND, service3_timestamp, end_timestamp)) AS ms3_to_ms1,\n" +
			"  MAX(TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp)) AS slowest_round\n" +
			"FROM messages WHERE session_id = 1"},
	{"The slowest messages of a session with their traces.",
		"SELECT *, LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/',\n" +
			"         DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 32) AS trace_id\n" +
			"FROM messages WHERE session_id = 1\n" +
			"ORDER BY TIMESTAMPDIFF(MICROSECOND, service1_timestamp, end_timestamp) DESC LIMIT 10"},
	{"The lost messages of a session with the reasons: at most the 4,096 given up last.",
		"SELECT service1_timestamp, reason FROM lost_messages WHERE session_id = 1"},
	{"Messages stored in each second of a session.",
		"SELECT DATE_FORMAT(end_timestamp, '%H:%i:%s') AS second, COUNT(*) AS messages\n" +
			"FROM messages WHERE session_id = 1 GROUP BY second ORDER BY second"},
}

func databasePage(src *Source, pages map[string]string) error {
	p := newPage("Database", "`database.name` selects the database in MariaDB. MS1 creates the tables at start and migrates older ones; the table\n"+
		"`goose_db_version` has their version. Every time is UTC, with microseconds. The embedded database of `allinone` has the same tables and\n"+
		"columns, with times as text as in [the message](message.md). Deleting a session deletes its messages\n"+
		"([how](../operations.md#back-up-restore-delete)).\n\n## Queries\n\nFor MariaDB.")
	for _, q := range Queries {
		p.linef("%s\n\n```sql\n%s;\n```\n", q.Purpose, q.SQL)
	}
	for _, store := range []struct{ title, name string }{{"Tables in MariaDB", "mariadb"}, {"Tables in SQLite", "sqlite"}} {
		p.linef("## %s\n", store.title)
		files, err := filepath.Glob(filepath.Join(src.root, "services/ms1", store.name, "migrations/*.sql"))
		if err != nil || len(files) == 0 {
			return fmt.Errorf("read migrations of %s: %w", store.name, errors.Join(err, os.ErrNotExist))
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

package generate

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/rs/zerolog"
	_ "modernc.org/sqlite" // to read what the migrations have made

	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
)

// Column is a column of MariaDB's tables, as the migrations make it.
type Column struct {
	Table, Name string
	Type        string // in lower case, as information_schema has it
	Null        bool
	Extra       string // auto_increment, or nothing
	Key         bool   // part of the primary key
	Comment     string
}

// Query is a query that people need, for MariaDB. A test runs each.
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
	{"Messages stored in each second of a session.",
		"SELECT DATE_FORMAT(end_timestamp, '%H:%i:%s') AS second, COUNT(*) AS messages\n" +
			"FROM messages WHERE session_id = 1 GROUP BY second ORDER BY second"},
}

// Columns returns the columns that MariaDB's migrations make.
func Columns(root string) ([]Column, error) {
	names, err := filepath.Glob(filepath.Join(root, "services/ms1/mariadb/migrations/*.sql"))
	if err != nil || len(names) == 0 {
		return nil, fmt.Errorf("found no migrations, expected some: %w", errors.Join(err, os.ErrNotExist))
	}
	var all []Column
	for _, name := range names { // in their order
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		up, _, _ := strings.Cut(string(text), "-- +goose Down")
		up = regexp.MustCompile(`(?m)^\s*--.*$`).ReplaceAllString(up, "")
		for _, statement := range strings.Split(up, ";\n") {
			if statement = strings.TrimSpace(statement); statement == "" {
				continue
			}
			if all, err = apply(all, statement); err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
			}
		}
	}
	return all, nil
}

var (
	createTable = regexp.MustCompile(`(?is)^CREATE TABLE (?:IF NOT EXISTS )?(\w+) \(\n(.*)\n\)`)
	addColumn   = regexp.MustCompile(`(?is)^ALTER TABLE (\w+)\s+ADD COLUMN (?:IF NOT EXISTS )?(.*?);?$`)
	definition  = regexp.MustCompile(`(?i)^(\w+)\s+([A-Z]+(?:\(\d+\))?)(\s+NOT NULL)?(?:\s+DEFAULT NULL)?(\s+AUTO_INCREMENT)?(?:\s+COMMENT '(.*)')?$`)
	primaryKey  = regexp.MustCompile(`(?i)^PRIMARY KEY \((.*)\)$`)
	constraint  = regexp.MustCompile(`(?i)^(CONSTRAINT|KEY|INDEX|UNIQUE) `)
)

// apply applies a statement of a migration to the columns.
func apply(all []Column, statement string) ([]Column, error) {
	if found := addColumn.FindStringSubmatch(statement); found != nil {
		c, err := column(found[1], found[2])
		if err != nil {
			return nil, err
		}
		at := len(all) // after the last of its table
		for i, other := range all {
			if other.Table == c.Table {
				at = i + 1
			}
		}
		return slices.Insert(all, at, c), nil
	}
	found := createTable.FindStringSubmatch(statement)
	if found == nil {
		return nil, fmt.Errorf("found the statement %q, expected CREATE TABLE or ALTER TABLE … ADD COLUMN; teach docs/generate/database.go", statement)
	}
	for line := range strings.Lines(found[2]) {
		line = strings.TrimSuffix(strings.TrimSpace(line), ",")
		if key := primaryKey.FindStringSubmatch(line); key != nil {
			for _, name := range strings.Split(key[1], ", ") {
				for i := range all {
					all[i].Key = all[i].Key || all[i].Table == found[1] && all[i].Name == name
				}
			}
			continue
		}
		if constraint.MatchString(line) {
			continue
		}
		c, err := column(found[1], line)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func column(table, text string) (Column, error) {
	d := definition.FindStringSubmatch(strings.TrimSpace(text))
	if d == nil {
		return Column{}, fmt.Errorf("found the column definition %q, expected NAME TYPE … COMMENT; teach docs/generate/database.go", text)
	}
	if d[5] == "" {
		return Column{}, fmt.Errorf("found no COMMENT at %s.%s, expected what the column means", table, d[1])
	}
	return Column{Table: table, Name: d[1], Type: strings.ToLower(d[2]), Null: d[3] == "", Extra: strings.ToLower(strings.TrimSpace(d[4])), Comment: d[5]}, nil
}

// sqliteColumns runs SQLite's migrations and returns its columns, TABLE.NAME.
func sqliteColumns() (names []string, err error) {
	folder, err := os.MkdirTemp("", "generate")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	file := filepath.Join(folder, "tricycle.db")
	store, err := sqlite.Open(file, zerolog.Nop())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	_, err = store.LastSession(ctx) // waits for the file
	cancel()
	if err = errors.Join(<-done, err); !errors.Is(err, ms1.ErrNoSession) {
		return nil, err
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: filepath.ToSlash(file)}).String())
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.Query("SELECT t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c " +
		"WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name NOT LIKE 'goose_%' ORDER BY t.name DESC, c.cid")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

func databasePage(src *source, pages map[string]string) error {
	all, err := Columns(src.root)
	if err != nil {
		return err
	}
	// Both stores, and GET /sessions/{id}, show the same columns.
	var names, session []string
	for _, c := range all {
		names = append(names, c.Table+"."+c.Name)
	}
	embedded, err := sqliteColumns()
	if err != nil {
		return err
	}
	if !slices.Equal(names, embedded) {
		return fmt.Errorf("found the columns %v in SQLite's migrations, expected those of MariaDB's: %v", embedded, names)
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[ms1.Session]()) {
		session = append(session, "sessions."+f.Tag.Get("json"))
	}
	if !slices.Equal(names[:len(session)], session) {
		return fmt.Errorf("found the members %v in ms1.Session, expected the columns %v", session, names[:len(session)])
	}

	p := newPage("Database", "MariaDB, the database that `database.name` names. MS1 makes the tables at its start and brings older ones up to date; the table\n"+
		"`goose_db_version` says how far they are. Every time is UTC, with microseconds. In the embedded database of `allinone` the tables and columns\n"+
		"are the same, and a time is text as [on the wire](message.md).")
	for start := 0; start < len(all); {
		table := all[start].Table
		p.linef("## %s\n", table)
		var rows [][]string
		for ; start < len(all) && all[start].Table == table; start++ {
			c := all[start]
			null := "no"
			if c.Null {
				null = "yes"
			}
			notes := c.Comment
			if c.Extra != "" {
				notes += " (" + c.Extra + ")"
			}
			if c.Key {
				notes += "; **key**"
			}
			rows = append(rows, []string{code(c.Name), c.Type, null, notes})
		}
		p.table([]string{"column", "type", "NULL", "meaning"}, rows)
	}
	p.linef("`messages.session_id` refers to `sessions.id`; a session that is deleted takes its messages with it\n" +
		"([how](../operations.md#back-up-restore-delete)).\n\n## Queries\n")
	for _, q := range Queries {
		p.linef("%s\n\n```sql\n%s;\n```\n", q.Purpose, q.SQL)
	}
	p.linef("## How it is made\n")
	files, err := filepath.Glob(filepath.Join(src.root, "services/ms1/mariadb/migrations/*.sql"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		p.linef("`%s`:\n\n```sql\n%s\n```\n", filepath.Base(file), bytes.TrimSpace(text))
	}
	pages["database.md"] = p.text()
	return nil
}

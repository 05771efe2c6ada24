package mariadb

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

// TestREADMEAccounts runs the README's statements on a server that has the
// anonymous account of a plain mariadb-install-db.
func TestREADMEAccounts(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t)
	for _, file := range []string{"README.md", "README.ru.md"} {
		text := servicetest.Text(t, "../../../"+file)
		block := regexp.MustCompile("(?s)```sql\n(CREATE DATABASE.*?)```").FindStringSubmatch(text)
		if block == nil {
			t.Fatalf("%s: expected a block of SQL that creates the database, found none", file)
		}
		d.SQL("DROP USER IF EXISTS tricycle@'%', tricycle@localhost; CREATE USER IF NOT EXISTS ''@localhost; " +
			"CREATE DATABASE IF NOT EXISTS tricycle; USE mysql; DROP DATABASE tricycle; " + block[1])
		d.PasswordFile = t.TempDir() + "/password"
		servicetest.File(t, d.PasswordFile, "choose one\n")
		_, stop := serve(t, d)
		stop()
	}
}

// TestOverviewIsBounded counts what overview.sql reads and writes beside a
// session of many messages.
func TestOverviewIsBounded(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t, "--tmp-memory-table-size=16777216", "--max-heap-table-size=16777216")
	s, stop := serve(t, d)
	ctx := servicetest.Context(t, 20*time.Second)
	old, last := storetest.Begin(t, ctx, s), storetest.Begin(t, ctx, s)
	stop()
	for id, n := range map[int64]string{old: "100", last: "400000"} {
		d.SQL("INSERT INTO messages SELECT " + strconv.FormatInt(id, 10) + ", t.a, t.a + INTERVAL 1000 MICROSECOND, t.a + INTERVAL 2000 MICROSECOND, " +
			"t.a + INTERVAL seq MICROSECOND FROM (SELECT seq, '2026-11-25 10:15:30.123456' + INTERVAL seq*10 MICROSECOND AS a FROM seq_1_to_" + n + ") t")
	}
	text := servicetest.Text(t, "../../../compose/mariadb/overview.sql")
	out := d.SQL("FLUSH STATUS; " + text + "; SELECT 'reads', SUM(VARIABLE_VALUE) FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME LIKE 'HANDLER_READ%'; " +
		"SELECT 'files', VARIABLE_VALUE FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME = 'CREATED_TMP_DISK_TABLES'")
	figures := map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^(reads|files)\t(\d+)$`).FindAllStringSubmatch(out, -1) {
		figures[m[1]], _ = strconv.Atoi(m[2])
	}
	if figures["reads"] == 0 || figures["reads"] > 1_500_000 || figures["files"] != 0 {
		t.Errorf("the server read %d rows and made %d temporary files, want at most 1,500,000 and none", figures["reads"], figures["files"])
	}
	for _, want := range []string{"\t20000 or more\n", "\tnot counted\n", "whole round\t390.0000\t399.0000\t399.8000\t400.0000\n"} {
		if !strings.Contains(out+"\n", want) {
			t.Errorf("the overview has no %q:\n%s", want, out)
		}
	}
}

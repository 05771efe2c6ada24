package mariadb

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

const shipped = "../../../compose/config/"

func TestEveryKeyHasAVariable(t *testing.T) { programtest.Variables(t, Program()) }

func TestShippedConfiguration(t *testing.T) {
	loopback := programtest.Shipped(t, shipped, Program())
	if loopback.Listen != "127.0.0.1:8080" || loopback.Database.Address != "127.0.0.1:3306" || loopback.MS2.URL != "ws://127.0.0.1:8081/ws" {
		t.Errorf("the addresses on loopback: %+v", loopback)
	}
}

func TestRangesOfTheConfiguration(t *testing.T) {
	for key, text := range map[string]string{
		"listen":                             "listen: 8080",
		"interaction.interval_seconds":       "interaction: {interval_seconds: 0}",
		"interaction.in_flight":              "interaction: {in_flight: 4097}",
		"interaction.resend_after_seconds":   "interaction: {resend_after_seconds: 21}",
		"interaction.give_up_after_seconds":  "interaction: {give_up_after_seconds: 3601}",
		"interaction.drain_seconds":          "interaction: {drain_seconds: 61}",
		"such as ws://host:port/ws, got":     "ms2: {url: 'http://ms2:8081/ws'}",
		"database.address":                   "database: {address: mariadb}",
		"database.name":                      "database: {name: " + strings.Repeat("x", 56) + "}",
		"database.user":                      "database: {user: ''}",
		"tracing.sample_ratio":               "tracing: {sample_ratio: 1.5}",
		"logging.level":                      "logging: {level: loud}",
		"interaction.interval":               "interaction: {interval: 5}",
		"interaction.interval_seconds: expe": "interaction: {interval_seconds: 5s}",
	} {
		file := servicetest.File(t, "ms1.yaml", text)
		c := Program().Config
		if err := programtest.Load(&c, file); err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line that names %s", text, err, key)
		}
	}
}

// quiet is the command on a free port, with nothing around it.
func quiet(t *testing.T) program.Program[Settings] {
	p := Program()
	p.Config.Listen = "127.0.0.1:0"
	p.Config.Logging.File = filepath.Join(t.TempDir(), "ms1.log")
	p.Config.Database.Address = "127.0.0.1:1"
	p.Config.MS2.URL = "ws://127.0.0.1:1/ws"
	return p
}

func TestCommandWithoutItsEnvironment(t *testing.T) {
	c := programtest.Run(t, quiet(t))
	address := c.Address()
	body := ""
	servicetest.Eventually(t, 20*time.Second, "readiness names the reason", func() bool {
		resp, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		body = string(text)
		return err == nil && resp.StatusCode == http.StatusServiceUnavailable && strings.Count(body, `"not ready"`) == 3 && strings.Count(c.Out.String(), "connection refused") >= 2
	})
	check := quiet(t)
	check.Config.Listen = address
	var out, errs servicetest.Console
	if status := program.Main(t.Context(), check, []string{"-healthcheck"}, &out, &errs); status != 1 || !strings.Contains(errs.String(), "database") {
		t.Errorf("the health check exits with %d: %s", status, errs.String())
	}
	http.DefaultClient.CloseIdleConnections()
	if status := c.Stop(); status != 0 {
		t.Errorf("exit status %d: %s", status, c.Err.String())
	}
}

func TestCommandReportsWhatItCannotUse(t *testing.T) {
	taken := programtest.Run(t, quiet(t)).Address()
	directory := t.TempDir()
	for want, change := range map[string]func(c *Settings){
		"logging.file":                   func(c *Settings) { c.Logging.File = directory },
		"address already in use":         func(c *Settings) { c.Listen = taken },
		"database.password_file":         func(c *Settings) { c.Database.PasswordFile = filepath.Join(directory, "absent") },
		"must name a file with a secret": func(c *Settings) { c.Database.PasswordFile = os.DevNull },
	} {
		p := quiet(t)
		change(&p.Config)
		c := programtest.Run(t, p)
		if status, said := c.Wait(), c.Err.String(); status != 1 || !strings.Contains(said, want) || strings.Count(said, "\n") != 1 {
			t.Errorf("exit status %d and %q, want 1 and a line with %q", status, said, want)
		}
	}
}

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

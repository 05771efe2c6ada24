package mariadb

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
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
		if err := config.Load(&c, file); err == nil || !strings.Contains(err.Error(), key) || strings.Contains(err.Error(), "\n") {
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

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryKeyHasAVariable(t *testing.T) { servicetest.Variables(t, command()) }

func TestOnce(t *testing.T) {
	t.Parallel()
	c := servicetest.Run(t, command(), "-once", "-interval", "1", "-in-flight", "8", "-listen", "127.0.0.1:0", "-data", filepath.Join(t.TempDir(), "data"))
	if status := c.Wait(); status != 0 || !strings.Contains(c.Out.String(), "lost 0") {
		t.Errorf("exit status %d: %s%s", status, c.Out.String(), c.Err.String())
	}
}

func TestFlagsOutOfRange(t *testing.T) {
	t.Parallel()
	for flag, value := range map[string]string{"interval": "0", "in-flight": "4097", "listen": "8080"} {
		c := servicetest.Run(t, command(), "-"+flag, value)
		if status := c.Wait(); status != 1 || !strings.Contains(c.Err.String(), value) {
			t.Errorf("-%s %s: exit status %d: %s", flag, value, status, c.Err.String())
		}
	}
}

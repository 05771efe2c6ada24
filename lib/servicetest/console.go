package servicetest

import (
	"bytes"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Console is a log or the output of a program, readable while it is written.
type Console struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements [io.Writer].
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

// String returns what was written so far.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// Tail returns the end of what was written.
func (c *Console) Tail() string {
	text := c.String()
	return text[max(0, len(text)-20_000):]
}

// Count returns how often a text was written.
func (c *Console) Count(text string) int { return strings.Count(c.String(), text) }

// Has reports whether a text was written.
func (c *Console) Has(text string) bool { return c.Count(text) > 0 }

// Find waits for a match of the expression and returns its groups.
func (c *Console) Find(t testing.TB, expression string) (groups []string) {
	t.Helper()
	re := regexp.MustCompile(expression)
	for deadline := time.Now().Add(time.Minute); groups == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing matches %s in\n%s", expression, c)
		}
		groups = re.FindStringSubmatch(c.String())
	}
	return groups
}

package servicetest

import (
	"bytes"
	"encoding/json"
	"os"
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

// Events returns the lines of a log file, each of which must be a JSON object.
func Events(t testing.TB, path string) (events []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var event map[string]any
		if err := json.Unmarshal(line, &event); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		events = append(events, event)
	}
	return events
}

// Messages returns the messages of the lines of a log file.
func Messages(t testing.TB, path string) (messages []string) {
	t.Helper()
	for _, event := range Events(t, path) {
		messages = append(messages, event["message"].(string))
	}
	return messages
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

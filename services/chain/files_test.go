package chain

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
)

func readFile(t *testing.T, c *chain, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func yamlFile(t *testing.T, c *chain, text string) string {
	t.Helper()
	f, err := os.CreateTemp(c.dir, "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// get returns what a service answers, 0 if it does not.
func get(t *testing.T, service, url string) (status int, body string) {
	t.Helper()
	resp, err := openapitest.Client(t, service).Get(url)
	if err != nil {
		return 0, ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, ""
	}
	return resp.StatusCode, string(text)
}

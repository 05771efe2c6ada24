package docs_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/docs/generate"
	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// TestReference compares the pages with those that the generator writes into a
// copy of the code. There it must remove a page that is no longer generated,
// and leave one that is written by hand.
func TestReference(t *testing.T) {
	t.Parallel()
	found, err := generate.Read(root(t))
	if err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	for _, directory := range []string{"lib", "services"} {
		if err := os.CopyFS(filepath.Join(copied, directory), os.DirFS(filepath.Join(root(t), directory))); err != nil {
			t.Fatal(err)
		}
	}
	directory := filepath.Join(copied, generate.Directory)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	old, written := servicetest.File(t, filepath.Join(directory, "old.md"), found["metrics.md"]), servicetest.File(t, filepath.Join(directory, "written.md"), "# By hand\n")
	if err := generate.Write(copied); err != nil {
		t.Fatalf("the reference cannot be generated: %v", err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: got %v, want it removed", old, err)
	}
	if _, err := os.Stat(written); err != nil {
		t.Errorf("a page that is written by hand: %v", err)
	}
	want, err := generate.Read(copied)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch page, ok := found[name]; {
		case !ok:
			t.Errorf("%s/%s does not exist, run: %s", generate.Directory, name, generate.Command)
		case page != want[name]:
			t.Errorf("%s/%s is out of date, run: %s\n%s", generate.Directory, name, generate.Command, difference(page, want[name]))
		}
		delete(found, name)
	}
	for name := range found {
		t.Errorf("%s/%s is no longer generated, run: %s", generate.Directory, name, generate.Command)
	}
}

// difference returns the first line that differs.
func difference(found, expected string) string {
	a, b := strings.Split(found, "\n"), strings.Split(expected, "\n")
	for i := range max(len(a), len(b)) {
		line := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "nothing"
		}
		if line(a) != line(b) {
			return "got  " + line(a) + "\nwant " + line(b)
		}
	}
	return ""
}

// TestVariables: no two keys of a program have one variable, such as a.b_c and
// a_b.c would.
func TestVariables(t *testing.T) {
	source := generate.NewSource(root(t))
	for _, program := range generate.Programs {
		all, err := source.Keys(program)
		if err != nil {
			t.Fatal(err)
		}
		keys := map[string]string{}
		for _, key := range all {
			name := config.Variable(key.Name)
			if other := keys[name]; other != "" {
				t.Errorf("%s: %s sets %s and %s", program, name, other, key.Name)
			}
			keys[name] = key.Name
		}
	}
}

// TestKeysAreThoseOfTheFiles compares the keys on the page with the shipped
// files. A test of each program checks that these have every key.
func TestKeysAreThoseOfTheFiles(t *testing.T) {
	source := generate.NewSource(root(t))
	for _, program := range generate.Programs {
		text, err := os.ReadFile(filepath.Join(root(t), "compose/config", program+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var file map[string]any
		if err := yaml.Unmarshal(text, &file); err != nil {
			t.Fatal(err)
		}
		var shipped, described []string
		var walk func(section map[string]any, prefix string)
		walk = func(section map[string]any, prefix string) {
			for key, value := range section {
				if inner, ok := value.(map[string]any); ok {
					walk(inner, prefix+key+".")
				} else {
					shipped = append(shipped, prefix+key)
				}
			}
		}
		walk(file, "")
		all, err := source.Keys(program)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range all {
			described = append(described, key.Name)
		}
		slices.Sort(shipped)
		slices.Sort(described)
		if !slices.Equal(shipped, described) {
			t.Errorf("%s: got the keys %v on the page, want those of compose/config/%s.yaml: %v", program, described, program, shipped)
		}
	}
}

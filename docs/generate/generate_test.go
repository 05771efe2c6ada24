package generate

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/lib/config"
)

// tree returns the directory of the repository. Bazel gives a test only its
// declared files, but the link to go.mod leads to the real directory.
func tree(t *testing.T) string {
	t.Helper()
	file, err := filepath.EvalSymlinks("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(file)
}

// TestReference compares the pages with the output of the generator.
func TestReference(t *testing.T) {
	root := tree(t)
	want, err := Pages(root)
	if err != nil {
		t.Fatalf("the reference cannot be generated: %v", err)
	}
	again, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if want[name] != again[name] {
			t.Errorf("%s/%s differs between two runs", Directory, name)
		}
		switch page, ok := found[name]; {
		case !ok:
			t.Errorf("%s/%s does not exist, run: %s", Directory, name, Command)
		case page != want[name]:
			t.Errorf("%s/%s is out of date, run: %s\n%s", Directory, name, Command, difference(page, want[name]))
		}
		delete(found, name)
	}
	for name := range found {
		t.Errorf("%s/%s is no longer generated, run: %s", Directory, name, Command)
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

func TestWriteRemovesWhatIsNoLongerGenerated(t *testing.T) {
	root := t.TempDir()
	for _, directory := range []string{"lib", "services"} {
		if err := os.CopyFS(filepath.Join(root, directory), os.DirFS(filepath.Join(tree(t), directory))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, Directory), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"old.md": newPage("Old", "").text(), "written.md": "# By hand\n"} {
		if err := os.WriteFile(filepath.Join(root, Directory, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(root); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(filepath.Join(root, Directory, "*.md")); err != nil || !slices.ContainsFunc(names, func(name string) bool {
		return filepath.Base(name) == "written.md"
	}) || slices.ContainsFunc(names, func(name string) bool { return filepath.Base(name) == "old.md" }) {
		t.Errorf("got %v, %v, want written.md and not old.md", names, err)
	}
}

// TestVariables: no two keys of a program have one variable, such as a.b_c and
// a_b.c would.
func TestVariables(t *testing.T) {
	source := NewSource(tree(t))
	for _, program := range Programs {
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
	root := tree(t)
	source := NewSource(root)
	for _, program := range Programs {
		text, err := os.ReadFile(filepath.Join(root, "compose/config", program+".yaml"))
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

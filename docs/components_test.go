package docs_test

import (
	"bufio"
	"io/fs"
	"regexp"
	"strings"
	"testing"
)

// TestComponents compares the table of docs/decisions.md with the files that
// declare components: each component must have a row with its version.
func TestComponents(t *testing.T) {
	tree := tree(t)
	text, err := fs.ReadFile(tree, "docs/decisions.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []struct {
		file  string
		uses  *regexp.Regexp // name and version
		least int            // smallest number of components
	}{
		{"go.mod", regexp.MustCompile(`^\t(\S+) (v\S+)$`), 20}, // direct dependencies
		{"MODULE.bazel", regexp.MustCompile(`^bazel_dep\(name = "(\S+)", version = "(\S+)"`), 5},
		{"compose/compose.yaml", regexp.MustCompile(`^\s+image: ([a-z/]+):([0-9.]+)$`), 3}, // the service images have variables
		{"compose/monitoring.yaml", regexp.MustCompile(`^\s+image: ([a-z/]+):v?([0-9.]+)$`), 2},
	} {
		file, err := tree.Open(source.file)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if m := source.uses.FindStringSubmatch(lines.Text()); m != nil {
				found++
				if row := "| `" + m[1] + "` | " + m[2] + " |"; !strings.Contains(string(text), row) {
					t.Errorf("docs/decisions.md has no row %s of %s", row, source.file)
				}
			}
		}
		if found < source.least {
			t.Errorf("%s: got %d components, want at least %d", source.file, found, source.least)
		}
	}
	for file, row := range map[string]string{".bazelversion": "| Bazel | %s |", "go.mod": "| Go | %s |", "flake.nix": "| nixpkgs | %s |"} {
		content, err := fs.ReadFile(tree, file)
		if err != nil {
			t.Fatal(err)
		}
		version := strings.TrimSpace(string(content))
		if found := regexp.MustCompile(`(?m)(?:^toolchain go|/nixos-)([0-9.]+)`).FindStringSubmatch(version); found != nil {
			version = found[1]
		}
		if row = strings.Replace(row, "%s", version, 1); !strings.Contains(string(text), row) {
			t.Errorf("docs/decisions.md has no row %s of %s", row, file)
		}
	}
}

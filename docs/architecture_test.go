package docs_test

import (
	"go/build"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// node returns the name of a package in the picture of docs/architecture.md.
func node(pkg string) string {
	if path.Base(path.Dir(pkg)) == "cmd" {
		return "cmd_" + path.Base(pkg)
	}
	return path.Base(pkg)
}

// TestPicture compares the arrows between packages in docs/architecture.md with
// the imports. It omits packages for tests and the arrows from services to lib.
func TestPicture(t *testing.T) {
	tree := tree(t)
	var want []string
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		top, _, below := strings.Cut(name, "/")
		if err != nil || !d.IsDir() || !below || top != "services" && top != "lib" || strings.HasSuffix(name, "test") {
			return err
		}
		pkg, err := build.ImportDir(filepath.Join(root(t), name), 0)
		if err != nil {
			return nil // no Go files for the program
		}
		for _, imported := range pkg.Imports {
			if to, ok := strings.CutPrefix(imported, "github.com/tricycle-relay/tricycle/"+top+"/"); ok {
				want = append(want, node(name)+" --> "+node(to))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, b := range readPage(t, tree, "docs/architecture.md").blocks {
		if !strings.Contains(b.text, "subgraph") {
			continue
		}
		for line := range strings.Lines(b.text) {
			from, all, arrow := strings.Cut(strings.TrimSpace(line), " --> ")
			for _, to := range strings.Split(all, " & ") {
				if arrow && from != "services" {
					got = append(got, from+" --> "+to)
				}
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("docs/architecture.md has the arrows\n%s\nwant the imports\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

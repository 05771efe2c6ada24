// Package lib holds only the tests of the tree's own rules: which package may
// import which, and that Bazel and Go see the same files.
package lib

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tricycle-relay/tricycle/"

// tree returns the repository. Under Bazel, which gives a test only the files
// that it declares, this is where the link to go.mod leads: the real one.
func tree(t *testing.T) fs.FS {
	t.Helper()
	file, err := filepath.EvalSymlinks("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	return os.DirFS(root)
}

// goFiles returns the paths of all Go files.
func goFiles(t *testing.T, tree fs.FS) (files []string) {
	t.Helper()
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch base := path.Base(name); {
		case err != nil:
			return err
		case d.IsDir() && (base == "testdata" || base == "vendor" || name != "." && strings.HasPrefix(base, ".")): // as the go command does
			return fs.SkipDir
		case strings.HasSuffix(name, ".go"):
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("got no Go files")
	}
	return files
}

// parsed returns the syntax trees of all Go files by their paths.
func parsed(t *testing.T, mode parser.Mode) map[string]*ast.File {
	t.Helper()
	tree, files := tree(t), map[string]*ast.File{}
	for _, name := range goFiles(t, tree) {
		text, err := fs.ReadFile(tree, name)
		if err == nil {
			files[name], err = parser.ParseFile(token.NewFileSet(), name, text, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestImports(t *testing.T) {
	// Those that wire the services together.
	wiring := []string{"services/allinone", "services/chain"}
	for name, file := range parsed(t, parser.ImportsOnly) {
		from := room(name)
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			to, ours := strings.CutPrefix(imported, module)
			if !ours || !strings.HasPrefix(to, "services/") {
				continue
			}
			switch to = room(to + "/"); {
			case strings.HasPrefix(from, "lib/"):
				t.Errorf("%s imports %s: lib must not know the services", name, imported)
			case strings.HasPrefix(from, "services/") && from != to && !slices.Contains(wiring, from):
				t.Errorf("%s imports %s: a service must not know another", name, imported)
			}
		}
	}
}

// A type that does more is hard to keep in mind.
const mostMethods = 15

func TestTypesHaveFewMethods(t *testing.T) {
	methods := map[string]int{}
	for name, file := range parsed(t, parser.SkipObjectResolution) {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil && !strings.HasSuffix(name, "_test.go") {
				receiver := strings.TrimPrefix(types.ExprString(f.Recv.List[0].Type), "*")
				methods[path.Dir(name)+"."+receiver]++
			}
		}
	}
	for name, n := range methods {
		if n > mostMethods {
			t.Errorf("%s has %d methods, want at most %d", name, n, mostMethods)
		}
	}
}

// room returns the first two directories of a path.
func room(name string) string {
	parts := strings.SplitN(path.Dir(name), "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func TestEveryPackageHasABuildFile(t *testing.T) {
	tree := tree(t)
	for _, name := range goFiles(t, tree) {
		if _, err := fs.Stat(tree, path.Join(path.Dir(name), "BUILD.bazel")); err != nil {
			t.Errorf("%s: %v; write it with: bazel run //:gazelle", path.Dir(name), err)
		}
	}
}

func TestEveryServiceHasAnImage(t *testing.T) {
	tree := tree(t)
	list, err := fs.ReadFile(tree, "oci/images.bzl")
	if err != nil {
		t.Fatal(err)
	}
	programs, err := fs.Glob(tree, "services/*/cmd/*")
	if err != nil {
		t.Fatal(err)
	}
	if len(programs) == 0 {
		t.Fatal("got no programs")
	}
	for _, program := range programs {
		// allinone is for trying out, on a machine without containers.
		if program != "services/allinone/cmd/allinone" && !strings.Contains(string(list), `"//`+program+`"`) {
			t.Errorf("oci/images.bzl has no entry for //%s", program)
		}
	}
}

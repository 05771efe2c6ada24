package generate

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/tricycle-relay/tricycle/"

// Source is the Go code of a tree, each package parsed once.
type Source struct {
	root  string
	fset  *token.FileSet
	files map[string][]*ast.File
}

// NewSource returns the code of the tree at root.
func NewSource(root string) *Source {
	return &Source{root: root, fset: token.NewFileSet(), files: map[string][]*ast.File{}}
}

// parse returns the files of the package in a directory, without its tests.
func (s *Source) parse(directory string) ([]*ast.File, error) {
	if files, ok := s.files[directory]; ok {
		return files, nil
	}
	names, err := filepath.Glob(filepath.Join(s.root, directory, "*.go"))
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		file, err := parser.ParseFile(s.fset, path.Join(directory, filepath.Base(name)), text, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	s.files[directory] = files
	return files, nil
}

// directories returns the directories of lib and services that contain a package.
func (s *Source) directories() (directories []string, err error) {
	for _, top := range []string{"lib", "services"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(s.root, top), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if d.Name() == "testdata" {
				return fs.SkipDir
			}
			directory, err := filepath.Rel(s.root, name)
			if err != nil {
				return err
			}
			files, err := s.parse(filepath.ToSlash(directory))
			if len(files) > 0 {
				directories = append(directories, filepath.ToSlash(directory))
			}
			return err
		}))
	}
	return directories, err
}

// fieldComment returns the comments of a field of a struct of this module.
func (s *Source) fieldComment(t reflect.Type, field string) (comment string, err error) {
	err = s.inspect(strings.TrimPrefix(t.PkgPath(), module), func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != t.Name() {
			return true
		}
		ast.Inspect(spec, func(n ast.Node) bool {
			f, ok := n.(*ast.Field)
			if ok && slices.ContainsFunc(f.Names, func(name *ast.Ident) bool { return name.Name == field }) {
				comment = remark(f.Doc, f.Comment)
			}
			return true
		})
		return false
	})
	return comment, err
}

// inspect calls f for every node of a package, in the order of the code.
func (s *Source) inspect(directory string, f func(ast.Node) bool) error {
	files, err := s.parse(directory)
	for _, file := range files {
		ast.Inspect(file, f)
	}
	return err
}

// literal returns the value of a string literal.
func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(l.Value)
	return text, err == nil
}

// remark returns the comments of a declaration as one line.
func remark(groups ...*ast.CommentGroup) string {
	var texts []string
	for _, g := range groups {
		if text := strings.Join(strings.Fields(g.Text()), " "); text != "" {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, " ")
}

// format returns code as gofmt writes it.
func (s *Source) format(node ast.Node) string {
	var b bytes.Buffer
	config := printer.Config{Mode: printer.UseSpaces | printer.TabIndent, Tabwidth: 8}
	if err := config.Fprint(&b, s.fset, node); err != nil {
		return err.Error()
	}
	return b.String()
}

package generate

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

const module = "github.com/tricycle-relay/tricycle/"

// source is the Go code of the tree, each package parsed once.
type source struct {
	root  string
	fset  *token.FileSet
	files map[string][]*ast.File
}

func newSource(root string) *source {
	return &source{root: root, fset: token.NewFileSet(), files: map[string][]*ast.File{}}
}

// parse returns the files of the package in a folder, without its tests.
func (s *source) parse(folder string) ([]*ast.File, error) {
	if files, ok := s.files[folder]; ok {
		return files, nil
	}
	names, err := filepath.Glob(filepath.Join(s.root, folder, "*.go"))
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
		file, err := parser.ParseFile(s.fset, path.Join(folder, filepath.Base(name)), text, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	s.files[folder] = files
	return files, nil
}

// folders returns the folders of lib and services that hold a package.
func (s *source) folders() (folders []string, err error) {
	for _, top := range []string{"lib", "services"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(s.root, top), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			if d.Name() == "testdata" {
				return fs.SkipDir
			}
			folder, err := filepath.Rel(s.root, name)
			if err != nil {
				return err
			}
			files, err := s.parse(filepath.ToSlash(folder))
			if len(files) > 0 {
				folders = append(folders, filepath.ToSlash(folder))
			}
			return err
		}))
	}
	return folders, err
}

// fieldComment returns what the code says about a field of a struct.
func (s *source) fieldComment(t reflect.Type, field string) (string, error) {
	fields, err := s.structOf(t)
	if err != nil {
		return "", err
	}
	for _, f := range fields {
		for _, name := range f.Names {
			if name.Name == field {
				return remark(f.Doc, f.Comment), nil
			}
		}
	}
	return "", fmt.Errorf("found no field %s in %s", field, t)
}

func (s *source) structOf(t reflect.Type) ([]*ast.Field, error) {
	folder, ours := strings.CutPrefix(t.PkgPath()+"/", module)
	if !ours {
		return nil, fmt.Errorf("found type %s, expected one of this module", t)
	}
	files, err := s.parse(path.Clean(folder))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		for _, d := range file.Decls {
			g, _ := d.(*ast.GenDecl)
			if g == nil {
				continue
			}
			for _, spec := range g.Specs {
				if ts, ok := spec.(*ast.TypeSpec); ok && ts.Name.Name == t.Name() {
					if st, ok := ts.Type.(*ast.StructType); ok {
						return st.Fields.List, nil
					}
				}
			}
		}
	}
	return nil, fmt.Errorf("found no struct %s in %s", t.Name(), folder)
}

// constant is a string constant and what the code says about it.
type constant struct{ name, value, comment string }

// constants returns the string constants of a package, of one type ("" for
// those without one).
func (s *source) constants(folder, typeName string) ([]constant, error) {
	files, err := s.parse(folder)
	if err != nil {
		return nil, err
	}
	var found []constant
	for _, file := range files {
		for _, d := range file.Decls {
			g, _ := d.(*ast.GenDecl)
			if g == nil || g.Tok != token.CONST {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				if t, _ := v.Type.(*ast.Ident); (t == nil) != (typeName == "") || t != nil && t.Name != typeName {
					continue
				}
				for i, value := range v.Values {
					if text, ok := literal(value); ok {
						found = append(found, constant{v.Names[i].Name, text, remark(v.Doc, v.Comment)})
					}
				}
			}
		}
	}
	return found, nil
}

// functions calls f for every function of a package, named Receiver.name, in
// the order of the code.
func (s *source) functions(folder string, f func(file, name string, decl *ast.FuncDecl)) error {
	files, err := s.parse(folder)
	if err != nil {
		return err
	}
	for _, file := range files {
		for _, d := range file.Decls {
			if decl, ok := d.(*ast.FuncDecl); ok && decl.Body != nil {
				name := decl.Name.Name
				if decl.Recv != nil {
					receiver := decl.Recv.List[0].Type
					if star, ok := receiver.(*ast.StarExpr); ok {
						receiver = star.X
					}
					name = s.show(receiver) + "." + name
				}
				f(s.fset.Position(file.Package).Filename, name, decl)
			}
		}
	}
	return nil
}

// show returns code as gofmt writes it, on one line.
func (s *source) show(node ast.Node) string {
	var b bytes.Buffer
	if err := printer.Fprint(&b, s.fset, node); err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(b.String()), " ")
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
func (s *source) format(node ast.Node) string {
	var b bytes.Buffer
	config := printer.Config{Mode: printer.UseSpaces | printer.TabIndent, Tabwidth: 8}
	if err := config.Fprint(&b, s.fset, node); err != nil {
		return err.Error()
	}
	return b.String()
}

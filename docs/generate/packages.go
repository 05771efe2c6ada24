package generate

import (
	"cmp"
	"go/ast"
	"go/doc"
	"go/doc/comment"
	"regexp"
	"strings"
)

// packagePages writes a page for each Go package from its doc comments. go/doc
// and its Markdown are those of the toolchain that go.mod pins.
func packagePages(src *Source, pages map[string]string) error {
	directories, err := src.directories()
	if err != nil {
		return err
	}
	p := newPage("Go packages", "Each package with its exported names, from its doc comments.")
	var rows [][]string
	for _, directory := range directories {
		fresh := NewSource(src.root) // go/doc removes unexported names from the trees
		files, err := fresh.parse(directory)
		if err != nil {
			return err
		}
		pkg, err := doc.NewFromFiles(fresh.fset, files, module+directory)
		if err != nil {
			return err
		}
		name := "go/" + directory + ".md"
		pages[name] = fresh.packagePage(pkg, directory)
		rows = append(rows, []string{"[" + directory + "](" + name + ")", pkg.Synopsis(pkg.Doc)})
	}
	p.table([]string{"package", "purpose"}, rows)
	pages["packages.md"] = p.text()
	return nil
}

func (s *Source) packagePage(pkg *doc.Package, directory string) string {
	printer := pkg.Printer()
	printer.HeadingLevel = 3
	printer.HeadingID = nil
	// Links to symbols of this module lead to its pages.
	printer.DocLinkURL = func(link *comment.DocLink) string {
		to, ours := strings.CutPrefix(link.ImportPath, module)
		switch {
		case link.ImportPath == "":
			return anchor(pkg, link)
		case ours:
			return strings.Repeat("../", strings.Count(directory, "/")+1) + "go/" + to + ".md"
		}
		return link.DefaultURL("https://pkg.go.dev")
	}
	text := func(doc string) string { return strings.TrimSpace(string(printer.Markdown(pkg.Parser().Parse(doc)))) }

	p := newPage("package "+pkg.Name, "`import \""+module+directory+"\"`\n\n"+text(pkg.Doc))
	part := func(title, comment string, decl ast.Node) {
		if title != "" {
			p.linef("## %s\n", title)
		}
		p.linef("```go\n%s\n```\n", s.declaration(decl))
		if comment = text(comment); comment != "" {
			p.linef("%s\n", comment)
		}
	}
	values := func(list []*doc.Value) {
		for _, v := range list {
			part("", v.Doc, v.Decl)
		}
	}
	if len(pkg.Consts)+len(pkg.Vars) > 0 {
		p.linef("## Constants and variables\n")
		values(pkg.Consts)
		values(pkg.Vars)
	}
	for _, f := range pkg.Funcs {
		part("func "+f.Name, f.Doc, f.Decl)
	}
	for _, t := range pkg.Types {
		part("type "+t.Name, t.Doc, t.Decl)
		values(t.Consts)
		values(t.Vars)
		for _, f := range append(t.Funcs, t.Methods...) {
			part("", f.Doc, f.Decl)
		}
	}
	return p.text()
}

var blankLines = regexp.MustCompile(`\n\n+`)

// declaration returns a declaration without its comment and its body.
func (s *Source) declaration(decl ast.Node) string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		d.Body, d.Doc = nil, nil
	case *ast.GenDecl:
		d.Doc = nil
	}
	return blankLines.ReplaceAllString(strings.TrimSpace(s.format(decl)), "\n")
}

// anchor returns where a symbol is on its package's page.
func anchor(pkg *doc.Package, link *comment.DocLink) string {
	name := cmp.Or(link.Recv, link.Name)
	for _, t := range pkg.Types {
		if t.Name == name {
			return "#type-" + strings.ToLower(name)
		}
		for _, f := range t.Funcs { // a constructor stands with its type
			if f.Name == name {
				return "#type-" + strings.ToLower(t.Name)
			}
		}
	}
	for _, f := range pkg.Funcs {
		if f.Name == name {
			return "#func-" + strings.ToLower(name)
		}
	}
	return "#constants-and-variables"
}

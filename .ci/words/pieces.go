package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// pieces returns the texts of a file, or nothing for a file without prose.
func pieces(file, content string) ([]piece, error) {
	switch name := path.Base(file); {
	case name == "LICENSE", name == "go.sum", name == "flake.lock", strings.HasPrefix(file, "docs/reference/") && path.Ext(name) == ".md":
		return nil, nil // not ours, or generated from sources that are checked
	case path.Ext(name) == ".go":
		return goPieces(file, content)
	case path.Ext(name) == ".md":
		return pagePieces(file, content), nil
	case strings.Contains(content, "\x00"):
		return nil, nil
	}
	return linePieces(file, content), nil
}

// goPieces returns comments, string literals, log messages and error texts.
func goPieces(file, content string) ([]piece, error) {
	set := token.NewFileSet()
	tree, err := parser.ParseFile(set, file, content, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var found []piece
	add := func(at token.Pos, kind kind, text string) {
		found = append(found, piece{file, set.Position(at).Line, kind, text})
	}
	for _, group := range tree.Comments {
		var lines []string
		for _, c := range group.List {
			line := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(c.Text, "//"), "/*"), "*/")
			if strings.HasPrefix(line, "go:") || strings.HasPrefix(line, "line ") {
				line = ""
			}
			lines = append(lines, line)
		}
		add(group.Pos(), comment, strings.Join(lines, "\n"))
	}
	literals := map[*ast.BasicLit]kind{}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.CallExpr:
			kind := calls[called(n)]
			if kind == "" || len(n.Args) == 0 {
				break
			}
			if _, ok := n.Args[0].(*ast.BasicLit); !ok && kind == logged && !strings.HasSuffix(file, "_test.go") {
				add(n.Pos(), logged, "%v") // not static; tests of the logger have such
			}
			ast.Inspect(n.Args[0], func(n ast.Node) bool {
				if literal, ok := n.(*ast.BasicLit); ok {
					literals[literal] = kind
				}
				return true
			})
		case *ast.BasicLit:
			kind := literals[n]
			if kind == "" {
				kind = text
			}
			if value, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
				add(n.Pos(), kind, value)
			}
		}
		return true
	})
	return found, nil
}

// calls are the functions whose first argument is a message.
var calls = map[string]kind{
	"Msg": logged, "Msgf": logged,
	"errors.New": failure, "fmt.Errorf": failure,
}

// called returns the name of a function, with that of its package for errors
// and fmt.
func called(call *ast.CallExpr) string {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if x, ok := selector.X.(*ast.Ident); ok && (x.Name == "errors" || x.Name == "fmt") {
		return x.Name + "." + selector.Sel.Name
	}
	return selector.Sel.Name
}

var (
	fence  = regexp.MustCompile("^ *```")
	code   = regexp.MustCompile("`[^`]*`")
	target = regexp.MustCompile(`\]\([^)]*\)`)
	item   = regexp.MustCompile(`^ *([-*]|\d+\.) +|^#+ +`)
)

// pagePieces returns the paragraphs, headings, items and cells of Markdown,
// without code and link targets.
func pagePieces(file, content string) (found []piece) {
	inCode := false
	open := false // the last piece goes on in the next line
	for i, line := range strings.Split(content, "\n") {
		switch trimmed := strings.TrimSpace(line); {
		case fence.MatchString(line):
			inCode, open = !inCode, false
		case inCode || trimmed == "":
			open = false
		case strings.HasPrefix(trimmed, "|"):
			open = false
			for _, cell := range strings.Split(plain(trimmed), "|") {
				found = append(found, piece{file, i + 1, page, strings.TrimSpace(cell)})
			}
		case open && !item.MatchString(line):
			last := &found[len(found)-1]
			last.text += "\n" + line
		default:
			open = !strings.HasPrefix(trimmed, "#")
			found = append(found, piece{file, i + 1, page, item.ReplaceAllString(line, "")})
		}
	}
	for i := range found {
		found[i].text = plain(found[i].text)
	}
	return found
}

// plain replaces code by a word that no rule matches.
func plain(line string) string {
	return target.ReplaceAllString(code.ReplaceAllStringFunc(line, func(code string) string {
		return "X" + strings.Repeat("\n", strings.Count(code, "\n"))
	}), "")
}

var marker = regexp.MustCompile(`^\s*(#+!?|--|//)(\s|$)`)
var trailing = regexp.MustCompile(`\s(#|--|//) .*$`)

// linePieces returns the comments and the lines of any other file.
func linePieces(file, content string) (found []piece) {
	open := false // the last piece is a comment
	for i, line := range strings.Split(content, "\n") {
		if at := marker.FindStringIndex(line); at != nil {
			if line = line[at[1]:]; open {
				found[len(found)-1].text += "\n" + line
			} else {
				found = append(found, piece{file, i + 1, comment, line})
			}
			open = true
			continue
		}
		open = false
		if at := trailing.FindStringIndex(line); at != nil {
			found = append(found, piece{file, i + 1, comment, strings.TrimLeft(line[at[0]:], " \t#-/")})
			line = line[:at[0]]
		}
		if line != "" {
			found = append(found, piece{file, i + 1, text, " " + line})
		}
	}
	return found
}

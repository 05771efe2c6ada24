package docs_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root returns the directory of the repository. Bazel gives a test only its
// declared files, but the link to go.mod leads to the real directory.
func root(t *testing.T) string {
	t.Helper()
	file, err := filepath.EvalSymlinks("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(file)
}

func tree(t *testing.T) fs.FS {
	t.Helper()
	return os.DirFS(root(t))
}

// block is a fenced block of a page.
type block struct {
	info string // its language
	text string
}

// page is a Markdown page, parsed as far as the tests need it.
type page struct {
	name     string
	blocks   []block
	commands []string // in code marks: all in table columns headed 'command', elsewhere those that begin with a command
	prose    string   // text outside blocks and code marks
	anchors  []string // of its headings
}

var (
	codeSpan    = regexp.MustCompile("`[^`]*`")
	heading     = regexp.MustCompile(`^#{1,6} (.*)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}\p{M}_\- ]`)
	beginning   = regexp.MustCompile("`(go|bazel|bash|curl|nix|docker compose) [^`]+`")
	commandHead = regexp.MustCompile(`(?i)command|команда`)
)

func readPage(t *testing.T, tree fs.FS, name string) page {
	t.Helper()
	text, err := fs.ReadFile(tree, name)
	if err != nil {
		t.Fatal(err)
	}
	return takeApart(name, string(text))
}

func takeApart(name, text string) page {
	p := page{name: name}
	var open *block
	var prose []string
	column := -1 // of commands, in the current table
	inTable := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if info, fence := strings.CutPrefix(line, "```"); fence {
			if open == nil {
				open = &block{info: info}
			} else {
				p.blocks = append(p.blocks, *open)
				open = nil
			}
			continue
		}
		if open != nil {
			open.text += line + "\n"
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			p.anchors = append(p.anchors, anchor(m[1]))
		}
		if strings.HasPrefix(line, "|") {
			cells := strings.Split(strings.Trim(line, "|"), " | ")
			if !inTable {
				inTable = true
				column = slices.IndexFunc(cells, commandHead.MatchString)
			} else if column >= 0 && column < len(cells) {
				p.commands = append(p.commands, codeSpan.FindAllString(cells[column], -1)...)
				cells = slices.Delete(cells, column, column+1)
			}
			p.commands = append(p.commands, beginning.FindAllString(strings.Join(cells, " "), -1)...)
		} else {
			inTable, column = false, -1
			p.commands = append(p.commands, beginning.FindAllString(line, -1)...)
		}
		prose = append(prose, line)
	}
	for i := range p.commands {
		p.commands[i] = strings.Trim(p.commands[i], "`")
	}
	p.prose = codeSpan.ReplaceAllString(strings.Join(prose, "\n"), "")
	return p
}

// anchor returns the name that code hosts give a heading.
func anchor(heading string) string {
	heading = strings.ToLower(strings.TrimSpace(heading))
	return strings.ReplaceAll(notInAnchor.ReplaceAllString(heading, ""), " ", "-")
}

// pages returns the Markdown pages of the tree.
func pages(t *testing.T, tree fs.FS) (names []string) {
	t.Helper()
	top, err := fs.Glob(tree, "*.md")
	if err != nil {
		t.Fatal(err)
	}
	names = top
	err = fs.WalkDir(tree, "docs", func(name string, _ fs.DirEntry, err error) error {
		if path.Ext(name) == ".md" {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 5 {
		t.Fatalf("got the pages %v, want at least 5", names)
	}
	return names
}

// link is a relative or absolute link of a page.
var link = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)

func links(p page) (targets []string) {
	for _, m := range link.FindAllStringSubmatch(p.prose, -1) {
		targets = append(targets, m[1])
	}
	return targets
}

// deadLinks returns the errors of the links of a page. It makes no requests to
// other hosts.
func deadLinks(t *testing.T, tree fs.FS, p page) (wrong []string) {
	for _, target := range links(p) {
		if strings.Contains(target, "://") {
			continue
		}
		file, fragment, _ := strings.Cut(target, "#")
		name := p.name
		if file != "" {
			name = path.Join(path.Dir(p.name), file)
		}
		switch _, err := fs.Stat(tree, name); {
		case err != nil:
			wrong = append(wrong, "link to "+target+": "+name+" does not exist")
		case fragment != "" && path.Ext(name) != ".md":
			wrong = append(wrong, "link to "+target+": only pages have anchors")
		case fragment != "" && !slices.Contains(readPage(t, tree, name).anchors, fragment):
			wrong = append(wrong, "link to "+target+": "+name+" has no heading #"+fragment)
		}
	}
	return wrong
}

func TestLinks(t *testing.T) {
	tree := tree(t)
	found := 0
	for _, name := range pages(t, tree) {
		p := readPage(t, tree, name)
		found += len(links(p))
		for _, wrong := range deadLinks(t, tree, p) {
			t.Errorf("%s: %s", name, wrong)
		}
	}
	if found < 100 {
		t.Errorf("got %d links, want at least 100", found)
	}
}

// TestTheTwoREADMEs compares the English and the Russian one: their commands,
// their other code and their links, in this order.
func TestTheTwoREADMEs(t *testing.T) {
	tree := tree(t)
	english, russian := readPage(t, tree, "README.md"), readPage(t, tree, "README.ru.md")
	comment := regexp.MustCompile(`(?m)^-- .*$`)
	shape := func(p page) (all []string) {
		for _, b := range p.blocks {
			if b.info == "" {
				continue // pictures and output of programs
			}
			all = append(all, b.info+"\n"+comment.ReplaceAllString(b.text, "--"))
		}
		all = append(all, p.commands...)
		return append(all, links(p)...)
	}
	other := strings.NewReplacer("README.ru.md", "README", "README.md", "README")
	a, b := strings.Join(shape(english), "\n"), strings.Join(shape(russian), "\n")
	if differs := difference(other.Replace(a), other.Replace(b)); differs != "" {
		t.Errorf("README.md has other commands or links than README.ru.md:\n%s", differs)
	}
}

// TestNamedFunctions checks that a function in brackets behind a link is in the
// linked file.
func TestNamedFunctions(t *testing.T) {
	tree := tree(t)
	named := regexp.MustCompile("\\]\\((\\S+\\.go)\\) \\(`(\\w+)`\\)")
	for _, name := range pages(t, tree) {
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			code, err := fs.ReadFile(tree, path.Join(path.Dir(name), m[1]))
			if err != nil || !regexp.MustCompile(`(?m)^func (\([^)]*\) )?`+m[2]+`\(`).Match(code) {
				t.Errorf("%s: %s has no function %s (%v)", name, m[1], m[2], err)
			}
		}
	}
}

func TestTakeApart(t *testing.T) {
	p := takeApart("x.md", "# A `b` – c\n[l](m.md) `[no](x.md)` `go fmt x` `go`\n```sh\n[no](y)\n```\n| x | the command that shows it |\n|---|---|\n| `no` | `go test` and `go vet` |\n\n| y |\n|---|\n| `no` |\n")
	if !slices.Equal(p.anchors, []string{"a-b--c"}) || !slices.Equal(p.commands, []string{"go fmt x", "go test", "go vet"}) ||
		!slices.Equal(links(p), []string{"m.md"}) || len(p.blocks) != 1 || p.blocks[0] != (block{"sh", "[no](y)\n"}) {
		t.Errorf("got %+v, links %v", p, links(p))
	}
}

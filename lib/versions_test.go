package lib

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// A place is where files name a version: the first group of the pattern.
type place struct{ files, pattern string }

// A version is one that several files name. The first place decides, and
// must be there; every mention in the others must agree,
// as 1.26 does with 1.26.8.
type version struct {
	name   string
	places []place
	also   string // another that they may speak of
}

var versions = []version{
	{"Go", []place{
		{"go.mod", `\ntoolchain go([\d.]+)`},
		{"go.mod", `\ngo (\d+\.\d+)`},
		{"flake.nix", `\bgo_(\d+_\d+)`},
		{".ci/offline/nixpkgs/flake.nix", `\bgo_(\d+_\d+)`},
		{docs, `\bGo (\d[\d.]*\d)`},
	}, ""},
	{"Go SDK of Bazel", []place{
		{"MODULE.bazel", `\ngo_sdk\.(from_file\(go_mod = "//:go.mod"\))`},
		{"MODULE.bazel", `\ngo_sdk\.((?:download|host|wrap|from_file)[^\n]*)`},
	}, ""},
	{"Bazel", []place{
		{".bazelversion", `^(\S+)`},
		{".bazelrc", `Debian's (\d[\d.]*\d)`},
		{"compose/compose.yaml", `\bbazel:([\d.]+)`},
		{docs, `\bBazel (\d+\.[\d.]*\d)`},
	}, ""},
	{"nixpkgs", []place{
		{"flake.nix", `nixpkgs/nixos-([\d.]+)"`},
		{"flake.lock", `"ref": "nixos-([\d.]+)"`},
		{".ci/offline/nixpkgs/flake.nix", `nixos-(\d\d\.\d\d)`},
		{docs, `nixos-(\d\d\.\d\d)`},
	}, ""},
	{"revision of nixpkgs", []place{
		{"flake.lock", `"rev": "([0-9a-f]{40})"`},
		{docs, `\b([0-9a-f]{40})\b`},
	}, ""},
	{"MariaDB", []place{
		{"compose/compose.yaml", `\bmariadb:([\d.]+)`},
		{scripts, `\bmariadb:([\d.]+)`},
		{scripts, `MariaDB (\d+\.[\d.]*\d)`},
		{docs, `MariaDB \(?(\d+\.[\d.]*\d)`},
		{docs, `MariaDB \(?[\d.]+ (?:or|and|или|и) (\d+\.[\d.]*\d)`},
		{docs, `\bmariadb:([\d.]*\d)`},
	}, "10.11"},
	{"Kafka", []place{
		{"compose/compose.yaml", `\bapache/kafka:([\d.]+)`},
		{".ci/kafka/pom.xml", `<kafka.version>([\d.]+)<`},
		{scripts, `\bapache/kafka:([\d.]+)`},
		{docs, `Kafka (\d+\.\d+\.\d+)`},
		{docs, `\bapache/kafka:([\d.]*\d)`},
	}, ""},
	{"the least Kafka", []place{
		{"README.md", `Kafka (\d+\.\d+) or later`},
		{".ci/kafka/pom.xml", `(\d+\.\d+) or later`},
		{docs, `Kafka (\d+\.\d+) (?:or later|или новее)`},
	}, ""},
	{"Jaeger", []place{
		{"compose/compose.yaml", `\bjaegertracing/jaeger:([\d.]+)`},
		{scripts, `\bjaegertracing/jaeger:([\d.]+)`},
		{".ci/servers", `is Jaeger (\d+\.\d+)`},
		{docs, `Jaeger (\d+\.[\d.]*\d)`},
		{docs, `\bjaegertracing/jaeger:([\d.]*\d)`},
	}, ""},
	{"Jaeger's module", []place{
		{".ci/servers", `\njaeger_module=\S+@v([\d.]+)`},
		{".ci/servers", `Module version v([\d.]+\d)`},
	}, ""},
}

const (
	docs    = "README*.md docs/*.md"
	scripts = ".ci/* .ci/*/* .ci/*/*/* .ci/*/*/*/*"
)

// A mention is one place of a version.
type mention struct {
	file     string
	text     []byte // of the file
	from, to int    // of the version in it
}

// find returns all mentions of a place.
func find(tree fs.FS, p place) (found []mention, err error) {
	for _, pattern := range strings.Fields(p.files) {
		files, err := fs.Glob(tree, pattern)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if info, err := fs.Stat(tree, file); err != nil || info.IsDir() {
				continue
			}
			text, err := fs.ReadFile(tree, file)
			if err != nil {
				return nil, err
			}
			for _, at := range regexp.MustCompile(p.pattern).FindAllSubmatchIndex(text, -1) {
				found = append(found, mention{file, text, at[2], at[3]})
			}
		}
	}
	return found, nil
}

// disagreements returns one line for each mention of a version that does not
// agree with the first.
func (v version) disagreements(tree fs.FS) (lines []string, err error) {
	var want, decides string
	for i, p := range v.places {
		found, err := find(tree, p)
		if err != nil {
			return nil, err
		}
		if i == 0 && len(found) == 0 {
			return []string{fmt.Sprintf("%s: must have a version of %s like %s", p.files, v.name, p.pattern)}, nil
		}
		for _, m := range found {
			got := strings.ReplaceAll(string(m.text[m.from:m.to]), "_", ".")
			if decides == "" {
				want, decides = got, m.file
			}
			if got != v.also && !agree(got, want) {
				lines = append(lines, fmt.Sprintf("%s: %s must be %s as in %s, got %s", m.file, v.name, want, decides, got))
			}
		}
	}
	return lines, nil
}

// agree reports whether one of two versions is the other, or a less exact form
// of it.
func agree(a, b string) bool {
	return strings.HasPrefix(a+".", b+".") || strings.HasPrefix(b+".", a+".")
}

func TestVersions(t *testing.T) {
	for _, v := range versions {
		lines, err := v.disagreements(tree(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			t.Error(line)
		}
	}
}

// Every single mention, changed alone, is seen.
func TestVersionsAreCompared(t *testing.T) {
	tree := tree(t)
	var changed []string
	for _, version := range versions {
		for _, p := range version.places {
			found, err := find(tree, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range found {
				changed = append(changed, m.file)
				t.Run(fmt.Sprintf("%s/%s@%d", version.name, m.file, m.from), func(t *testing.T) {
					other := slices.Clone(m.text)
					other[m.from] = cmp.Or(map[byte]byte{'1': '2'}[m.text[m.from]], '1')
					lines, err := version.disagreements(overlay{tree, fstest.MapFS{m.file: {Data: other}}})
					if err != nil {
						t.Fatal(err)
					}
					if len(lines) == 0 {
						t.Errorf("%q in place of %q was not seen", other[m.from:m.to], m.text[m.from:m.to])
					}
				})
			}
		}
	}
	for _, file := range []string{
		"go.mod", "MODULE.bazel", ".bazelversion", ".bazelrc", "flake.nix", "flake.lock", "compose/compose.yaml",
		".ci/kafka/pom.xml", ".ci/servers", ".ci/offline/nixpkgs/flake.nix", "README.md", "README.ru.md", "docs/nix.md",
	} {
		if !slices.Contains(changed, file) {
			t.Errorf("got no version in %s", file)
		}
	}
}

// An overlay is a tree in which some files are others.
type overlay struct {
	fs.FS
	others fstest.MapFS
}

func (o overlay) Open(name string) (fs.File, error) {
	if _, ok := o.others[path.Clean(name)]; ok {
		return o.others.Open(name)
	}
	return o.FS.Open(name)
}

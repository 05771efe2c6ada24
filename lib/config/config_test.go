package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

type section struct {
	Ratio float64 `yaml:"ratio"`
	On    bool    `yaml:"on"`
}

type common struct {
	Listen string `yaml:"listen"`
}

type settings struct {
	common
	Common2 `yaml:",inline"`
	Count   int      `yaml:"count"`
	Big     int64    `yaml:"big"`
	List    []string `yaml:"list"`
	Section section  `yaml:"section"`
	Other   section  `yaml:"other"`
}

// Common2 is embedded and exported, as the services' configurations are.
type Common2 struct {
	Name string `yaml:"name"`
}

func (s *settings) Validate() error {
	return errors.Join(config.InRange("count", s.Count, 1, 10), config.InRange("section.ratio", s.Section.Ratio, 0, 1))
}

func defaults() settings {
	s := settings{Count: 5, Big: 6, List: []string{"one", "two"}, Section: section{Ratio: 0.5, On: true}}
	s.Name = "default"
	return s
}

func file(t *testing.T, text string) string { return servicetest.File(t, "settings.yaml", text) }

// same compares two configurations; a nil list is not an empty one.
func same(t *testing.T, got, want settings) {
	t.Helper()
	if fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// read reads files alone.
func read(into any, paths ...string) error {
	_, err := config.Read(into, nil, paths...)
	return err
}

func TestReadTakes(t *testing.T) {
	for name, c := range map[string]struct {
		texts []string
		want  func(*settings)
	}{
		"no file":                 {nil, func(*settings) {}},
		"an empty file":           {[]string{""}, func(*settings) {}},
		"comments only":           {[]string{"# count: 7\n"}, func(*settings) {}},
		"a document with nothing": {[]string{"---\n"}, func(*settings) {}},
		"the word null":           {[]string{"null"}, func(*settings) {}},
		"one key":                 {[]string{"count: 7"}, func(s *settings) { s.Count = 7 }},
		"Windows line ends":       {[]string{"count: 7\r\nname: a\r\n"}, func(s *settings) { s.Count, s.Name = 7, "a" }},
		"a byte order mark":       {[]string{"\ufeffcount: 7"}, func(s *settings) { s.Count = 7 }},
		"every type": {[]string{"name: x\ncount: -1\nbig: 9223372036854775807\nlist: [a, \"2\"]\nsection: {ratio: 0.25, on: false}"}, func(s *settings) {
			*s = settings{Common2: Common2{"x"}, Count: -1, Big: math.MaxInt64, List: []string{"a", "2"}, Section: section{Ratio: 0.25}}
		}},
		"a zero":                    {[]string{"count: 0"}, func(s *settings) { s.Count = 0 }},
		"a number in base 8":        {[]string{"count: 0o10"}, func(s *settings) { s.Count = 8 }},
		"a whole number as ratio":   {[]string{"section: {ratio: 1}"}, func(s *settings) { s.Section.Ratio = 1 }},
		"a section commented out":   {[]string{"section:\n  # ratio: 1\ncount: 7"}, func(s *settings) { s.Count = 7 }},
		"one key of a section":      {[]string{"section: {ratio: 1}"}, func(s *settings) { s.Section.Ratio = 1 }},
		"an empty string":           {[]string{`name: ""`}, func(s *settings) { s.Name = "" }},
		"an empty list":             {[]string{"list: []"}, func(s *settings) { s.List = []string{} }},
		"an embedded struct's key":  {[]string{"name: inner"}, func(s *settings) { s.Name = "inner" }},
		"an anchor and its alias":   {[]string{"section: &s {ratio: 0.1}\nother: *s"}, func(s *settings) { s.Section.Ratio, s.Other.Ratio = 0.1, 0.1 }},
		"an alias in a list":        {[]string{"name: &n x\nlist: [*n, y]"}, func(s *settings) { s.Name, s.List = "x", []string{"x", "y"} }},
		"an alias of a number":      {[]string{"count: &c 7\nbig: *c"}, func(s *settings) { s.Count, s.Big = 7, 7 }},
		"a later file over another": {[]string{"count: 7\nname: a", "name: b"}, func(s *settings) { s.Count, s.Name = 7, "b" }},
		"a later file in a section": {[]string{"section: {on: false}", "section: {ratio: 1}"}, func(s *settings) { s.Section = section{Ratio: 1} }},
		"a later list is the list":  {[]string{"list: [a, b, c]", "list: [d]"}, func(s *settings) { s.List = []string{"d"} }},
		"a later empty file":        {[]string{"count: 7", ""}, func(s *settings) { s.Count = 7 }},
	} {
		t.Run(name, func(t *testing.T) {
			var paths []string
			for _, text := range c.texts {
				paths = append(paths, file(t, text))
			}
			got, want := defaults(), defaults()
			list := got.List
			if err := read(&got, paths...); err != nil {
				t.Fatal(err)
			}
			c.want(&want)
			same(t, got, want)
			if !slices.Equal(list, []string{"one", "two"}) {
				t.Errorf("the list of the defaults has become %q", list)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	const keys = ", expected one of listen, name, count, big, list, section, other"
	for name, c := range map[string]struct{ text, want string }{
		"an unknown key":                  {"count: 1\ncuont: 2", "line 2: unknown key cuont" + keys},
		"an unknown key of a section":     {"section:\n  ratio: 1\n  off: 2", "line 3: unknown key section.off, expected one of ratio, on"},
		"another case":                    {"Count: 1", "line 1: unknown key Count" + keys},
		"an empty key":                    {`"": 1`, `line 1: unknown key ""` + keys},
		"a key of two lines":              {`"a\nb": 1`, `line 1: unknown key "a\nb"` + keys},
		"a key of two lines in a section": {`section: {"a\nb": 1}`, `line 1: unknown key section."a\nb", expected one of ratio, on`},
		"a list as key":                   {"? [a]\n: 2", "line 1: unknown key a list" + keys},
		"an alias as key":                 {"name: &count x\n*count : 3", "line 2: unknown key the alias *count" + keys},
		"a merge key":                     {"section: &s {ratio: 1}\nother:\n  <<: *s", "line 3: unknown key other.<<, expected one of ratio, on"},
		"a key twice":                     {"count: 1\nname: a\ncount: 2", "line 3: count: expected the key once, found it twice"},
		"a section twice":                 {"section: {on: true}\nsection: {ratio: 1}", "line 2: section: expected the key once, found it twice"},
		"a key of a section twice":        {"section:\n  on: true\n  on: true", "line 3: section.on: expected the key once, found it twice"},
		"two documents":                   {"count: 1\n---\ncount: 2", "expected one YAML document, found more"},
		"two documents, one empty":        {"count: 1\n---\n", "expected one YAML document, found more"},
		"text after the document's end":   {"count: 1\n...\nfoo", "expected one YAML document, found more"},
		"a tab":                           {"section:\n\tratio: 1", "yaml: line 2: found character that cannot start any token"},
		"a brace too many":                {"count: 1\n}", "yaml: line 1: did not find expected key"},
		"a control character":             {"name: \x00", "yaml: control characters are not allowed"},
		"not UTF-8":                       {"name: \xff", "yaml: invalid leading UTF-8 octet"},
		"an unknown anchor":               {"count: *none", "yaml: unknown anchor 'none' referenced"},
		"a list for the file":             {"[count]", "line 1: the file: expected keys and values, found a list"},
		"a word for the file":             {"count", `line 1: the file: expected keys and values, found "count"`},
		"a list for a section":            {"section: [1]", "line 1: section: expected keys and values, found a list"},
		"a number for a section":          {"section: 3", "line 1: section: expected keys and values, found 3"},
		"a fraction for a whole number":   {"count: 1.5", "line 1: count: expected a whole number, found 1.5"},
		"1.0 for a whole number":          {"count: 1.0", "line 1: count: expected a whole number, found 1.0"},
		"an exponent for a whole number":  {"count: 1e3", "line 1: count: expected a whole number, found 1e3"},
		"a number that is 8 or 10":        {"count: 010", "line 1: count: expected a whole number without leading zeros, found 010"},
		"one with an underscore":          {"count: 0_10", "line 1: count: expected a whole number without leading zeros, found 0_10"},
		"one below zero":                  {"big: -010", "line 1: big: expected a whole number without leading zeros, found -010"},
		"one for a ratio":                 {"section: {ratio: 01}", "line 1: section.ratio: expected a number without leading zeros, found 01"},
		"a unit behind a number":          {"count: 5s", `line 1: count: expected a whole number, found "5s"`},
		"a number in quotes":              {`count: "5"`, `line 1: count: expected a whole number, found "5"`},
		"an empty string for a number":    {`count: ""`, `line 1: count: expected a whole number, found ""`},
		"nothing for a number":            {"name: a\ncount:", "line 2: count: expected a whole number, found nothing"},
		"null for a string":               {"name: null", "line 1: name: expected a string, found nothing"},
		"nothing for a list":              {"list:\n# - a", "line 1: list: expected a list of strings, found nothing"},
		"a number too large":              {"big: 9223372036854775808", "line 1: big: expected a whole number, found 9223372036854775808"},
		"a number far too large":          {"count: 99999999999999999999", "line 1: count: expected a whole number, found 99999999999999999999"},
		"a text of two lines":             {"count: |\n  a\n  b", `line 1: count: expected a whole number, found "a\nb"`},
		"a list for a number":             {"count: [1]", "line 1: count: expected a whole number, found a list"},
		"a section for a number":          {"count: {a: 1}", "line 1: count: expected a whole number, found keys and values"},
		"a word for a ratio":              {"section: {ratio: half}", `line 1: section.ratio: expected a number, found "half"`},
		"yes for a boolean":               {"section: {on: yes}", `line 1: section.on: expected true or false, found "yes"`},
		"1 for a boolean":                 {"section: {on: 1}", "line 1: section.on: expected true or false, found 1"},
		"a number for a string":           {"name: 5", "line 1: name: expected a string, found 5"},
		"a boolean for a string":          {"name: true", "line 1: name: expected a string, found true"},
		"a date for a string":             {"name: 2026-01-01", "line 1: name: expected a string, found 2026-01-01"},
		"a list for a string":             {"name: [a]", "line 1: name: expected a string, found a list"},
		"a string for a list":             {"list: a", `line 1: list: expected a list of strings, found "a"`},
		"a section for a list":            {"list: {a: b}", "line 1: list: expected a list of strings, found keys and values"},
		"a number in a list":              {"list:\n  - a\n  - 2", "line 3: list: expected a list of strings, found 2 in it"},
		"nothing in a list":               {"list:\n  - a\n  -", "line 3: list: expected a list of strings, found nothing in it"},
		"a list in a list":                {"list: [[a]]", "line 1: list: expected a list of strings, found a list in it"},
		"a list that holds itself":        {"list: &l [*l]", "line 1: list: expected a list of strings, found a list in it"},
		"a section that holds itself":     {"section: &s {ratio: *s}", "line 1: section.ratio: expected a number, found keys and values"},
		"a tag of its own":                {"count: !mine 5", "line 1: count: expected a whole number, found 5"},
		"a tag that lies":                 {"count: !!int five", "line 1: count: expected a whole number, found five"},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.text)
			s := defaults()
			err := read(&s, path)
			if err == nil {
				t.Fatalf("took %+v, want %q", s, c.want)
			}
			if want := "read configuration: " + path + ": " + c.want; err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("got %q, want one line", err)
			}
		})
	}

	t.Run("a type that no configuration uses", func(t *testing.T) {
		var odd struct {
			When map[string]int `yaml:"when"`
		}
		err := read(&odd, file(t, "when: {a: 1}"))
		if err == nil || !strings.HasSuffix(err.Error(), "key when: unsupported type map[string]int") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the file at fault among several", func(t *testing.T) {
		good, bad := file(t, "count: 2"), file(t, "count: two")
		s := defaults()
		if err := read(&s, good, bad); err == nil || !strings.Contains(err.Error(), bad) || strings.Contains(err.Error(), good+":") {
			t.Errorf("got %v, want only %s in it", err, bad)
		}
	})
}

func TestReadCannot(t *testing.T) {
	s := defaults()
	for path, want := range map[string]error{filepath.Join(t.TempDir(), "none.yaml"): fs.ErrNotExist, t.TempDir(): syscall.EISDIR} {
		if err := read(&s, path); !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "read configuration: ") || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want one about %s: %v", err, path, want)
		}
	}
}

func TestCheck(t *testing.T) {
	s := defaults()
	first, second := file(t, "count: 11"), file(t, "section: {ratio: .nan}")
	sources, err := config.Read(&s, nil, first, second)
	servicetest.NoError(t, err)
	err = sources.Check(&s)
	want := "check configuration: count: must be between 1 and 10, got 11 (file " + first + ")\nsection.ratio: must be between 0 and 1, got NaN (file " + second + ")"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestInRange(t *testing.T) {
	for name, c := range map[string]struct {
		value float64
		want  string
	}{
		"lowest":         {0, ""},
		"highest":        {1, ""},
		"within":         {0.5, ""},
		"below":          {-0.1, "x: must be between 0 and 1, got -0.1"},
		"above":          {1.1, "x: must be between 0 and 1, got 1.1"},
		"not a number":   {math.NaN(), "x: must be between 0 and 1, got NaN"},
		"infinite":       {math.Inf(1), "x: must be between 0 and 1, got +Inf"},
		"minus infinite": {math.Inf(-1), "x: must be between 0 and 1, got -Inf"},
	} {
		t.Run(name, func(t *testing.T) { expect(t, config.InRange("x", c.value, 0, 1), c.want) })
	}
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHostPort(t *testing.T) {
	for address, c := range map[string]struct{ listen, dial bool }{
		"localhost:80":        {true, true},
		"kafka:9092":          {true, true},
		"127.0.0.1:65535":     {true, true},
		"[::1]:1":             {true, true},
		"[fe80::1%eth0]:1":    {true, true},
		":8080":               {true, false},
		":0":                  {true, false},
		"localhost:0":         {true, false},
		"0.0.0.0:0":           {true, false},
		"localhost:65536":     {},
		"localhost:-1":        {},
		"localhost:+1":        {},
		"localhost:":          {},
		"localhost":           {},
		"localhost:http":      {},
		"localhost: 80":       {},
		"localhost :80":       {},
		" localhost:80":       {},
		"local\nhost:80":      {},
		"a:1 b:2":             {},
		"*:80":                {},
		"/run/ms1:80":         {},
		"::1:80":              {},
		"[::1]":               {},
		"http://localhost:80": {},
		"80":                  {},
		"":                    {},
	} {
		t.Run(address, func(t *testing.T) {
			for low, good := range []bool{c.listen, c.dial} {
				want := ""
				if !good {
					want = fmt.Sprintf("key: must be host:port with a port from %d to 65535, got %q", low, address)
				}
				expect(t, config.HostPort("key", address, low), want)
			}
		})
	}
}

func TestURL(t *testing.T) {
	for value, good := range map[string]bool{
		"http://localhost":             true,
		"https://localhost:8080/path":  true,
		"HTTP://localhost":             true,
		"http://[::1]:80":              true,
		"ws://localhost":               false,
		"localhost:8080":               false,
		"http://":                      false,
		"http://:8080":                 false,
		"http:///path":                 false,
		"http:localhost":               false,
		"//localhost":                  false,
		"/path":                        false,
		"":                             false,
		"http://local host":            false,
		"http://localhost:http":        false,
		"http://localhost:0":           false,
		"http://localhost:65536":       false,
		"http://localhost/%zz":         false,
		" http://localhost":            false,
		"http://localhost\n":           false,
		"unix:///var/run/traces.sock":  false,
		"http://localhost:8080:9090/x": false,
	} {
		t.Run(value, func(t *testing.T) {
			want := ""
			if !good {
				want = fmt.Sprintf("key: must be a URL such as http://host:port, got %q", value)
			}
			expect(t, config.URL("key", value, "http://host:port"), want)
		})
	}
}

func TestSecret(t *testing.T) {
	const empty = "must name a file with a secret, got FILE, which is empty"
	for name, c := range map[string]struct{ text, secret, err string }{
		"plain":                 {"hunter2", "hunter2", ""},
		"a line end":            {"hunter2\n", "hunter2", ""},
		"a Windows line end":    {"hunter2\r\n", "hunter2", ""},
		"a byte order mark":     {"\ufeffhunter2\n", "hunter2", ""},
		"blanks are part":       {" hunter 2 \n", " hunter 2 ", ""},
		"not UTF-8":             {"\xff\x00\n", "\xff\x00", ""},
		"an empty file":         {"", "", empty},
		"a line end, no more":   {"\n", "", empty},
		"line ends and no more": {"\r\n\n", "", empty},
		"more than one line":    {"hunter2\nhunter3\n", "", "must name a file with one line, got FILE, which has more"},
		"UTF-16":                {"\xff\xfeh\x00\r\x00\n\x00", "", "must name a file in UTF-8, got FILE in UTF-16"},
		"without an end":        {strings.Repeat("x", 5<<20), "", "FILE: must be at most 4194304 bytes, got more"},
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, c.text)
			got, err := config.Secret("password_file", path)
			if got != c.secret {
				t.Errorf("got %q, want %q", got, c.secret)
			}
			if c.err != "" {
				c.err = "password_file: " + strings.Replace(c.err, "FILE", path, 1)
			}
			expect(t, err, c.err)
		})
	}
	t.Run("no file named", func(t *testing.T) {
		if got, err := config.Secret("password_file", ""); got != "" || err != nil {
			t.Errorf("got %q, %v, want nothing", got, err)
		}
	})
	t.Run("no such file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "none")
		_, err := config.Secret("password_file", path)
		if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "password_file: ") || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want key and path in it", err)
		}
	})
}

func TestCredentialsAreRefusedAndNotRepeated(t *testing.T) {
	for value, want := range map[string]string{
		"http://user:hunter2@host/": `key: must be a URL without user and password, got "…@host/"`,
		"http://user@host:1":        `key: must be a URL without user and password, got "…@host:1"`,
		"ftp://user:hunter2@host":   `key: must be a URL without user and password, got "…@host"`,
		"http://u:hunter2%zz@host":  `key: must be a URL such as http://host:port, got "…@host"`,
		"user:hunter2@host:80":      `key: must be a URL such as http://host:port, got "…@host:80"`,
	} {
		expect(t, config.URL("key", value, "http://host:port"), want)
	}
	for value, want := range map[string]string{
		"user:hunter2@tcp(db:3306)/name": `key: must be host:port with a port from 1 to 65535, got "…@tcp(db:3306)/name"`,
		"hunter2@db:3306":                `key: must be host:port with a port from 1 to 65535, got "…@db:3306"`,
	} {
		expect(t, config.HostPort("key", value, 1), want)
	}
}

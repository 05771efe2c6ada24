package docs_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"

	"github.com/tricycle-relay/tricycle/docs/generate"
	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// TestCommands checks every command of the written pages: in blocks marked sh,
// in table columns headed 'command', and in other code marks that begin with a
// command. Each must have one of the forms, and the tree must have what it names.
func TestCommands(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range written(t) {
		c := checker{tree: tree(t)}
		for _, text := range append(p.texts("sh"), p.commands...) {
			for _, err := range c.script(text) {
				t.Errorf("%s: %v", p.name, err)
			}
		}
		seen += c.seen
	}
	if seen < 50 {
		t.Errorf("got %d commands, want at least 50", seen)
	}
}

// written returns the pages that are not generated.
func written(t *testing.T) (all []page) {
	tree := tree(t)
	for _, name := range pages(t, tree) {
		if !strings.HasPrefix(name, "docs/reference/") {
			all = append(all, readPage(t, tree, name))
		}
	}
	return all
}

// texts returns the blocks in a language.
func (p page) texts(info string) (all []string) {
	for _, b := range p.blocks {
		if b.info == info {
			all = append(all, b.text)
		}
	}
	return all
}

// compose begins with the file beside .env, the file of Compose's variables.
const compose = `docker compose( -f compose\.yaml -f (?P<file>\S+))?`

// forms are the commands that pages may use. The tree must have what a named
// part refers to (checker.lookup), or each word of it if its name ends in s.
var forms = []*regexp.Regexp{
	form(`(cat|cd|cut|echo|git|gofmt|mkdir|printf|sha256sum|sleep)( .*)?`),
	form(`bash (?P<file>\S+)(?P<stages>( \w+)*)`),
	form(`bazel (build|run|test)( --config=(?P<config>\w+))?(?P<targets>( //\S+)+)( --(?P<target>//[^=]+)=\S+)?`),
	form(`curl( -\w+)* (?P<url>\S+)`),
	form(compose + ` cp (?P<service>\w+):\S+ \.`),
	form(compose + ` (exec|run)( --?[\w-]+)* (?P<service>\w+)( .*)?`),
	form(compose + ` ((--profile \* )?down|logs|ps|pull|restart|start|stop|up)(?P<services>( \S+)*)`),
	form(`go (get|mod|tool|version)( .*)?`),
	form(`go (build|run|test)`),
	form(`go build -o (?P<output>\S+)(?P<programs>( \./\S+)+)`),
	form(`go run \./bench (report|compare) \S+ ((?P<file>\S+\.md)|\S+:\S+)`),
	form(`go run (?P<program>\./\S+)( (?P<rest>.+))?`),
	form(`go (generate|test|vet)( -race| -timeout \w+)* (?P<package>\./\S+)( -run (?P<test>\w+))?`),
	form(`grep( -E)? (?P<event>.+) tricycle-data/ms1\.log`),
	form(`grep -qv \S+`),
	form(`mariadb .* SELECT \S+ FROM (?P<table>\w+)`),
	form(`nix (develop|flake check|flake update|fmt)`),
	form(`nix (develop|run) \.#(?P<app>\w+)`),
	form(`nix develop --command (?P<command>.+)`),
	form(`(?P<built>bin/\w+)( (?P<rest>.+))?`),
	form(`(?P<file>(oci|bench|\.ci)/\S+)( .*)?`),
}

func form(text string) *regexp.Regexp { return regexp.MustCompile("^" + text + "$") }

// checker compares the commands of a page with the tree.
type checker struct {
	tree  fs.FS
	built []string // programs that earlier commands of the page have built
	seen  int
}

// script checks every command of a shell script.
func (c *checker) script(text string) (errs []error) {
	// "… FLAG" continues the command of the previous row.
	text = strings.Replace(text, "… ", "bazel run //:load ", 1)
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), "")
	if err != nil {
		return []error{fmt.Errorf("parse %q: %w", text, err)}
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		c.seen++
		words, err := expand.Fields(&expand.Config{}, call.Args...)
		command := strings.Join(words, " ")
		if err == nil {
			err = c.command(command)
		}
		for _, a := range call.Assigns {
			err = errors.Join(err, c.has(`\b`+a.Name.Value+`\b`, "docs/reference/configuration.md", "compose/*.yaml", "compose/e2e/*.go"))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("command %q: %w", command, err))
		}
		return true
	})
	return errs
}

func (c *checker) command(command string) (err error) {
	for _, form := range forms {
		m := form.FindStringSubmatch(command)
		if m == nil {
			continue
		}
		parts := map[string]string{}
		for i, name := range form.SubexpNames() {
			parts[name] = m[i]
		}
		for name, text := range parts {
			words := []string{text}
			if kind, list := strings.CutSuffix(name, "s"); list {
				name, words = kind, strings.Fields(text)
			}
			for _, word := range words {
				if word != "" {
					err = errors.Join(err, c.lookup(name, word, parts))
				}
			}
		}
		return err
	}
	return errors.New("docs/commands_test.go has no form of this command")
}

// lookup returns an error if the tree does not have what a part of a command
// refers to.
func (c *checker) lookup(kind, word string, parts map[string]string) error {
	name := regexp.QuoteMeta(word)
	switch kind {
	case "app":
		return c.has(`(?m)^\s*"?`+name+`"? = `, "flake.nix")
	case "built":
		if !slices.Contains(c.built, word) {
			return fmt.Errorf("no command builds %s", word)
		}
	case "command":
		return c.command(word)
	case "config":
		return c.has(":"+name+" ", ".bazelrc")
	case "event":
		return c.event(word)
	case "file":
		return c.has("", path.Clean(word))
	case "package":
		if directory, all := strings.CutSuffix(word, "/..."); all {
			return c.has("", path.Join(directory, "*.go"), path.Join(directory, "*/*.go"))
		}
		return c.has(`(?m)^func (Test|Fuzz|Benchmark)\w*`+strings.TrimPrefix(parts["test"], "Test"), path.Join(word, "*_test.go"))
	case "program":
		c.built = append(c.built, path.Join(parts["output"], path.Base(word)))
		return c.has(`(?m)^package main$`, path.Join(word, "*.go"))
	case "rest":
		return c.flags(path.Base(parts["program"]+parts["built"]), strings.Fields(word))
	case "service":
		if !strings.HasPrefix(word, "-") {
			return c.service(strings.Split(word, "=")[0], parts["file"])
		}
	case "stage":
		return c.has(`(?m)^stage_`+name+`\(\)`, parts["file"])
	case "table":
		return c.has(`CREATE TABLE `+name+` `, "docs/reference/database.md")
	case "target":
		directory, target, _ := strings.Cut(strings.TrimPrefix(word, "//"), ":")
		if below, all := strings.CutSuffix(directory, "..."); all {
			return c.has("", path.Join(below, "BUILD.bazel"), path.Join(below, "*/BUILD.bazel"))
		}
		return c.has(`name = "`+regexp.QuoteMeta(target)+`",`, path.Join(directory, "BUILD.bazel"))
	case "url":
		return c.request(word)
	}
	return nil
}

// has returns an error if no file of the patterns has the text.
func (c *checker) has(text string, globs ...string) error {
	for _, glob := range globs {
		files, err := fs.Glob(c.tree, glob)
		if err != nil {
			return err
		}
		for _, file := range files {
			content, err := fs.ReadFile(c.tree, file)
			if err != nil {
				return err
			}
			if regexp.MustCompile(text).Match(content) {
				return nil
			}
		}
	}
	return fmt.Errorf("%v must have %s", globs, text)
}

// events are examples of log lines of MS1, by the text of the event in the code.
var events = map[string]string{
	`"%s %s"`:                 `"message":"GET /start"`,
	`"session %d ended (%s)"`: `"message":"session 1 ended (stopped)"`,
}

// event checks that the pattern matches a line in the log of MS1.
func (c *checker) event(pattern string) error {
	wanted, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	for event, line := range events {
		if wanted.MatchString(line) {
			return c.has(regexp.QuoteMeta(event), "services/ms1/*.go")
		}
	}
	return errors.New("the pattern matches no event of MS1")
}

// flags checks the flags of a program and their files.
func (c *checker) flags(program string, words []string) error {
	text, err := fs.ReadFile(c.tree, "docs/reference/configuration.md")
	if err != nil {
		return err
	}
	_, section, _ := strings.Cut(string(text), "\n## "+program+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for len(words) > 0 {
		row := regexp.MustCompile("\\| `" + words[0] + "( [A-Z]+)?` \\|").FindStringSubmatch(section)
		switch {
		case row == nil:
			return fmt.Errorf("%s has no flag %s", program, words[0])
		case row[1] == "":
			words = words[1:]
			continue
		case len(words) == 1:
			return fmt.Errorf("%s needs a value", words[0])
		case row[1] == " FILE":
			err = errors.Join(err, c.has("", words[1]))
		}
		words = words[2:]
	}
	return err
}

// services are those that curl may request.
var services = map[string]string{"127.0.0.1:8080": "ms1", "127.0.0.1:8081": "ms2", "127.0.0.1:8082": "ms3"}

// request compares a request and its parameters with the description of the
// service.
func (c *checker) request(url string) error {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	service, ok := services[r.URL.Host]
	if !ok {
		return fmt.Errorf("unknown host %s", r.URL.Host)
	}
	err = openapitest.Request(service, r)
	for name := range r.URL.Query() {
		err = errors.Join(err, c.has(`name: `+name+`\n`, "docs/reference/"+service+".openapi.yaml"))
	}
	return err
}

// service checks that compose.yaml and another file have the service.
func (c *checker) service(name, other string) error {
	var file struct {
		Services map[string]any `yaml:"services"`
	}
	for _, source := range []string{"compose/compose.yaml", cmp.Or(other, "compose/compose.yaml")} {
		text, err := fs.ReadFile(c.tree, source)
		if err == nil {
			err = yaml.Unmarshal(text, &file) // adds to the services
		}
		if err != nil {
			return err
		}
	}
	if file.Services[name] == nil {
		return fmt.Errorf("no service %s", name)
	}
	return nil
}

// TestCommandsRefused checks that each kind of reference is looked up. The
// pages have commands that are accepted.
func TestCommandsRefused(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]string{ // part of the error
		"go test ./lib/messages":                                        "messages",
		"go test ./services/ms1 -run LockSteps":                         "LockSteps",
		"go test ./docs/generate/cmd/generate":                          "generate",
		"go vet ./docker/...":                                           "docker",
		"go tset ./...":                                                 "no form",
		"go run ./services/allinone/cmd/allinone -ones":                 "no flag -ones",
		"go run ./services/allinone/cmd/allinone -once -interval":       "needs a value",
		"go run ./services/allinone -once":                              "package main",
		"go run ./bench report bench/results.json docs/performances.md": "performances.md",
		"bin/ms1 -version":                                              "no command builds bin/ms1",
		"go build -o bin/ ./services/ms1/cmd/ms1 && bin/ms1 -config compose/config/ms4.yaml": "ms4.yaml",
		"bazel run //:laod":                                  `"laod"`,
		"bazel test //compsoe/...":                           "compsoe",
		"bazel tset //...":                                   "no form",
		"bazel run --config=relaese //:push":                 "relaese",
		"bazel run //:load --//oci:repo=x":                   `"repo"`,
		"curl http://127.0.0.1:8080/start?interval=0":        "interval",
		"curl http://127.0.0.1:8080/start?interwal=3":        "interwal",
		"curl http://127.0.0.1:8080/strat":                   "no matching operation",
		"curl http://127.0.0.1:8081/start":                   "no matching operation",
		"curl http://127.0.0.1:8083/readyz":                  "unknown host",
		"grep 'GTE /' tricycle-data/ms1.log":                 "no event",
		"grep 'GET /' tricycle-data/ms4.log":                 "no form",
		"mariadb tricycle -e 'SELECT * FROM session'":        "session",
		"bash .ci/full jeager":                               "stage_jeager",
		"bash .ci/fully":                                     ".ci/fully",
		"TRICYCLE_TEST_KAKFA=x go test ./lib/topic":          "TRICYCLE_TEST_KAKFA",
		"oci/reproduces.sh":                                  "oci/reproduces.sh",
		"rm -rf tricycle-data":                               "no form",
		"go test ./lib/message | (":                          "parse",
		"docker compose logs ms4":                            "no service ms4",
		"docker compose logs kafka2":                         "no service kafka2",
		"docker compose up --scale ms4=2":                    "no service ms4",
		"docker compose cp ms4:/var/log/ms1.log .":           "no service ms4",
		"docker compose run --rm inspekt":                    "no service inspekt",
		"docker compose -f compose.yaml -f composer.yaml up": "composer.yaml",
		"docker compose -f compose/compose.yaml up":          "no form",
		"docker compose upp":                                 "no form",
		"docker run x":                                       "no form",
		"nix run .#donw":                                     "donw",
		"nix develop --command go tset":                      "no form",
	} {
		c := checker{tree: tree(t)}
		if err := errors.Join(c.script(command)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", command, err, want)
		}
	}
}

// TestQueries checks the SQL of the pages: each query must be in
// docs/reference/database.md, whose queries a test runs on a MariaDB.
func TestQueries(t *testing.T) {
	plain := func(text string) string {
		text = regexp.MustCompile(`(?m)^--.*$`).ReplaceAllString(text, "")
		return strings.Join(strings.Fields(strings.TrimRight(strings.TrimSpace(text), ";")), " ")
	}
	var known []string
	for _, q := range generate.Queries {
		known = append(known, plain(q.SQL))
	}
	seen := 0
	for _, p := range written(t) {
		for _, text := range p.texts("sql") {
			if strings.HasPrefix(text, "CREATE DATABASE") {
				continue // the creation of a database and its user is not a query
			}
			seen++
			if !slices.Contains(known, plain(text)) {
				t.Errorf("%s: got the query\n%s\nwant one of generate.Queries", p.name, text)
			}
		}
	}
	if seen == 0 {
		t.Error("got no query, want some")
	}
}

// TestTraceOfARow runs the command of docs/architecture.md that computes a
// trace id, and compares its output with the id that the services compute.
func TestTraceOfARow(t *testing.T) {
	p := readPage(t, tree(t), "docs/architecture.md")
	row := regexp.MustCompile(`.*' (\d+) (\S+Z) \| sha256sum.*`).FindStringSubmatch(strings.Join(p.texts("sh"), ""))
	if row == nil {
		t.Fatal("docs/architecture.md has no command that computes the id of a row by sha256sum")
	}
	m, err := message.Decode([]byte(fmt.Sprintf(`{"session_id":%s,"service1_timestamp":%q,"service2_timestamp":null,"service3_timestamp":null,"end_timestamp":null}`,
		row[1], row[2])), message.AtMS2)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := telemetry.IDs(m.Key())
	text, err := fs.ReadFile(tree(t), p.name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "`"+id.String()+"`") {
		t.Errorf("%s: must have the trace id %s of its row", p.name, id)
	}
	out, err := exec.Command("sh", "-c", row[0]).Output()
	if err != nil {
		t.Skipf("the command cannot be run here: %v", err)
	}
	if got := strings.TrimSpace(string(out)); got != id.String() {
		t.Errorf("got %s, want %s", got, id)
	}
}

package docs_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"gopkg.in/yaml.v3"
	"mvdan.cc/sh/v3/syntax"

	"github.com/tricycle-relay/tricycle/docs/generate"
	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// TestCommands checks every command of the written pages: in blocks marked sh,
// in table columns headed 'command', and in other code marks that begin with a
// command. A rule per program checks what its command refers to: the packages
// and tests of go, the targets of bazel, the services of docker compose, the
// paths of curl, the flags of our programs, files, tables. A program without a
// rule is an error.
func TestCommands(t *testing.T) {
	t.Parallel()
	tree, known := tree(t), know(t)
	seen := 0
	for _, name := range pages(t, tree) {
		if strings.HasPrefix(name, "docs/reference/") {
			continue
		}
		p := readPage(t, tree, name)
		c := checker{tree: tree, known: known}
		var texts []string
		for _, b := range p.blocks {
			if b.info == "sh" {
				texts = append(texts, b.text)
			}
		}
		for _, text := range append(texts, p.commands...) {
			for _, err := range c.script(text) {
				t.Errorf("%s: %v", name, err)
			}
		}
		seen += c.seen
	}
	if seen < 50 {
		t.Errorf("got %d commands, want at least 50", seen)
	}
}

// checker compares commands with the tree.
type checker struct {
	tree  fs.FS
	known *knowledge
	built []string // programs that earlier commands of the page have built
	seen  int
}

// knowledge is what the checkers of all pages have read of the real tree.
type knowledge struct {
	root   string
	source *generate.Source
	tests  map[string][]string // by package pattern
}

func know(t *testing.T) *knowledge {
	t.Helper()
	return &knowledge{root(t), generate.NewSource(root(t)), map[string][]string{}}
}

// rule returns the check for the commands of a program.
func rule(program string) (look func(c *checker, args []string) error, ok bool) {
	switch program {
	case "bash":
		return (*checker).bash, true
	case "bazel":
		return (*checker).bazel, true
	case "curl":
		return (*checker).curl, true
	case "docker":
		return (*checker).docker, true
	case "go":
		return (*checker).goCommand, true
	case "grep":
		return (*checker).grep, true
	case "mariadb", "sqlite3":
		return (*checker).sql, true
	case "nix":
		return (*checker).nix, true
	case "cat", "cd", "cut", "echo", "git", "gofmt", "mkdir", "printf", "sha256sum", "sleep": // they use nothing of the tree
		return func(*checker, []string) error { return nil }, true
	}
	return nil, false
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
		args := make([]string, len(call.Args))
		for i, w := range call.Args {
			args[i] = word(w)
		}
		c.seen++
		err := c.command(args)
		for _, a := range call.Assigns {
			err = errors.Join(err, c.variable(a.Name.Value))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("command %q: %w", strings.Join(args, " "), err))
		}
		return true
	})
	return errs
}

// word returns a shell word without quotes. It expands nothing.
func word(w *syntax.Word) string {
	var text strings.Builder
	var add func(parts []syntax.WordPart)
	add = func(parts []syntax.WordPart) {
		for _, part := range parts {
			switch part := part.(type) {
			case *syntax.Lit:
				text.WriteString(part.Value)
			case *syntax.SglQuoted:
				text.WriteString(part.Value)
			case *syntax.DblQuoted:
				add(part.Parts)
			default:
				text.WriteString("$")
			}
		}
	}
	add(w.Parts)
	return text.String()
}

func (c *checker) command(args []string) error {
	name := args[0]
	if look, ok := rule(name); ok {
		return look(c, args[1:])
	}
	switch {
	case slices.Contains(c.built, name):
		return c.ours(path.Base(name), args[1:])
	case strings.Contains(name, "/"):
		return c.exists(name)
	}
	return errors.New("docs/commands_test.go has no rule for this program")
}

func (c *checker) exists(name string) error {
	if _, err := fs.Stat(c.tree, path.Clean(name)); err != nil {
		return fmt.Errorf("%s does not exist", name)
	}
	return nil
}

// variable checks that a program, a test or a compose file reads an
// environment variable.
func (c *checker) variable(name string) error {
	found := false
	for _, program := range generate.Programs {
		keys, err := c.known.source.Keys(program)
		if err != nil {
			return err
		}
		found = found || slices.ContainsFunc(keys, func(k generate.Key) bool { return config.Variable(k.Name) == name })
	}
	if found {
		return nil
	}
	err := fs.WalkDir(c.tree, ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case file == "docs": // it mentions all variables
			return fs.SkipDir
		case found || d.IsDir() || !strings.HasSuffix(file, ".go") && path.Dir(file) != "compose":
			return nil
		}
		text, err := fs.ReadFile(c.tree, file)
		found = bytes.Contains(text, []byte(name))
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("nothing reads the variable %s", name)
	}
	return err
}

// ours checks the flags of one of our programs.
func (c *checker) ours(program string, args []string) (err error) {
	if program == "bench" && len(args) > 0 && slices.Contains([]string{"report", "compare"}, args[0]) {
		for _, arg := range args[1:] {
			if strings.HasSuffix(arg, ".md") { // another run has other results
				err = errors.Join(err, c.exists(arg))
			}
		}
		return err
	}
	known, err := c.known.source.Flags(program)
	if err != nil {
		return err
	}
	for i := 0; i < len(args); i++ {
		at := slices.IndexFunc(known, func(f generate.Flag) bool { return strings.Fields(f.Name)[0] == args[i] })
		if at < 0 {
			return fmt.Errorf("%s has no flag %s", program, args[i])
		}
		if name, value, _ := strings.Cut(known[at].Name, " "); value != "" {
			if i++; i == len(args) {
				return fmt.Errorf("%s %s needs a value", program, name)
			}
			if value == "FILE" {
				if err := c.exists(args[i]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// goCommand checks the packages, and the tests that -run selects.
func (c *checker) goCommand(args []string) error {
	if len(args) == 0 {
		return errors.New("go: expected a subcommand")
	}
	var packages []string
	run, output := "", ""
	rest := args[1:]
	for ; len(rest) > 0; rest = rest[1:] {
		switch a := rest[0]; {
		case slices.Contains([]string{"-run", "-o", "-timeout"}, a) && len(rest) > 1:
			rest = rest[1:]
			switch a {
			case "-run":
				run = rest[0]
			case "-o":
				output = rest[0]
			}
		case slices.Contains([]string{"-race", "-v", "-count=1", "-all", "-bench=."}, a):
		case strings.HasPrefix(a, "./"):
			packages = append(packages, a)
		case strings.HasPrefix(a, "-"):
			return fmt.Errorf("go: unknown flag %s", a)
		default:
			packages = append(packages, a)
		}
		if args[0] == "run" && len(packages) == 1 {
			rest = rest[1:]
			break
		}
	}
	switch args[0] {
	case "get", "mod", "tool", "version":
		return nil // modules, not this tree
	case "run", "build":
		for _, p := range packages {
			if err := c.main(p); err != nil {
				return err
			}
			if output != "" {
				c.built = append(c.built, path.Join(output, path.Base(p)))
			}
		}
		if args[0] == "run" && len(rest) > 0 {
			return c.ours(path.Base(packages[0]), rest)
		}
		return nil
	case "test", "vet", "doc", "generate":
	default:
		return fmt.Errorf("go: unknown subcommand %s", args[0])
	}
	if len(args) == 1 {
		return nil // the command as such
	}
	tests := 0
	for _, p := range packages {
		names, err := c.tests(p)
		if err != nil {
			return err
		}
		pattern, err := regexp.Compile(strings.Split(run, "/")[0])
		if err != nil {
			return err
		}
		for _, name := range names {
			if pattern.MatchString(name) {
				tests++
			}
		}
	}
	if args[0] == "test" && tests == 0 {
		return fmt.Errorf("no test matches")
	}
	return nil
}

var testName = regexp.MustCompile(`^(Test|Fuzz|Benchmark)`)

// main checks that a directory contains a main package.
func (c *checker) main(directory string) error {
	if pkg, err := build.ImportDir(filepath.Join(c.known.root, directory), 0); err != nil || pkg.Name != "main" {
		return fmt.Errorf("%s contains no program", directory)
	}
	return nil
}

// tests returns the tests of a package, or of all packages below a directory.
func (c *checker) tests(pattern string) (names []string, err error) {
	if names, ok := c.known.tests[pattern]; ok {
		return names, nil
	}
	directory, all := strings.CutSuffix(pattern, "/...")
	directory = path.Clean(directory)
	goFiles := 0
	err = fs.WalkDir(c.tree, directory, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != directory && (!all || strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case !strings.HasSuffix(name, ".go"):
			return nil
		}
		goFiles++
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := fs.ReadFile(c.tree, name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && testName.MatchString(f.Name.Name) {
				names = append(names, f.Name.Name)
			}
		}
		return nil
	})
	if err == nil && goFiles == 0 {
		err = fmt.Errorf("package %s does not exist", pattern)
	}
	if err == nil {
		c.known.tests[pattern] = names
	}
	return names, err
}

// bazel checks targets, configurations and settings.
func (c *checker) bazel(args []string) error {
	for i, a := range args {
		switch {
		case a == "--": // arguments of the program
			return nil
		case i == 0:
			if !slices.Contains([]string{"build", "run", "test", "query", "cquery", "mod"}, a) {
				return fmt.Errorf("bazel: unknown subcommand %s", a)
			}
		case strings.HasPrefix(a, "--config="):
			text, err := fs.ReadFile(c.tree, ".bazelrc")
			if err != nil {
				return err
			}
			if !strings.Contains(string(text), ":"+strings.TrimPrefix(a, "--config=")+" ") {
				return fmt.Errorf(".bazelrc has no %s", a)
			}
		case strings.HasPrefix(a, "--//"):
			label, _, _ := strings.Cut(strings.TrimPrefix(a, "--"), "=")
			if err := c.target(label); err != nil {
				return err
			}
		case strings.HasPrefix(a, "--test_tag_filters="):
		case strings.HasPrefix(a, "//"):
			if err := c.target(a); err != nil {
				return err
			}
		case args[0] == "mod":
		default:
			return fmt.Errorf("bazel: unknown argument %s", a)
		}
	}
	return nil
}

func (c *checker) target(label string) error {
	directory, name, named := strings.Cut(strings.TrimPrefix(label, "//"), ":")
	if below, all := strings.CutSuffix(directory, "..."); all {
		return c.exists(path.Join(below, "."))
	}
	if !named {
		name = path.Base(directory)
	}
	text, err := fs.ReadFile(c.tree, path.Join(directory, "BUILD.bazel"))
	if err != nil || !strings.Contains(string(text), fmt.Sprintf("name = %q,", name)) {
		return fmt.Errorf("target %s does not exist", label)
	}
	return nil
}

// servers are the hosts that curl may request: our services, and Jaeger.
var servers = map[string]string{"127.0.0.1:8080": "ms1", "127.0.0.1:8081": "ms2", "127.0.0.1:8082": "ms3", "127.0.0.1:16686": "jaeger"}

// curl compares the request and its parameters with the description of the
// service.
func (c *checker) curl(args []string) error {
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			continue
		}
		r, err := http.NewRequest(http.MethodGet, a, nil)
		if err != nil {
			return err
		}
		service := servers[r.URL.Host]
		switch {
		case service == "":
			return fmt.Errorf("curl: unknown host %s", r.URL.Host)
		case service == "jaeger":
			if !strings.HasPrefix(r.URL.Path, "/trace/") && !strings.HasPrefix(r.URL.Path, "/api/") {
				return fmt.Errorf("curl: path must begin with /trace/ or /api/, got %s", r.URL.Path)
			}
			continue
		}
		if err := openapitest.Request(service, r); err != nil {
			return fmt.Errorf("%s refuses the request: %w", service, err)
		}
		for name := range r.URL.Query() {
			if name != "interval" && name != "in_flight" && name != "exclude" {
				return fmt.Errorf("%s has no parameter %s", service, name)
			}
		}
	}
	return nil
}

// composeCommands are the commands of docker compose that a page may use.
var composeCommands = []string{"build", "config", "cp", "down", "exec", "kill", "logs", "ps", "pull", "restart", "run", "start", "stop", "up"}

// docker checks the compose file and its services.
func (c *checker) docker(args []string) error {
	if len(args) > 0 && args[0] == "login" {
		return nil
	}
	if len(args) < 2 || args[0] != "compose" {
		return errors.New("expected docker compose COMMAND")
	}
	var files []string
	for args = args[1:]; len(args) > 2 && args[0] == "-f"; args = args[2:] {
		files = append(files, args[1])
	}
	if files == nil {
		files = []string{"compose.yaml"}
	}
	if files[0] != "compose.yaml" {
		return fmt.Errorf("the first -f must be compose.yaml, whose directory has the file .env, got %s", files[0])
	}
	compose := strings.Join(files, ", ")
	var file struct {
		Include  []string `yaml:"include"`
		Services map[string]struct {
			Profiles []string `yaml:"profiles"`
		} `yaml:"services"`
	}
	for i := 0; i < len(files); i++ {
		text, err := fs.ReadFile(c.tree, files[i])
		if err != nil {
			return fmt.Errorf("%s does not exist", files[i])
		}
		file.Include = nil
		if err := yaml.Unmarshal(text, &file); err != nil { // which adds to the services
			return err
		}
		for _, name := range file.Include {
			files = append(files, path.Join(path.Dir(files[i]), name))
		}
	}
	service := func(name string) error {
		if _, ok := file.Services[name]; !ok {
			return fmt.Errorf("%s has no service %s", compose, name)
		}
		return nil
	}
	if len(args) > 2 && args[0] == "--profile" {
		found := args[1] == "*"
		for _, s := range file.Services {
			found = found || slices.Contains(s.Profiles, args[1])
		}
		if !found {
			return fmt.Errorf("%s has no profile %s", compose, args[1])
		}
		args = args[2:]
	}
	command := args[0]
	if !slices.Contains(composeCommands, command) {
		return fmt.Errorf("docker compose: unknown command %s", command)
	}
	for i := 1; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--scale" && i+1 < len(args):
			i++
			name, _, _ := strings.Cut(args[i], "=")
			if err := service(name); err != nil {
				return err
			}
		case strings.HasPrefix(a, "-"):
		case command == "cp":
			name, _, remote := strings.Cut(a, ":")
			if err := service(name); remote && err != nil {
				return err
			}
		default:
			if err := service(a); err != nil {
				return err
			}
			if command == "run" || command == "exec" {
				return nil // the rest is for the service
			}
		}
	}
	return nil
}

// nix checks that the flake has the output.
func (c *checker) nix(args []string) error {
	text, err := fs.ReadFile(c.tree, "flake.nix")
	if err != nil {
		return errors.New("flake.nix does not exist")
	}
	if len(args) == 0 || !slices.Contains([]string{"build", "develop", "flake", "fmt", "run"}, args[0]) {
		return errors.New("nix: unknown command")
	}
	for i, a := range args[1:] {
		if a == "--" {
			break
		}
		if a == "-c" || a == "--command" {
			return c.command(args[i+2:])
		}
		if name, ok := strings.CutPrefix(a, ".#"); ok && !regexp.MustCompile(`(?m)(^|[\s"])`+regexp.QuoteMeta(name)+`"?\s*=`).Match(text) {
			return fmt.Errorf("flake.nix has no %s", name)
		}
	}
	return nil
}

// bash checks a script and the stages in its arguments.
func (c *checker) bash(args []string) error {
	if len(args) == 0 {
		return errors.New("bash: expected a script")
	}
	text, err := fs.ReadFile(c.tree, path.Clean(args[0]))
	if err != nil {
		return fmt.Errorf("%s does not exist", args[0])
	}
	for _, stage := range args[1:] {
		if !strings.Contains(string(text), "stage_"+stage+"()") {
			return fmt.Errorf("%s has no stage %s", args[0], stage)
		}
	}
	return nil
}

// lines are examples of log lines of MS1, by the text of the event in the code.
var lines = map[string]string{
	`"%s %s"`:                 `"message":"GET /start"`,
	`"session %d ended (%s)"`: `"message":"session 1 ended (stopped)"`,
}

// grep checks that the pattern matches a line in the log of a service.
func (c *checker) grep(args []string) error {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		args = args[1:]
	}
	if len(args) == 1 { // reads the output of another command
		_, err := regexp.Compile(args[0])
		return err
	}
	if len(args) != 2 {
		return errors.New("grep: expected a pattern and a file")
	}
	if !regexp.MustCompile(`^tricycle-data/ms[123]\.log$`).MatchString(args[1]) {
		return fmt.Errorf("grep: file must be the log of a service such as tricycle-data/ms1.log, got %s", args[1])
	}
	pattern, err := regexp.Compile(args[0])
	if err != nil {
		return err
	}
	for event, line := range lines {
		if pattern.MatchString(line) {
			return c.mentioned("services/ms1", event)
		}
	}
	return errors.New("grep: the pattern matches no event of MS1")
}

// mentioned checks that the Go files of a directory contain a text.
func (c *checker) mentioned(directory, text string) error {
	files, err := fs.Glob(c.tree, directory+"/*.go")
	for _, file := range files {
		code, err := fs.ReadFile(c.tree, file)
		if err != nil {
			return err
		}
		if bytes.Contains(code, []byte(text)) {
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("%s: must have %s", directory, text))
}

// sql checks the tables of the query.
func (c *checker) sql(args []string) error {
	tables, err := fs.ReadFile(c.tree, "docs/reference/database.md")
	if err != nil {
		return err
	}
	from := regexp.MustCompile(`(?i)\bFROM (\w+)`).FindAllStringSubmatch(strings.Join(args, " "), -1)
	if len(from) == 0 {
		return errors.New("sql: expected a query")
	}
	for _, table := range from {
		if !regexp.MustCompile(`CREATE TABLE (IF NOT EXISTS )?` + table[1] + ` `).Match(tables) {
			return fmt.Errorf("table %s does not exist", table[1])
		}
	}
	return nil
}

// TestRules runs each rule on a command that it must reject.
func TestRules(t *testing.T) {
	t.Parallel()
	real, known := tree(t), know(t)
	made := fstest.MapFS{
		"compose.yaml":         {Data: []byte("include: [compose/compose.yaml]")},
		"compose/compose.yaml": {Data: []byte("services: {ms1: {}, mariadb: {}, look: {profiles: [inspect]}}")},
		"compose/cluster.yaml": {Data: []byte("services: {kafka2: {}}")},
		"flake.nix":            {Data: []byte("{ outputs = x: { apps = { up = 1; \"test\" = 2; }; }; }")},
		"tools/some.sh":        {},
	}
	for command, want := range map[string]string{ // part of the error; empty: it is good
		"go test ./lib/message":                                                              "",
		"go test ./lib/messages":                                                             "messages",
		"go test ./services/ms1 -run LockStep":                                               "",
		"go test ./services/ms1 -run LockSteps":                                              "no test matches",
		"go test ./docs/generate/cmd/generate":                                               "no test matches",
		"go run ./services/allinone/cmd/allinone -once -interval 3":                          "",
		"go run ./services/allinone/cmd/allinone -ones":                                      "no flag -ones",
		"go run ./services/allinone/cmd/allinone -interval":                                  "needs a value",
		"go run ./services/allinone -once":                                                   "contains no program",
		"go build -o bin/ ./services/ms1/cmd/ms1 && bin/ms1 -version":                        "",
		"bin/ms1 -version":                                                                   "bin/ms1 does not exist",
		"go build -o bin/ ./services/ms1/cmd/ms1 && bin/ms1 -config compose/config/ms4.yaml": "compose/config/ms4.yaml does not exist",
		"go tset ./...":                                 "unknown subcommand tset",
		"bazel run //:load":                             "",
		"bazel run //:laod":                             "target //:laod does not exist",
		"bazel tset //...":                              "unknown subcommand tset",
		"bazel run --config=relaese //:push":            "--config=relaese",
		"bazel run //:load --//oci:repo=x":              "target //oci:repo does not exist",
		"curl http://127.0.0.1:8080/start?interval=3":   "",
		"curl http://127.0.0.1:8080/start?interval=0":   "interval",
		"curl http://127.0.0.1:8080/start?interwal=3":   "no parameter interwal",
		"curl http://127.0.0.1:8080/strat":              "no matching operation",
		"curl http://127.0.0.1:8081/start":              "ms2 refuses the request",
		"curl http://127.0.0.1:8082/readyz?exclude=ms1": "",
		"curl http://127.0.0.1:8083/readyz":             "unknown host",
		"curl http://127.0.0.1:16686/api/traces/1":      "",
		"curl http://127.0.0.1:16686/traces/1":          "path must begin",
		`grep '"message":"GET /' tricycle-data/ms1.log`: "",
		"grep 'GTE /' tricycle-data/ms1.log":            "matches no event",
		"grep 'GET /' tricycle-data/ms4.log":            "file must be",
		"mariadb tricycle -e 'SELECT * FROM sessions'":  "",
		"mariadb tricycle -e 'SELECT * FROM session'":   "table session does not exist",
		"bash .ci/full all":                             "",
		"bash .ci/full jeager":                          "no stage jeager",
		"bash .ci/fully":                                ".ci/fully does not exist",
		"TRICYCLE_TEST_KAFKA=x go test ./lib/topic":     "",
		"TRICYCLE_TEST_KAKFA=x go test ./lib/topic":     "nothing reads the variable",
		"TRICYCLE_KAFKA_BROKERS=x go test ./lib/topic":  "",
		"oci/reproduce.sh":                              "",
		"oci/reproduces.sh":                             "oci/reproduces.sh does not exist",
		"rm -rf tricycle-data":                          "no rule for this program",
		"go test ./lib/message | (":                     "parse ",

		"docker compose up -d --wait": "",
		"docker compose logs ms1":     "",
		"docker compose logs ms4":     "no service ms4",
		"docker compose logs kafka2":  "no service kafka2",
		"docker compose -f compose.yaml -f compose/cluster.yaml logs kafka2 ms1": "",
		"docker compose -f compose.yaml -f composer.yaml up":                     "composer.yaml does not exist",
		"docker compose -f compose/compose.yaml up":                              "first -f must be compose.yaml",
		"docker compose run --rm mariadb -e SELECT x":                            "",
		"docker compose upp": "unknown command upp",
		"docker run x":       "expected docker compose",
		"nix run .#up":       "",
		"nix run .#test":     "",
		"nix run .#down":     "flake.nix has no down",
		"nix develop":        "",
		"tools/some.sh":      "",
		"tools/somebody.sh":  "tools/somebody.sh does not exist",
	} {
		c := checker{tree: real, known: known}
		if regexp.MustCompile(`^(docker|nix|tools)`).MatchString(command) {
			c.tree = made // a small tree with known names
		}
		err := errors.Join(c.script(command)...)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", command, err, want)
		}
	}
}

// TestQueries checks the SQL of the pages: each query must be in
// docs/reference/database.md, whose queries a test runs on a MariaDB.
func TestQueries(t *testing.T) {
	tree := tree(t)
	plain := func(text string) string {
		text = regexp.MustCompile(`(?m)^--.*$`).ReplaceAllString(text, "")
		return strings.Join(strings.Fields(strings.TrimRight(strings.TrimSpace(text), ";")), " ")
	}
	var known []string
	for _, q := range generate.Queries {
		known = append(known, plain(q.SQL))
	}
	seen := 0
	for _, name := range pages(t, tree) {
		if strings.HasPrefix(name, "docs/reference/") {
			continue
		}
		for _, b := range readPage(t, tree, name).blocks {
			// The creation of a database and its user is not a query.
			if b.info != "sql" || strings.HasPrefix(b.text, "CREATE DATABASE") {
				continue
			}
			seen++
			if !slices.Contains(known, plain(b.text)) {
				t.Errorf("%s: got the query\n%s\nwant one of generate.Queries", name, b.text)
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
	at := slices.IndexFunc(p.blocks, func(b block) bool { return b.info == "sh" && strings.Contains(b.text, "sha256sum") })
	if at < 0 {
		t.Fatal("docs/architecture.md has no command with sha256sum")
	}
	command := p.blocks[at].text
	row := regexp.MustCompile(`' (\d+) (\S+Z) \|`).FindStringSubmatch(command)
	if row == nil {
		t.Fatalf("the command has no row: %q", command)
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
	out, err := exec.Command("sh", "-c", command).Output()
	if err != nil {
		t.Skipf("the command cannot be run here: %v", err)
	}
	if got := strings.TrimSpace(string(out)); got != id.String() {
		t.Errorf("got %s, want %s", got, id)
	}
}

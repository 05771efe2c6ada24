package generate

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/rs/zerolog"
	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

// tree returns the repository. Under Bazel, which gives a test only the files
// that it declares, this is where the link to go.mod leads: the real one.
func tree(t *testing.T) string {
	t.Helper()
	file, err := filepath.EvalSymlinks("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(file)
}

// TestReference compares the pages with what the code would make of them now.
func TestReference(t *testing.T) {
	root := tree(t)
	want, err := Pages(root)
	if err != nil {
		t.Fatalf("the reference cannot be generated: %v", err)
	}
	again, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if want[name] != again[name] {
			t.Errorf("%s/%s comes out differently each time", Folder, name)
		}
		switch page, ok := found[name]; {
		case !ok:
			t.Errorf("%s/%s is missing; mend it with: %s", Folder, name, Command)
		case page != want[name]:
			t.Errorf("%s/%s is not what the code says; mend it with: %s\n%s", Folder, name, Command, difference(page, want[name]))
		}
		delete(found, name)
	}
	for name := range found {
		t.Errorf("%s/%s is no page any more; remove it with: %s", Folder, name, Command)
	}
}

// difference returns the first line that differs.
func difference(found, expected string) string {
	a, b := strings.Split(found, "\n"), strings.Split(expected, "\n")
	for i := range max(len(a), len(b)) {
		line := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "nothing"
		}
		if line(a) != line(b) {
			return "found    " + line(a) + "\nexpected " + line(b)
		}
	}
	return ""
}

func TestWriteRemovesWhatIsNoPage(t *testing.T) {
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "lib"), os.DirFS(filepath.Join(tree(t), "lib"))); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(root, "services"), os.DirFS(filepath.Join(tree(t), "services"))); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(root, Folder, "go", "old.md")
	if err := os.MkdirAll(filepath.Dir(old), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(old, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Write(root); err != nil {
		t.Fatal(err)
	}
	found, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Pages(root)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(found, want) {
		t.Errorf("found the pages %v, expected %v", slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(want)))
	}
}

func TestDescriptionsAreOpenAPI(t *testing.T) {
	pages, err := Pages(tree(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"ms1", "ms2", "ms3"} {
		api, err := openapi3.NewLoader().LoadFromData([]byte(pages[service+".openapi.yaml"]))
		if err == nil {
			err = api.Validate(context.Background())
		}
		if err != nil {
			t.Errorf("%s: %v", service, err)
			continue
		}
		if !api.IsOpenAPI31OrLater() {
			t.Errorf("%s: found version %s, expected 3.1", service, api.OpenAPI)
		}
	}
}

// TestKeysAreThoseOfTheFiles holds the keys on the page against the shipped
// files, of which a test of each program knows that they name every key.
func TestKeysAreThoseOfTheFiles(t *testing.T) {
	root := tree(t)
	for _, program := range Programs {
		text, err := os.ReadFile(filepath.Join(root, "compose/config", program+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var file map[string]any
		if err := yaml.Unmarshal(text, &file); err != nil {
			t.Fatal(err)
		}
		var shipped, described []string
		for key, value := range file {
			section, ok := value.(map[string]any)
			if !ok {
				shipped = append(shipped, key)
			}
			for inner := range section {
				shipped = append(shipped, key+"."+inner)
			}
		}
		all, err := Keys(root, program)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range all {
			described = append(described, key.Name)
		}
		slices.Sort(shipped)
		slices.Sort(described)
		if !slices.Equal(shipped, described) {
			t.Errorf("%s: found the keys %v on the page, expected those of compose/config/%s.yaml: %v", program, described, program, shipped)
		}
	}
}

// TestDatabase holds the page of the database against a migrated MariaDB.
func TestDatabase(t *testing.T) {
	server := storetest.MariaDB(t)
	store, err := mariadb.Open(mariadb.Config{Address: server.Address, Name: server.Name, User: server.User, PasswordFile: server.PasswordFile}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	if _, err := store.CloseInterrupted(ctx, 1); err != nil { // waits for the tables
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	rows, err := server.DB.Query("SELECT table_name, column_name, column_type, is_nullable = 'YES', extra, column_key = 'PRI', column_comment " +
		"FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name NOT LIKE 'goose%' ORDER BY table_name DESC, ordinal_position")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var found []Column
	for rows.Next() {
		var c Column
		if err := rows.Scan(&c.Table, &c.Name, &c.Type, &c.Null, &c.Extra, &c.Key, &c.Comment); err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(c.Type, "int("); i >= 0 { // MariaDB shows a display width
			c.Type = c.Type[:i+len("int")]
		}
		found = append(found, c)
	}
	described, err := Columns(tree(t))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(found, described) {
		t.Errorf("found    %+v\nexpected %+v", found, described)
	}
	for _, q := range Queries {
		if _, err := server.DB.Exec(q.SQL); err != nil {
			t.Errorf("%s\n%s\n%v", q.Purpose, q.SQL, err)
		}
	}
}

func TestMigrationsThatThePageKnows(t *testing.T) {
	base := []Column{{Table: "sessions", Name: "id"}, {Table: "messages", Name: "session_id"}}
	for name, c := range map[string]struct {
		statement string
		want      Column
		err       string
	}{
		"a column more":           {"ALTER TABLE sessions ADD COLUMN note VARCHAR(8) DEFAULT NULL COMMENT 'x'", Column{"sessions", "note", "varchar(8)", true, "", false, "x"}, ""},
		"a column without words":  {"ALTER TABLE sessions ADD COLUMN note VARCHAR(8) DEFAULT NULL", Column{}, "no COMMENT"},
		"what it does not know":   {"ALTER TABLE sessions DROP COLUMN id", Column{}, "teach"},
		"a definition unheard of": {"ALTER TABLE sessions ADD COLUMN note JSON CHECK (1) COMMENT 'x'", Column{}, "teach"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := apply(slices.Clone(base), c.statement)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("found %v, expected an error that says %q", err, c.err)
				}
				return
			}
			if want := []Column{base[0], c.want, base[1]}; err != nil || !slices.Equal(got, want) {
				t.Errorf("found %+v, %v, expected %+v", got, err, want)
			}
		})
	}
}

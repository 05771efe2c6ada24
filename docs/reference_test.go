package docs_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/docs"
	"github.com/tricycle-relay/tricycle/docs/generate"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/services/allinone"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms2"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// sqliteColumns returns the columns of a migrated SQLite database, as
// table.column.
func sqliteColumns(t *testing.T) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tricycle.db")
	store, err := sqlite.Open(file, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	migrate(t, store)
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: filepath.ToSlash(file)}).String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	return mariadbtest.Column(t, db, "SELECT t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c "+
		"WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name NOT LIKE 'goose_%' ORDER BY t.name DESC, c.cid")
}

// migrate runs a store until its tables exist.
func migrate(t *testing.T, store interface {
	Run(ctx context.Context) error
	Session(ctx context.Context, id int64) (ms1.Session, error)
}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	if _, err := store.Session(ctx, 1); !errors.Is(err, ms1.ErrNoSession) { // waits for the tables
		t.Errorf("session: got %v, want %v", err, ms1.ErrNoSession)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestColumns compares the columns of the two databases, and the members of
// GET /sessions/{id}.
func TestColumns(t *testing.T) {
	columns := sqliteColumns(t)
	var found []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[ms1.Session]()) {
		found = append(found, "sessions."+f.Tag.Get("json"))
	}
	if want := slices.DeleteFunc(slices.Clone(columns), func(c string) bool { return !strings.HasPrefix(c, "sessions.") }); !slices.Equal(found, want) {
		t.Errorf("ms1.Session: got the members %v, want the columns of SQLite: %v", found, want)
	}

	server := mariadbtest.New(t)
	store, err := mariadb.Open(mariadb.Config{Address: server.Address, Name: server.Name, User: server.User, PasswordFile: server.PasswordFile}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	migrate(t, store)
	const ours = "SELECT CONCAT(table_name, '.', column_name) FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name NOT LIKE 'goose%'"
	if found := mariadbtest.Column(t, server.DB, ours+" ORDER BY table_name DESC, ordinal_position"); !slices.Equal(found, columns) {
		t.Errorf("MariaDB: got the columns %v, want those of SQLite: %v", found, columns)
	}
	if found := mariadbtest.Column(t, server.DB, ours+" AND column_comment = ''"); len(found) > 0 {
		t.Errorf("%v: must have a COMMENT", found)
	}
	for _, q := range generate.Queries {
		if _, err := server.DB.Exec(q.SQL); err != nil {
			t.Errorf("%s\n%s\n%v", q.Purpose, q.SQL, err)
		}
	}
}

// span is a kind of span, as docs/reference/traces.md describes it.
type span struct{ kind, always, sometimes, events string }

// spanTable reads the tables of docs/reference/traces.md.
func spanTable(t *testing.T) map[string]span {
	t.Helper()
	text, err := fs.ReadFile(tree(t), "docs/reference/traces.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]span{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		name := strings.Trim(codeSpan.FindString(section), "`")
		row := func(head string) string {
			_, rest, _ := strings.Cut(section, "\n| "+head+" | ")
			line, _, _ := strings.Cut(rest, " |\n")
			return line
		}
		all[name] = span{row("kind"), row("attributes"), row("added where they apply"), row("events")}
	}
	return all
}

// TestSpans compares the spans that a real round exports with the table of
// docs/reference/traces.md.
func TestSpans(t *testing.T) {
	t.Parallel()
	endpoint, exported := telemetrytest.Collector(t)
	c := allinone.Defaults()
	c.Listen, c.Data, c.Once = "127.0.0.1:0", t.TempDir(), true
	c.Interaction.IntervalSeconds, c.Tracing.Endpoint, c.Tracing.SampleRatio = 1, endpoint, 1
	for _, c.Interaction.InFlight = range []int{1, 8} { // with 8, some messages share a request or a statement
		var said bytes.Buffer
		if err := allinone.Run(t.Context(), c, &said); err != nil {
			t.Fatalf("%v\n%s", err, &said)
		}
	}
	route := regexp.MustCompile(`^[A-Z]+ /.*`)
	table, seen := spanTable(t), map[string]string{}
	for _, s := range exported() {
		name := strings.ReplaceAll(route.ReplaceAllString(s.Name, "METHOD ROUTE"), c.Kafka.Topic, "TOPIC")
		described, ok := table[name]
		if !ok {
			t.Fatalf("docs/reference/traces.md has no span %q", s.Name)
		}
		if kind := strings.TrimPrefix(s.Kind.String(), "SPAN_KIND_"); kind != described.kind {
			t.Fatalf("span %q: got kind %s, want %s", s.Name, kind, described.kind)
		}
		var attributes string
		for _, a := range s.Attributes {
			attributes += "`" + a.Key + "`"
			if !strings.Contains(described.always+described.sometimes, "`"+a.Key+"`") {
				t.Fatalf("span %q: docs/reference/traces.md has no attribute %s", s.Name, a.Key)
			}
		}
		for _, want := range codeSpan.FindAllString(described.always, -1) {
			if !strings.Contains(attributes, want) {
				t.Fatalf("span %q: got the attributes %s, want %s too", s.Name, attributes, want)
			}
		}
		for _, e := range s.Events {
			if !strings.Contains(described.events, "`"+e.Name+"`") {
				t.Fatalf("span %q: docs/reference/traces.md has no event %s", s.Name, e.Name)
			}
		}
		seen[name] += attributes
	}
	for name, described := range table {
		for _, want := range codeSpan.FindAllString(described.always+described.sometimes, -1) {
			if want != "`error.type`" && !strings.Contains(seen[name], want) {
				t.Errorf("span %q: no exported span has the attribute %s of docs/reference/traces.md", name, want)
			}
		}
	}
}

// TestMessagePage compares docs/reference/message.md with the code.
func TestMessagePage(t *testing.T) {
	text, err := fs.ReadFile(tree(t), "docs/reference/message.md")
	if err != nil {
		t.Fatal(err)
	}
	m := message.Message{SessionID: 7, Service1: 1795428930123456, Service2: 1795428930123999, Service3: 1795428930124000}
	kafka := ms2.Defaults().Kafka
	wanted := []string{"\n" + string(m.Encode()) + "\n", "`" + m.Key().String() + "`", "`" + m.Service1.String() + "`",
		"at most " + strconv.Itoa(message.MaxBytes) + " bytes", "`" + kafka.Topic + "`", "`" + kafka.DeadLetterTopic + "`",
		strconv.Itoa(kafka.Partitions) + " partitions", "`" + ms3.Defaults().GroupID + "`", "`" + ms1.Defaults().MS2.URL + "`", "`" + ms3.Defaults().MS1.URL + "`"}
	for _, header := range []string{topic.HeaderReason, topic.HeaderTopic, topic.HeaderPartition, topic.HeaderOffset, topic.HeaderStatus} {
		wanted = append(wanted, "`"+header+"`")
	}
	var members map[string]any
	if err := json.Unmarshal(m.Encode(), &members); err != nil {
		t.Fatal(err)
	}
	for name := range members {
		wanted = append(wanted, "| `"+name+"` |")
	}
	for _, want := range wanted {
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/reference/message.md: must have %q", want)
		}
	}
}

func TestDescriptionsAreOpenAPI(t *testing.T) {
	for _, service := range []string{"ms1", "ms2", "ms3"} {
		text, err := docs.Reference.ReadFile("reference/" + service + ".openapi.yaml")
		if err != nil {
			t.Fatal(err)
		}
		api, err := openapi3.NewLoader().LoadFromData(text)
		if err == nil {
			err = api.Validate(t.Context())
		}
		if err != nil {
			t.Errorf("%s: %v", service, err)
			continue
		}
		if !api.IsOpenAPI31OrLater() {
			t.Errorf("%s: got version %s, want 3.1", service, api.OpenAPI)
		}
	}
}

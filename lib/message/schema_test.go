package message_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/tricycle-relay/tricycle/docs"
	"github.com/tricycle-relay/tricycle/lib/message"
)

// beyondTheSchema are refused by Decode and not by the schema, which cannot
// express these rules.
var beyondTheSchema = map[string]string{
	"4097 bytes":                       "the size of the text",
	"a field twice":                    "a schema sees members after duplicates are merged",
	"a field twice, escaped":           "a schema sees members after duplicates are merged",
	"a stamp twice":                    "a schema sees members after duplicates are merged",
	"session a fraction":               "to a schema 7.0 is an integer",
	"session an exponent":              "to a schema 7e0 is an integer",
	"stamp on February 30th":           "the calendar",
	"stamp on a leap day that is none": "the calendar",
}

// definitions returns the schema of a message at each door.
func definitions(t *testing.T) map[message.Stage]*jsonschema.Schema {
	t.Helper()
	text, err := docs.Reference.ReadFile("reference/message.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	const url = "memory:///message.json" // a relative one is a path, which must then be ASCII
	if err := c.AddResource(url, whole); err != nil {
		t.Fatal(err)
	}
	all := map[message.Stage]*jsonschema.Schema{}
	for stage, name := range map[message.Stage]string{message.AtMS2: "AtMS2", message.AtMS3: "AtMS3", message.AtStore: "AtStore"} {
		if all[stage], err = c.Compile(url + "#/$defs/" + name); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// allows reports whether text is JSON that the schema allows.
func allows(s *jsonschema.Schema, text string) bool {
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	return err == nil && s.Validate(value) == nil
}

func TestSchemaAgreesWithDecode(t *testing.T) {
	schema := definitions(t)[message.AtMS2]
	for name, c := range allTaken(t) {
		if !allows(schema, c.text) {
			t.Errorf("%s: the schema refuses what Decode takes: %.200s", name, c.text)
		}
	}
	vectors := allRefused()
	for name, c := range vectors {
		switch _, known := beyondTheSchema[name]; {
		case allows(schema, c.text) && !known:
			t.Errorf("%s: the schema allows what Decode refuses: %.200s", name, c.text)
		case !allows(schema, c.text) && known:
			t.Errorf("%s: the schema refuses it too; it is no exception", name)
		}
	}
	for name := range beyondTheSchema {
		if _, ok := vectors[name]; !ok {
			t.Errorf("there is no vector %q", name)
		}
	}
}

func TestSchemaAgreesWithDecodeAtEveryDoor(t *testing.T) {
	for stage, schema := range definitions(t) {
		for _, text := range sets() {
			if _, err := message.Decode([]byte(text), stage); allows(schema, text) != (err == nil) {
				t.Errorf("stage %d: Decode returns %v, the schema does not: %s", stage, err, text)
			}
		}
	}
}

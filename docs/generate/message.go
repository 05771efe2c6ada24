package generate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms2"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// doors are the places where a message comes in.
var doors = []struct {
	name  string
	stage message.Stage
	where string
	how   string
}{
	{"AtMS2", message.AtMS2, "MS1 to MS2: WebSocket", "a text frame each, at " + code(ms1.Defaults().MS2.URL)},
	{"AtMS3", message.AtMS3, "MS2 to MS3: Kafka", "the value of a record of the topic " + code(topic.Defaults().Topic)},
	{"AtStore", message.AtStore, "MS3 to MS1: HTTP", "the body of `POST /store`, at " + code(ms3.Defaults().MS1.URL)},
}

// messageFields returns the members of an encoded message in their order.
func messageFields() ([]string, error) {
	dec := json.NewDecoder(bytes.NewReader(message.Message{SessionID: 1}.Encode()))
	var names []string
	for i := 0; ; i++ {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		if tok == json.Delim('}') {
			return names, nil
		}
		if name, ok := tok.(string); ok && i%2 == 1 {
			names = append(names, name)
		}
	}
}

// messageSchema describes a message at a stage.
func (s *source) messageSchema(stage message.Stage) (*schema, error) {
	names, err := messageFields()
	if err != nil {
		return nil, err
	}
	t := reflect.TypeFor[message.Message]()
	if len(names) != t.NumField() {
		return nil, fmt.Errorf("found the members %v in an encoded message, expected one for each of the %d fields", names, t.NumField())
	}
	var m members
	for i, name := range names {
		description, err := s.fieldComment(t, t.Field(i).Name)
		if err != nil {
			return nil, err
		}
		switch {
		case i == 0:
			m = append(m, member{name, &schema{Description: description, Type: "integer", Minimum: 1, Maximum: math.MaxInt64}})
		case i <= int(stage):
			m = append(m, member{name, stampSchema(description)})
		default:
			m = append(m, member{name, &schema{Description: description, Type: "null"}})
		}
	}
	return new(schema).object(m), nil
}

func messagePages(src *source, pages map[string]string) error {
	whole := &schema{Dialect: "https://json-schema.org/draft/2020-12/schema", Title: "A message on its round",
		Description: "Which stamps are set depends on the door that the message comes to: a definition each."}
	for _, d := range doors {
		s, err := src.messageSchema(d.stage)
		if err != nil {
			return err
		}
		s.Description = d.where + ", " + strings.ReplaceAll(d.how, "`", "") + "."
		whole.Defs = append(whole.Defs, member{d.name, s})
		whole.AnyOf = append(whole.AnyOf, &schema{Ref: "#/$defs/" + d.name})
	}
	text, err := json.Marshal(whole)
	if err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, "", "  "); err != nil {
		return err
	}
	pages["message.schema.json"] = indented.String() + "\n"

	p := newPage("The message", "A JSON object with exactly these members, at most "+strconv.Itoa(message.MaxBytes)+" bytes with its white space. "+
		"[message.schema.json](message.schema.json) is its JSON Schema\n(2020-12). What a schema cannot say is refused too: a member twice, bytes after the object, a day that the calendar "+
		"does not have,\na `session_id` written with a fraction or an exponent.")
	names, err := messageFields()
	if err != nil {
		return err
	}
	header := []string{"member", "meaning"}
	for _, d := range doors {
		header = append(header, d.where)
	}
	t := reflect.TypeFor[message.Message]()
	var rows [][]string
	for i, name := range names {
		meaning, err := src.fieldComment(t, t.Field(i).Name)
		if err != nil {
			return err
		}
		row := []string{code(name), meaning}
		for _, d := range doors {
			switch {
			case i == 0:
				row = append(row, "integer")
			case i <= int(d.stage):
				row = append(row, "time")
			default:
				row = append(row, "`null`")
			}
		}
		rows = append(rows, row)
	}
	p.table(header, rows)
	m := message.Message{SessionID: 7, Service1: 1795428930123456, Service2: 1795428930123999, Service3: 1795428930124000}
	p.linef("A time is UTC with six digits and `Z`, and nothing else: `%s`. A message as it comes to `/store`:\n", m.Service1)
	p.linef("```json\n%s\n```\n", m.Encode())
	rows = nil
	for _, d := range doors {
		rows = append(rows, []string{d.where, d.how})
	}
	p.table([]string{"way", "a message is"}, rows)
	p.linef("A frame that is no message ends the WebSocket: binary with 1003, malformed with 1008 and what is wrong with which field, larger than %d bytes\n"+
		"with 1009. MS2 ends it with 1001 when it stops and 1013 when Kafka takes nothing. It sends pings and no data.\n", message.MaxBytes)

	p.linef("## Topics\n")
	c := ms2.Defaults().Kafka
	p.table([]string{"topic", "key", "key of its name", "what is in it"}, [][]string{
		{code(c.Topic), code(m.Key().String()), "`kafka.topic`", "messages with two stamps; the partition follows from the key, as Kafka's own clients do it"},
		{code(c.DeadLetterTopic), "the record's", "`kafka.dead_letter_topic`", "records that can never be stored, as they were found, in partition 0; without key and value if they are too large with the headers below"},
	})
	p.linef("Both have %d partitions by default and are made at the start where they are missing. MS3 reads as the consumer group `%s`. A message's key\n"+
		"is its `session_id`, a slash and its `service1_timestamp`.\n", c.Partitions, ms3.Defaults().GroupID)
	p.linef("## Headers of a record\n")
	rows = [][]string{{"`traceparent`", "W3C trace context of MS2's span; in dead letters too"}}
	headers, err := src.constants("lib/topic", "")
	if err != nil {
		return err
	}
	for _, h := range headers {
		if strings.HasPrefix(h.name, "Header") {
			rows = append(rows, []string{code(h.value), "dead letters: " + h.comment})
		}
	}
	p.table([]string{"header", "value"}, rows)
	pages["message.md"] = p.text()
	return nil
}

package generate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

// schema is as much of JSON Schema 2020-12 as the pages need, in the order
// that a reader wants.
type schema struct {
	Dialect     string    `json:"$schema,omitempty" yaml:"$schema,omitempty"`
	Ref         string    `json:"$ref,omitempty" yaml:"$ref,omitempty"`
	Title       string    `json:"title,omitempty" yaml:"title,omitempty"`
	Description string    `json:"description,omitempty" yaml:"description,omitempty"`
	Type        any       `json:"type,omitempty" yaml:"type,omitempty,flow"`
	Enum        []any     `json:"enum,omitempty" yaml:"enum,omitempty,flow"`
	Const       string    `json:"const,omitempty" yaml:"const,omitempty"`
	Minimum     int64     `json:"minimum,omitempty" yaml:"minimum,omitempty"`
	Maximum     int64     `json:"maximum,omitempty" yaml:"maximum,omitempty"`
	Format      string    `json:"format,omitempty" yaml:"format,omitempty"`
	Pattern     string    `json:"pattern,omitempty" yaml:"pattern,omitempty"`
	Not         *schema   `json:"not,omitempty" yaml:"not,omitempty"`
	AnyOf       []*schema `json:"anyOf,omitempty" yaml:"anyOf,omitempty"`
	Required    []string  `json:"required,omitempty" yaml:"required,omitempty,flow"`
	Closed      *bool     `json:"additionalProperties,omitempty" yaml:"additionalProperties,omitempty"`
	Properties  members   `json:"properties,omitempty" yaml:"properties,omitempty"`
	Defs        members   `json:"$defs,omitempty" yaml:"$defs,omitempty"`
}

// members are schemas by name, in an order.
type members []member

type member struct {
	name string
	*schema
}

// MarshalJSON implements json.Marshaler.
func (m members) MarshalJSON() ([]byte, error) {
	var texts []string
	for _, each := range m {
		text, err := json.Marshal(each.schema)
		if err != nil {
			return nil, err
		}
		texts = append(texts, fmt.Sprintf("%q:%s", each.name, text))
	}
	return []byte("{" + strings.Join(texts, ",") + "}"), nil
}

// MarshalYAML implements yaml.Marshaler.
func (m members) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, each := range m {
		var key, value yaml.Node
		key.SetString(each.name)
		if err := value.Encode(each.schema); err != nil {
			return nil, err
		}
		n.Content = append(n.Content, &key, &value)
	}
	return n, nil
}

// object makes m the members of a closed object that has all of them.
func (s *schema) object(m members) *schema {
	open := false
	s.Type, s.Properties, s.Closed = "object", m, &open
	for _, each := range m {
		s.Required = append(s.Required, each.name)
	}
	return s
}

// stampPattern is the notation of a stamp, as far as an expression can say it.
const stampPattern = `^(19[7-9][0-9]|[2-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z$`

func stampSchema(description string) *schema {
	return &schema{Description: description, Type: "string", Format: "date-time", Pattern: stampPattern, Not: &schema{Const: "1970-01-01T00:00:00.000000Z"}}
}

// types are the Go types that the HTTP APIs exchange.
var types = map[string]reflect.Type{
	"Session": reflect.TypeFor[ms1.Session](),
	"Summary": reflect.TypeFor[ms1.Summary](),
	"Status":  reflect.TypeFor[ms1.Status](),
	"Hops":    reflect.TypeFor[ms1.Hops](),
	"Hop":     reflect.TypeFor[ms1.Hop](),
}

// structSchema describes a struct by its fields and their comments.
func (s *source) structSchema(t reflect.Type) (*schema, error) {
	var m members
	var add func(reflect.Type) error
	add = func(t reflect.Type) error {
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Anonymous {
				if err := add(f.Type); err != nil {
					return err
				}
				continue
			}
			description, err := s.fieldComment(t, f.Name)
			if err != nil {
				return err
			}
			value, err := s.valueSchema(f.Type, description)
			if err != nil {
				return fmt.Errorf("%s.%s: %w", t, f.Name, err)
			}
			m = append(m, member{f.Tag.Get("json"), value})
		}
		return nil
	}
	err := add(t)
	return new(schema).object(m), err
}

// valueSchema describes a value of a field.
func (s *source) valueSchema(t reflect.Type, description string) (*schema, error) {
	if t == reflect.TypeFor[message.Stamp]() {
		stamp := stampSchema(description)
		stamp.Type = []string{"string", "null"}
		return stamp, nil
	}
	null := t.Kind() == reflect.Pointer
	if null {
		t = t.Elem()
	}
	v := &schema{Description: description}
	switch t.Kind() {
	case reflect.Int, reflect.Int64:
		v.Type = "integer"
	case reflect.Float64:
		v.Type = "number"
	case reflect.String:
		v.Type = "string"
		values, err := s.constants(strings.TrimPrefix(t.PkgPath(), module), t.Name())
		if err != nil {
			return nil, err
		}
		for _, c := range values {
			v.Enum = append(v.Enum, c.value)
		}
		if null {
			v.Enum = append(v.Enum, nil)
		}
	case reflect.Struct:
		ref := &schema{Ref: "#/components/schemas/" + t.Name()}
		if !null {
			return ref, nil
		}
		v.AnyOf = []*schema{ref, {Type: "null"}}
		return v, nil
	default:
		return nil, fmt.Errorf("found type %s, which docs/generate/schema.go cannot describe", t)
	}
	if null {
		v.Type = []any{v.Type, "null"}
	}
	return v, nil
}

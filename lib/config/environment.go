package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const prefix = "TRICYCLE_"

// foreign are variables with the prefix that are not for a program: those of the
// Compose files, and the directories of the programs and of the sources in scripts
// that start them. One shell may set them for both. TRICYCLE_TEST_… are those of
// the tests.
var foreign = []string{
	"TRICYCLE_BIN", "TRICYCLE_REPO",
	"TRICYCLE_REPOSITORY", "TRICYCLE_VERSION", "TRICYCLE_PASSWORDS", "TRICYCLE_MS1_PORT", "TRICYCLE_JAEGER_PORT", "TRICYCLE_MARIADB_PORT",
	"TRICYCLE_PROMETHEUS_PORT", "TRICYCLE_GRAFANA_PORT",
}

// Variable returns the environment variable of a key:
// TRICYCLE_INTERACTION_IN_FLIGHT for interaction.in_flight.
func Variable(key string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Keys returns the path and the field of each key of the struct that c points
// to, in its order, without the sections.
func Keys(c any) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) { walk(reflect.ValueOf(c).Elem(), "", yield) }
}

func walk(v reflect.Value, path string, yield func(string, reflect.Value) bool) bool {
	keys, fields := fieldsOf(v)
	for i, key := range keys {
		if fields[i].Kind() == reflect.Struct {
			if !walk(fields[i], path+key+".", yield) {
				return false
			}
		} else if !yield(path+key, fields[i]) {
			return false
		}
	}
	return true
}

// readEnvironment sets the keys whose variables are set. A list has commas. An
// empty variable is an empty string or list.
func (s Sources) readEnvironment(into any, environment []string) (err error) {
	names, keys, fields := []string{}, []string{}, []reflect.Value{}
	for key, field := range Keys(into) {
		names, keys, fields = append(names, Variable(key)), append(keys, key), append(fields, field)
	}
	for _, assignment := range environment {
		name, value, _ := strings.Cut(assignment, "=")
		if !strings.HasPrefix(name, prefix) || strings.HasPrefix(name, prefix+"TEST_") {
			continue
		}
		at := slices.Index(names, name)
		switch {
		case at >= 0:
			s[keys[at]] = "variable " + name
			err = errors.Join(err, variable(fields[at], name, value))
		case !slices.Contains(foreign, name):
			unknown, upper := "unknown variable "+name, strings.ToUpper(name)
			nearest := slices.MinFunc(names, func(a, b string) int { return cmp.Compare(distance(upper, a), distance(upper, b)) })
			if 2*distance(upper, nearest) < len(name)-len(prefix) { // otherwise it is no misspelling
				unknown += ", the nearest is " + nearest
			}
			err = errors.Join(err, errors.New(unknown))
		}
	}
	return err
}

// variable sets a field from a variable.
func variable(v reflect.Value, name, value string) error {
	if !utf8.ValidString(value) {
		return fmt.Errorf("%s: expected UTF-8, found %q", name, value)
	}
	n := yaml.Node{Kind: yaml.ScalarNode, Value: value}
	switch v.Kind() {
	case reflect.String:
		n.Tag = "!!str"
	case reflect.Slice:
		n = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for item := range strings.SplitSeq(value, ",") {
			if value != "" {
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: strings.TrimSpace(item)})
			}
		}
	default:
		n.Tag = n.ShortTag() // of the same text in a file
	}
	return scalar(v, &n, name)
}

// distance returns the number of letters to insert, delete or replace to get
// from a to b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// Print writes the configuration that c points to as YAML, each value with its
// source in a comment. [Read] reads it.
func (s Sources) Print(w io.Writer, c any) error {
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	root, err := s.mapping(reflect.ValueOf(c).Elem(), "")
	return errors.Join(err, enc.Encode(root), enc.Close())
}

func (s Sources) mapping(v reflect.Value, path string) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	keys, fields := fieldsOf(v)
	for i, key := range keys {
		value := new(yaml.Node)
		var err error
		if fields[i].Kind() == reflect.Struct {
			value, err = s.mapping(fields[i], path+key+".")
		} else {
			err = value.Encode(fields[i].Interface())
			value.Style |= yaml.FlowStyle // a list is one line
			value.LineComment = cmp.Or(s[path+key], "default")
		}
		if err != nil {
			return nil, err
		}
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
	}
	return n, nil
}

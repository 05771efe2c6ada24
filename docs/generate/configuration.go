package generate

import (
	"errors"
	"fmt"
	"go/ast"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/services/allinone"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms2"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// Key is a key of a program's configuration.
type Key struct {
	Name    string // path, with dots
	Type    string
	Default string
	Range   string // the expectation in the errors of Validate
	Meaning string
}

// Programs are the programs that have a configuration.
var Programs = []string{"ms1", "ms2", "ms3", "allinone"}

func defaultsOf(program string) interface{ Validate() error } {
	switch program {
	case "ms1":
		c := mariadb.Program().Config
		return &c
	case "ms2":
		c := ms2.Defaults()
		return &c
	case "ms3":
		c := ms3.Defaults()
		return &c
	}
	c := allinone.Defaults()
	return &c
}

// Keys returns the configuration keys of a program.
func (s *Source) Keys(program string) ([]Key, error) {
	probed := defaultsOf(program)
	if c, ok := probed.(*allinone.Config); ok {
		c.Database.Address = mariadb.Defaults().Address // else nobody looks at its section
	}
	var all []Key
	var walk func(v, probe reflect.Value, prefix string) error
	walk = func(v, probe reflect.Value, prefix string) error {
		for i := range v.NumField() {
			field, name := v.Type().Field(i), prefix+v.Type().Field(i).Tag.Get("yaml")
			switch {
			case field.Anonymous:
				if err := walk(v.Field(i), probe.Field(i), prefix); err != nil {
					return err
				}
			case field.Type.Kind() == reflect.Struct:
				if err := walk(v.Field(i), probe.Field(i), name+"."); err != nil {
					return err
				}
			default:
				meaning, err := s.fieldComment(v.Type(), field.Name)
				if err == nil && meaning == "" {
					err = fmt.Errorf("%s.%s: must have a comment for the key %s", v.Type(), field.Name, name)
				}
				if err != nil {
					return err
				}
				kind, expected := expectation(probed, probe.Field(i), name)
				all = append(all, Key{Name: name, Type: kind, Default: show(v.Field(i)), Range: expected, Meaning: meaning})
			}
		}
		return nil
	}
	err := walk(reflect.ValueOf(defaultsOf(program)).Elem(), reflect.ValueOf(probed).Elem(), "")
	return all, err
}

// expectation sets a key to invalid values and returns its type and what the
// configuration expects instead.
func expectation(c interface{ Validate() error }, field reflect.Value, key string) (kind, expected string) {
	var absurd []any
	switch field.Kind() {
	case reflect.Int:
		kind, absurd = "integer", []any{math.MinInt}
	case reflect.Float64:
		kind, absurd = "number", []any{math.NaN()}
	case reflect.Bool:
		kind, expected = "boolean", "true or false"
	case reflect.Slice:
		kind, absurd = "list of strings", []any{[]string{""}, []string(nil)}
	default:
		kind, absurd = "string", []any{"", "\x00"}
	}
	good := reflect.ValueOf(field.Interface())
	defer field.Set(good)
	var found []string
	for _, value := range absurd {
		field.Set(reflect.ValueOf(value))
		if err := c.Validate(); err != nil {
			for line := range strings.Lines(err.Error()) {
				_, want, ok := strings.Cut(line, ", expected ")
				if _, must, found := strings.Cut(line, ": must be "); found {
					want, _, ok = strings.Cut(must, ", got ")
				}
				if want = strings.TrimSpace(want); ok && strings.HasPrefix(line, key+": ") && !slices.Contains(found, want) {
					found = append(found, want)
				}
			}
		}
	}
	if len(found) > 0 {
		expected = strings.Join(found, "; ")
	}
	return kind, expected
}

func show(v reflect.Value) string {
	if kind := v.Kind(); kind != reflect.String && kind != reflect.Slice {
		return fmt.Sprint(v.Interface())
	}
	if v.Len() == 0 {
		return ""
	}
	return strings.Trim(fmt.Sprint(v.Interface()), "[]")
}

// Flag is a flag of a program.
type Flag struct{ Name, Meaning string }

// Flags returns the flags of a program.
func (s *Source) Flags(program string) (all []Flag, err error) {
	for _, directory := range []string{"lib/program", "services/" + program} {
		err = errors.Join(err, s.inspect(directory, func(n ast.Node) bool {
			call, _ := n.(*ast.CallExpr)
			if call == nil || len(call.Args) < 3 {
				return true
			}
			sel, _ := call.Fun.(*ast.SelectorExpr)
			if sel == nil {
				return true
			}
			if on, _ := sel.X.(*ast.Ident); on == nil || on.Name != "flags" {
				return true
			}
			var texts []string // name and usage; the other arguments are a variable, a value or a function
			for _, a := range call.Args {
				if text, ok := literal(a); ok {
					texts = append(texts, text)
				}
			}
			name, meaning := texts[0], texts[len(texts)-1]
			if word := strings.SplitN(meaning, "`", 3); len(word) == 3 {
				name, meaning = name+" "+word[1], strings.ReplaceAll(meaning, "`", "")
			}
			all = append(all, Flag{Name: "-" + name, Meaning: meaning})
			return true
		}))
	}
	return all, err
}

func configurationPage(src *Source, pages map[string]string) error {
	p := newPage("Configuration", "A program reads the YAML files that its flag `-config` names, then the environment, then its flags; "+
		"the last one counts. A\nmissing key has its default. An unknown key, another type or a value out of range is an error with file, "+
		"line and key. The\nranges come from the errors of the program. The shipped files are in [compose/config](../../compose/config).\n\n"+
		"The variable of a key is `"+config.Variable("")+"` and its path in upper case: `"+config.Variable("interaction.in_flight")+"` for\n"+
		"`interaction.in_flight`. A list has commas (`"+config.Variable("kafka.brokers")+"=a:9092,b:9092`); an empty variable is an empty string\n"+
		"or list. A `"+config.Variable("")+"…` variable without a key is an error too, except those of [compose.yaml](../../compose/compose.yaml)\n"+
		"and `"+config.Variable("test")+"_…` of the tests. `-print-config` prints the configuration with the source of each value.")
	for _, program := range Programs {
		all, err := src.Keys(program)
		if err != nil {
			return err
		}
		p.linef("## %s\n", program)
		var rows [][]string
		for _, k := range all {
			rows = append(rows, []string{code(k.Name), code(config.Variable(k.Name)), k.Type, unitOf(k.Name), code(k.Default), k.Range, k.Meaning})
		}
		p.table([]string{"key", "variable", "type", "unit", "default", "range", "meaning"}, rows)
		known, err := src.Flags(program)
		if err != nil {
			return err
		}
		rows = nil
		for _, f := range known {
			rows = append(rows, []string{code(f.Name), f.Meaning})
		}
		p.table([]string{"flag", "meaning"}, rows)
	}
	p.linef("## Environment\n\nThese variables of the OpenTelemetry specification override or extend the section `tracing` in every program. The SDK also reads others.\n")
	names, err := src.environment("lib/telemetry")
	if err != nil {
		return err
	}
	var rows [][]string
	for _, name := range names {
		rows = append(rows, []string{code(name)})
	}
	p.table([]string{"variable"}, rows)
	pages["configuration.md"] = p.text()
	return nil
}

// environment returns the OTEL_* variables that a package reads.
func (s *Source) environment(directory string) (names []string, err error) {
	err = s.inspect(directory, func(n ast.Node) bool {
		if e, ok := n.(ast.Expr); ok {
			if text, ok := literal(e); ok && strings.HasPrefix(text, "OTEL_") && !strings.ContainsAny(text, ": ") {
				names = append(names, text)
			}
		}
		return true
	})
	slices.Sort(names)
	return slices.Compact(names), err
}

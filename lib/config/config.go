// Package config reads the YAML configuration of a program strictly. An unknown
// or repeated key, a value of another type or a value out of range is an error
// with file, line and key.
//
// A program describes its configuration as a struct whose fields have yaml tags.
// It fills the struct with the defaults, [Load] overwrites them from the files,
// and the Validate method of the struct checks the ranges. Units are part of the
// keys (interval_seconds), never of the values. The files contain no secrets,
// only the names of files that hold them.
package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Validator is a configuration that can say what is wrong with it.
type Validator interface {
	// Validate returns an error for each value out of its range, joined.
	Validate() error
}

// Load is [Read] and [Check].
func Load(into Validator, paths ...string) error {
	if err := Read(into, paths...); err != nil {
		return err
	}
	return Check(into)
}

// Read reads the YAML files into the struct that into points to, in order, so
// that a later file overrides what an earlier one says. What no file names
// keeps its value. A list is replaced as a whole.
func Read(into any, paths ...string) error {
	for _, path := range paths {
		if err := readFile(into, path); err != nil {
			return fmt.Errorf("reading configuration: %w", err)
		}
	}
	return nil
}

// Check returns what is wrong with the values of c.
func Check(c Validator) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("checking configuration: %w", err)
	}
	return nil
}

// read returns the content of a file. If this user may not read it, the error
// has the mode of the file, or of the directory that is closed to the user.
func read(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrPermission) {
		at := path
		info, failed := os.Stat(at)
		for failed != nil && at != filepath.Dir(at) {
			at = filepath.Dir(at)
			info, failed = os.Stat(at)
		}
		if failed == nil {
			err = fmt.Errorf("%w: must be readable by user %d, got mode %s of %s (chmod it, or run compose/secrets.sh)",
				err, os.Geteuid(), info.Mode(), at)
		}
	}
	return data, err
}

func readFile(into any, path string) error {
	data, err := read(path)
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file: every key at its default
	} else if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// What cannot be read after the first document is no part of it either.
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: found more than one YAML document, expected one", path)
	}
	if err := fill(reflect.ValueOf(into).Elem(), doc.Content[0], ""); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// fill sets the struct v from the mapping n. key is the path of v's key.
// It does what yaml's own KnownFields does, in words that fit a person who
// has never seen the struct.
func fill(v reflect.Value, n *yaml.Node, key string) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if v.Kind() != reflect.Struct {
		return scalar(v, n, key)
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil // a section whose keys are all commented out
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %s: found %s, expected keys and values", n.Line, cmp.Or(key, "the file"), found(n))
	}
	known, fields := fieldsOf(v)
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		path := strings.TrimPrefix(key+"."+name.Value, ".")
		at := slices.Index(known, name.Value)
		if at < 0 || name.Kind != yaml.ScalarNode { // the value of an alias is its name
			if name.Kind != yaml.ScalarNode || !plain(name.Value) {
				path = strings.TrimPrefix(key+"."+found(name), ".")
			}
			return fmt.Errorf("line %d: unknown key %s, expected one of %s", name.Line, path, strings.Join(known, ", "))
		}
		if seen[name.Value] {
			return fmt.Errorf("line %d: %s: found the key twice, expected it once", name.Line, path)
		}
		seen[name.Value] = true
		if err := fill(fields[at], value, path); err != nil {
			return err
		}
	}
	return nil
}

// scalar sets a number, string, boolean or list of strings.
func scalar(v reflect.Value, n *yaml.Node, key string) error {
	var want, tag string
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		want, tag = "a whole number", "!!int" // yaml would cut 1.5 to 1
	case reflect.Float64:
		want, tag = "a number", "!!float"
	case reflect.Bool:
		want, tag = "true or false", "!!bool"
	case reflect.String:
		want, tag = "a string", "!!str"
	case reflect.Slice:
		want, tag = "a list of strings", "!!seq"
	default:
		return fmt.Errorf("key %s has type %s, which no configuration uses", key, v.Type())
	}
	mismatch := fmt.Errorf("line %d: %s: found %s, expected %s", n.Line, key, found(n), want)
	if n.Tag != tag && (tag != "!!float" || n.Tag != "!!int") {
		return mismatch
	}
	for _, item := range n.Content {
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		if item.Tag != "!!str" {
			return fmt.Errorf("line %d: %s: found %s in the list, expected %s", item.Line, key, found(item), want)
		}
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		return mismatch
	}
	return nil
}

// found is what an error says of a value, on one line.
func found(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys and values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "the alias *" + n.Value
	case n.Tag == "!!null":
		return "nothing"
	case n.Tag == "!!str" || !plain(n.Value):
		return strconv.Quote(n.Value)
	}
	return n.Value
}

// plain says that text can stand in an error as it is.
func plain(s string) bool { return s != "" && strconv.Quote(s) == `"`+s+`"` }

// fieldsOf returns the keys of a struct and the fields they stand for, those
// of embedded structs among them.
func fieldsOf(v reflect.Value) (keys []string, fields []reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			k, inner := fieldsOf(v.Field(i))
			keys, fields = append(keys, k...), append(fields, inner...)
			continue
		}
		keys, fields = append(keys, f.Tag.Get("yaml")), append(fields, v.Field(i))
	}
	return keys, fields
}

// InRange returns an error if value is not within [low, high].
func InRange[T cmp.Ordered](key string, value, low, high T) error {
	if value >= low && value <= high { // false for NaN
		return nil
	}
	return fmt.Errorf("%s: found %v, expected %v to %v", key, value, low, high)
}

// HostNames returns an error that names the key unless every value is a host
// name, without a port.
func HostNames(key string, values []string) error {
	legal := regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*\.?$`)
	for _, v := range values {
		if !legal.MatchString(v) {
			return fmt.Errorf("%s: must be host names without port, got %q", key, v)
		}
	}
	return nil
}

// HostPort returns an error if address is not "host:port" with a port from
// low to 65535. An empty host is allowed where a program listens; low is 0
// there, for a port of the system's choice, and 1 where it dials.
func HostPort(key, address string, low int) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil && (host != "" || low == 0) && !strings.Contains(host, "@") {
		// Not net.LookupPort: a service's name is known on one machine and not
		// in an image, and no port at all would mean 0.
		n, err := strconv.ParseUint(port, 10, 16)
		if err == nil && int(n) >= low {
			return nil
		}
	}
	return fmt.Errorf("%s: found %q, expected host:port with a port from %d to 65535", key, redacted(address), low)
}

// redacted hides what may be a user and a password in an address or a URL.
func redacted(address string) string {
	if at := strings.LastIndex(address, "@"); at >= 0 {
		return "…" + address[at:]
	}
	return address
}

// URL returns an error if value is not an absolute URL with a host and one of
// the schemes. A user or a password is refused: a URL ends up in logs.
func URL(key, value string, schemes ...string) error {
	u, err := url.Parse(value)
	if err == nil && u.User != nil {
		return fmt.Errorf("%s: must be a URL without user and password, got %q", key, redacted(value))
	}
	if err == nil && u.Hostname() != "" && slices.Contains(schemes, u.Scheme) && (u.Port() == "" || HostPort(key, u.Host, 1) == nil) {
		return nil
	}
	return fmt.Errorf("%s: found %q, expected a URL such as %s://host:port", key, redacted(value), schemes[0])
}

// Secret returns what the file holds, without the line end at its end. An
// empty path is an empty secret.
func Secret(key, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := read(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s: found nothing in %s, expected a secret on one line", key, path)
	}
	return secret, nil
}

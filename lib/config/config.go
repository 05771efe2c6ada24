// Package config reads the configuration of a program strictly, from YAML files
// and environment variables. An unknown or repeated key, a value of another type
// or a value out of range is an error that names its place and the key.
//
// A program describes its configuration as a struct whose fields have yaml tags.
// It fills the struct with the defaults, [Read] overwrites them from the files
// and then from the environment, and the Validate method of the struct checks
// the ranges. Units are part of the keys (interval_seconds), never of the
// values. The configuration contains no secrets, only the names of files that
// hold them.
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
	"syscall"

	"gopkg.in/yaml.v3"
)

// Validator is a configuration that checks itself.
type Validator interface {
	// Validate returns an error for each value that is out of range, joined.
	Validate() error
}

// Sources maps the path of a key, such as interaction.in_flight, to the place of
// its value: "file NAME", "variable NAME" or "flag -NAME". A key that is not in
// it has its default.
type Sources map[string]string

// Read reads YAML files and then an environment, as [os.Environ] returns it,
// into the struct that into points to. A later file overrides an earlier one. A
// key that is in none of them keeps its value. A list is replaced as a whole.
func Read(into any, environment []string, paths ...string) (Sources, error) {
	s := Sources{}
	for _, path := range paths {
		if err := s.readFile(into, path); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
	}
	if err := s.readEnvironment(into, environment); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return s, nil
}

// Check returns the errors of c. The error of a key ends with its source.
func (s Sources) Check(c Validator) error {
	err := c.Validate()
	if err == nil {
		return nil
	}
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		key, _, _ := strings.Cut(line, ": ")
		if source := s[key]; source != "" {
			lines[i] += " (" + source + ")"
		}
	}
	return fmt.Errorf("check configuration: %s", strings.Join(lines, "\n"))
}

// maxFile is the most bytes of a file: a device may have no end.
const maxFile = 4 << 20

// read returns the content of a file. If this user may not read it, the error
// has the mode of the file, or of the directory that is closed to the user.
func read(path string) (data []byte, err error) {
	// Without O_NONBLOCK, the open of a FIFO waits for a writer indefinitely.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		defer file.Close()
		data, err = io.ReadAll(io.LimitReader(file, maxFile+1))
		if info, failed := file.Stat(); failed == nil && err == nil && len(data) == 0 && info.Mode()&fs.ModeNamedPipe != 0 {
			return nil, fmt.Errorf("%s: must be a file, got a pipe without a writer", path)
		}
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: must be at most %d bytes, got more", path, maxFile)
	}
	if errors.Is(err, fs.ErrPermission) {
		at := path
		info, failed := os.Stat(at)
		for failed != nil && at != filepath.Dir(at) {
			at = filepath.Dir(at)
			info, failed = os.Stat(at)
		}
		if failed == nil {
			err = fmt.Errorf("%w: must be readable by user %d, got mode %s of %s (chmod a+rX)",
				err, os.Geteuid(), info.Mode(), at)
		}
	}
	return data, err
}

func (s Sources) readFile(into any, path string) error {
	data, err := read(path)
	if err != nil {
		return err
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil // an empty file
	} else if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: expected one YAML document, found more", path)
	}
	if err := s.fill(reflect.ValueOf(into).Elem(), doc.Content[0], "", "file "+path); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// fill sets the struct v, whose key has the path key, from the mapping n of the
// source. It does the same as KnownFields of yaml, whose errors name Go types.
func (s Sources) fill(v reflect.Value, n *yaml.Node, key, source string) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if v.Kind() != reflect.Struct {
		s[key] = source
		return scalar(v, n, key)
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil // a section whose keys are all commented out
	}
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: %s: expected keys and values, found %s", n.Line, cmp.Or(key, "the file"), found(n))
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
			return fmt.Errorf("line %d: %s: expected the key once, found it twice", name.Line, path)
		}
		seen[name.Value] = true
		if err := s.fill(fields[at], value, path, source); err != nil {
			return err
		}
	}
	return nil
}

// at returns the place of a value for an error. A value of the environment has
// no line.
func at(n *yaml.Node, key string) string {
	if n.Line == 0 {
		return key
	}
	return fmt.Sprintf("line %d: %s", n.Line, key)
}

// scalar sets a number, string, boolean or list of strings. An error begins with
// the line, if there is one, and the key.
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
		return fmt.Errorf("key %s: unsupported type %s", key, v.Type())
	}
	mismatch := fmt.Errorf("%s: expected %s, found %s", at(n, key), want, found(n))
	if n.Tag != tag && (tag != "!!float" || n.Tag != "!!int") {
		return mismatch
	}
	if n.Tag == "!!int" && octal.MatchString(n.Value) {
		return fmt.Errorf("%s: expected %s without leading zeros, found %s", at(n, key), want, found(n))
	}
	for _, item := range n.Content {
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		if item.Tag != "!!str" {
			return fmt.Errorf("%s: expected %s, found %s in it", at(item, key), want, found(item))
		}
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		return mismatch
	}
	return nil
}

// octal matches a number such as 010, which YAML 1.1 reads as 8 and YAML 1.2 as 10.
var octal = regexp.MustCompile(`^[-+]?0[0-9_]`)

// found returns a description of a value for an error, on one line.
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

// plain reports whether text needs no quotes in an error.
func plain(s string) bool { return s != "" && strconv.Quote(s) == `"`+s+`"` }

// fieldsOf returns the keys and fields of a struct, including those of embedded
// structs.
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
	return fmt.Errorf("%s: must be between %v and %v, got %v", key, low, high, value)
}

// HostNames returns an error unless every value is a host name without a port.
func HostNames(key string, values []string) error {
	legal := regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*\.?$`)
	for _, v := range values {
		if !legal.MatchString(v) {
			return fmt.Errorf("%s: must be host names without port, got %q", key, v)
		}
	}
	return nil
}

// HostPort returns an error if address is not "host:port" with a port from low
// to 65535. For an address to listen on, low is 0, which stands for any free
// port, and the host may be empty. For an address to dial, low is 1.
func HostPort(key, address string, low int) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil && (host != "" || low == 0) && !strings.ContainsAny(host, "@*/ \t\r\n") {
		// net.LookupPort would accept names, which an image may not know, and ""
		// as 0.
		n, err := strconv.ParseUint(port, 10, 16)
		if err == nil && int(n) >= low {
			return nil
		}
	}
	return fmt.Errorf("%s: must be host:port with a port from %d to 65535, got %q", key, low, redacted(address))
}

// redacted replaces a possible user and password in an address or a URL.
func redacted(address string) string {
	if at := strings.LastIndex(address, "@"); at >= 0 {
		return "…" + address[at:]
	}
	return address
}

// URL returns an error if value is not an absolute URL with a host and the scheme
// of the example, such as http, or its secure one, such as https. It also refuses
// a user or a password, which would end up in logs.
func URL(key, value, example string) error {
	scheme, _, _ := strings.Cut(example, "://")
	u, err := url.Parse(value)
	if err == nil && u.User != nil {
		return fmt.Errorf("%s: must be a URL without user and password, got %q", key, redacted(value))
	}
	if err == nil && u.Hostname() != "" && (u.Scheme == scheme || u.Scheme == scheme+"s") && (u.Port() == "" || HostPort(key, u.Host, 1) == nil) {
		return nil
	}
	return fmt.Errorf("%s: must be a URL such as %s, got %q", key, example, redacted(value))
}

// File returns the content of the file that a key names, without the byte order
// mark of some editors.
func File(key, path string) ([]byte, error) {
	data, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), nil
}

// Secret returns the one line of the file that a key names, and "" for an empty
// path.
func Secret(key, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := File(key, path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s: must name a file with a secret, got %s, which is empty", key, path)
	}
	if strings.HasPrefix(secret, "\xff\xfe") { // as PowerShell writes it
		return "", fmt.Errorf("%s: must name a file in UTF-8, got %s in UTF-16", key, path)
	}
	if strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("%s: must name a file with one line, got %s, which has more", key, path)
	}
	return secret, nil
}

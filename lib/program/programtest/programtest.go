// Package programtest runs commands and services in the test's process.
package programtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// Command is a command that runs in the test's process.
type Command struct {
	Out, Err servicetest.Console
	t        testing.TB
	cancel   context.CancelFunc
	wait     func() int
}

// Run runs a command until the test ends or stops it.
func Run[C any, PC program.Validator[C]](t testing.TB, p program.Program[C], args ...string) *Command {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &Command{t: t, cancel: cancel}
	done := make(chan int, 1)
	go func() { done <- program.Main[C, PC](ctx, p, args, &c.Out, &c.Err) }()
	c.wait = sync.OnceValue(func() int { return <-done })
	t.Cleanup(func() { c.Stop() })
	return c
}

// Wait waits until the command ends by itself and returns its exit status.
func (c *Command) Wait() int { return c.wait() }

// Stop asks the command to stop and returns its exit status.
func (c *Command) Stop() int {
	c.cancel()
	return c.wait()
}

// Address waits for the line of the log that has the address of the command.
func (c *Command) Address() string {
	c.t.Helper()
	return c.Out.Find(c.t, ` started.* address=(\S+)`)[1]
}

// Variables sets every key of a program by its environment variable, to another
// value than the default if the key has one. The test fails unless the program
// runs with these values and -print-config names the variables.
func Variables[C any, PC program.Validator[C]](t *testing.T, p program.Program[C]) {
	t.Helper()
	want, variables := p.Config, []string{}
	for key, field := range config.Keys(&want) {
		another(PC(&want), key, field)
		text := fmt.Sprint(field.Interface())
		if list, ok := field.Interface().([]string); ok {
			text = strings.Join(list, ",")
		}
		variables = append(variables, config.Variable(key))
		t.Setenv(config.Variable(key), text)
	}
	expect := func(got C) {
		t.Helper()
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	p.Serves = func(C) program.Served { return program.Served{} } // no profiles
	p.Run = func(_ context.Context, c C, _ io.Writer) error { expect(c); return nil }
	if c := Run[C, PC](t, p); c.Wait() != 0 {
		t.Fatal(c.Err.String())
	}

	c := Run[C, PC](t, p, "-print-config")
	if c.Wait() != 0 {
		t.Fatal(c.Err.String())
	}
	printed := servicetest.File(t, "printed.yaml", c.Out.String())
	var again C
	if err := Load(PC(&again), printed); err != nil {
		t.Fatal(err)
	}
	expect(again)
	for _, name := range variables {
		if !strings.Contains(c.Out.String(), " # variable "+name+"\n") {
			t.Errorf("got\n%s\nwant %s in it", c.Out.String(), name)
		}
	}
}

// another sets a key to a value in its range that is not the default, if there
// is one.
func another(c config.Validator, key string, field reflect.Value) {
	var others []any
	switch v := field.Interface().(type) {
	case int:
		others = []any{v + 1, v - 1}
	case float64:
		others = []any{v / 2}
	case bool:
		others = []any{!v}
	case []string:
		others = []any{[]string{"a:1", "b:2"}, []string{"a", "b"}}
	case string:
		others = []any{"x", "127.0.0.1:1", "ws://127.0.0.1:1", "http://127.0.0.1:1"}
	}
	others = append(others, field.Interface())
	for i := 0; i < len(others); i++ {
		field.Set(reflect.ValueOf(others[i]))
		_, message, wrong := strings.Cut("\n"+fmt.Sprint(c.Validate()), "\n"+key+": ")
		if !wrong {
			return
		}
		if _, list, ok := strings.Cut(message, "one of "); ok && i == 0 {
			others = slices.Insert(others, 1, any(strings.SplitN(list, ",", 2)[0]))
		}
	}
}

// Load reads the configuration from files alone, and checks it.
func Load(into config.Validator, paths ...string) error {
	sources, err := config.Read(into, nil, paths...)
	if err != nil {
		return err
	}
	return sources.Check(into)
}

// Shipped returns the configuration that a program reads from the file of its
// name in directory, with that for loopback over it. The first must name every
// key.
func Shipped[C any, PC program.Validator[C]](t testing.TB, directory string, p program.Program[C]) C {
	t.Helper()
	file, c := filepath.Join(directory, p.Name+".yaml"), p.Config
	sources, err := config.Read(&c, nil, file)
	if err == nil {
		err = errors.Join(sources.Check(PC(&c)), Load(PC(&c), filepath.Join(directory, "loopback", p.Name+".yaml")))
	}
	if err != nil {
		t.Fatal(err)
	}
	for key := range config.Keys(&c) {
		if sources[key] == "" {
			t.Errorf("%s does not name %s", file, key)
		}
	}
	return c
}

// Life runs a service's command from its start until it is ready, and stops it.
// The log must have the text; the error of a second one at the same address
// must have the refusal.
func Life[C any, PC program.Validator[C]](t testing.TB, p program.Program[C], text, refusal string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "log", p.Name+".log")
	run := func(listen string, args ...string) *Command {
		overlay := filepath.Join(dir, "overlay.yaml")
		servicetest.File(t, overlay, fmt.Sprintf("listen: %s\nlogging: {file: %s}\n", listen, file))
		return Run[C, PC](t, p, append([]string{"-config", overlay}, args...)...)
	}
	first := run("127.0.0.1:0")
	address := first.Address()
	servicetest.Eventually(t, 20*time.Second, "the log has "+text, func() bool { return first.Out.Has(text) })
	servicetest.Eventually(t, 20*time.Second, "the health check succeeds", func() bool { return run(address, "-healthcheck").Wait() == 0 })
	if second := run(address); second.Wait() != 1 || !second.Err.Has(refusal) {
		t.Errorf("a second one at the same address: status %d: %s", second.Wait(), &second.Err)
	}
	if status := first.Stop(); status != 0 {
		t.Errorf("got exit status %d: %s", status, &first.Err)
	}
	if log, err := os.ReadFile(file); err != nil || !strings.Contains(string(log), `"message":"stopped"`) {
		t.Errorf("got the log %s, %v", log, err)
	}
}

// Package programtest runs commands inside tests.
package programtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/program"
)

// Console is what a program prints, readable while it runs.
type Console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

// Command is a command that runs inside the test.
type Command struct {
	Out, Err Console
	t        testing.TB
	cancel   context.CancelFunc
	wait     func() int
}

// Start runs a command until the test ends or stops it.
func Start[C any, PC interface {
	*C
	config.Validator
}](t testing.TB, p program.Program[C], args ...string) *Command {
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

// Build puts the programs of the main packages, named by their folders as seen
// from the test's, into the folder and returns it. Under Bazel, which builds
// them before the test, it returns the folder that TRICYCLE_TEST_PROGRAMS names.
func Build(folder string, packages ...string) (string, error) {
	if built := os.Getenv("TRICYCLE_TEST_PROGRAMS"); built != "" {
		return built, nil
	}
	out, err := exec.Command("go", append([]string{"build", "-o", folder + "/"}, packages...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return folder, nil
}

var listening = regexp.MustCompile(`has started.* address=(\S+)`)

// Address waits for the line that says where the command listens.
func (c *Command) Address() string {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if found := listening.FindStringSubmatch(c.Out.String()); found != nil {
			return found[1]
		}
	}
	c.t.Fatalf("it does not say where it listens: %s%s", c.Out.String(), c.Err.String())
	return ""
}

// NamesEveryKey fails the test unless the file has a value for every key of the
// configuration, false for a boolean and no zero value for the others, and all
// are in their ranges.
func NamesEveryKey[C any, PC interface {
	*C
	config.Validator
}](t testing.TB, file string) {
	t.Helper()
	var c C // no defaults: what the file does not name stays zero, or true
	on(reflect.ValueOf(&c).Elem())
	if err := config.Load(PC(&c), file); err != nil {
		t.Error(err)
	}
	for _, key := range unnamed(reflect.ValueOf(c), "") {
		t.Errorf("%s does not name %s", file, key)
	}
}

func unnamed(v reflect.Value, prefix string) (keys []string) {
	for i := range v.NumField() {
		f, field := v.Field(i), v.Type().Field(i)
		key := prefix + field.Tag.Get("yaml")
		switch {
		case field.Anonymous:
			keys = append(keys, unnamed(f, prefix)...)
		case f.Kind() == reflect.Struct:
			keys = append(keys, unnamed(f, key+".")...)
		case f.IsZero() != (f.Kind() == reflect.Bool):
			keys = append(keys, key)
		}
	}
	return keys
}

// on sets every boolean.
func on(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			on(v.Field(i))
		}
	case reflect.Bool:
		v.SetBool(true)
	}
}

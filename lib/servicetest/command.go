package servicetest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/program"
)

// validator is what the pointer to a configuration is.
type validator[C any] interface {
	*C
	config.Validator
}

// Command is a command that runs in the test's process.
type Command struct {
	Out, Err Console
	t        testing.TB
	cancel   context.CancelFunc
	wait     func() int
}

// Run runs a command until the test ends or stops it.
func Run[C any, PC validator[C]](t testing.TB, p program.Program[C], args ...string) *Command {
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

// Process is a program in a process of its own.
type Process struct {
	*exec.Cmd
	Out  *Console // standard output and standard error, unless Cmd had others
	done chan struct{}
}

// Launch starts a process, which is killed when the test ends. The test fails
// if the process prints a stack trace.
func Launch(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Out: &Console{}, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.Out
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(p.done) }() // Status tells
	t.Cleanup(func() {
		p.Signal(syscall.SIGKILL)
		if text := p.Out.Tail(); t.Failed() || strings.Contains(text, "goroutine ") {
			t.Errorf("console of %s:\n%s", cmd, text)
		}
	})
	return p
}

// Signal sends a signal and, if that must end the process, waits for its end.
func (p *Process) Signal(s syscall.Signal) {
	_ = p.Process.Signal(s) // it may have ended
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		p.Status()
	}
}

// Status waits for the end of the process and returns its exit status.
func (p *Process) Status() int {
	<-p.done
	return p.ProcessState.ExitCode()
}

// Taken returns a loopback address that is in use.
func Taken(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// Build puts the programs of the main packages, named by their directories as
// seen from the test's, into the directory and returns it. Under Bazel, which
// builds them before the test, it returns TRICYCLE_TEST_PROGRAMS.
func Build(directory string, packages ...string) (string, error) {
	if built := os.Getenv("TRICYCLE_TEST_PROGRAMS"); built != "" {
		return built, nil
	}
	out, err := exec.Command("go", append([]string{"build", "-o", directory + "/"}, packages...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return directory, nil
}

// NamesEveryKey fails the test unless the file has a value for every key of the
// configuration, false for a boolean and no zero value for the others, and all
// are in their ranges.
func NamesEveryKey[C any, PC validator[C]](t testing.TB, file string) {
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

// Shipped returns the configuration that a program reads from the file of its
// name in directory, with that for loopback over it. The first must name every
// key.
func Shipped[C any, PC validator[C]](t testing.TB, directory string, p program.Program[C]) C {
	t.Helper()
	file, c := filepath.Join(directory, p.Name+".yaml"), p.Config
	NamesEveryKey[C, PC](t, file)
	if err := config.Load(PC(&c), file, filepath.Join(directory, "loopback", p.Name+".yaml")); err != nil {
		t.Fatal(err)
	}
	return c
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

// Life runs a service's command from its start until it is ready, and stops it.
// The log must have the text; the error of a second one at the same address
// must have the refusal.
func Life[C any, PC validator[C]](t testing.TB, p program.Program[C], text, refusal string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "log", p.Name+".log")
	run := func(listen string, args ...string) *Command {
		overlay := filepath.Join(dir, "overlay.yaml")
		if err := os.WriteFile(overlay, fmt.Appendf(nil, "listen: %s\nlogging: {file: %s}\n", listen, file), 0o600); err != nil {
			t.Fatal(err)
		}
		return Run[C, PC](t, p, append([]string{"-config", overlay}, args...)...)
	}
	first := run("127.0.0.1:0")
	address := first.Address()
	Eventually(t, 20*time.Second, "the log has "+text, func() bool { return first.Out.Has(text) })
	Eventually(t, 20*time.Second, "the health check succeeds", func() bool { return run(address, "-healthcheck").Wait() == 0 })
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

package servicetest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

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

// Build puts the programs of the main packages, named by their directories as
// seen from the test's, into the directory and returns it. Under Bazel, which
// builds them before the test, it returns TRICYCLE_TEST_PROGRAMS.
func Build(directory string, packages ...string) (string, error) {
	if built := os.Getenv("TRICYCLE_TEST_PROGRAMS"); built != "" {
		return built, nil
	}
	build := []string{"build", "-ldflags=-s -w", "-o", directory + "/"} // without what only a debugger reads: it links faster
	out, err := exec.Command("go", append(build, packages...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return directory, nil
}

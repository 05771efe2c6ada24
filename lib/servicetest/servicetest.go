// Package servicetest runs the tests of services: it starts programs, waits for
// conditions, reads logs, and finds goroutines that are left.
package servicetest

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Main runs the tests of a package and fails if goroutines are left. Tests that
// call t.Parallel run 16 at a time unless -parallel is given: those of
// services wait most of the time. The function ends the process with the exit
// status that it is given; nil stands for os.Exit.
func Main(m *testing.M, end func(status int)) {
	_ = flag.Set("test.parallel", "16") // before the command line is parsed
	var options []goleak.Option
	if end != nil {
		options = append(options, goleak.Cleanup(end))
	}
	goleak.VerifyTestMain(m, options...)
}

// Eventually polls until the condition holds, and fails the test if it does
// not within d.
func Eventually(t testing.TB, d time.Duration, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", d, what)
		}
	}
}

// Context returns a context that ends after d, and with the test.
func Context(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// NoError fails the test if there is an error.
func NoError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Text returns the text of a file.
func Text(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	NoError(t, err)
	return string(text)
}

// Receive returns the next value of the channel, and fails the test if there is none
// within a minute.
func Receive[T any](t testing.TB, what string, c <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-c:
	case <-time.After(time.Minute):
		t.Fatalf("waited a minute in vain: %s", what)
	}
	return value
}

// Fails calls f until its error contains want, and fails the test if it does not
// within a minute. Each call has a context that ends after d: on a busy machine, a
// call may end before it has tried anything.
func Fails(t testing.TB, d time.Duration, want string, f func(context.Context) error) {
	t.Helper()
	Eventually(t, time.Minute, want, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		err := f(ctx)
		return err != nil && strings.Contains(err.Error(), want)
	})
}

// File writes a file for the test and returns its path. A path that is not
// absolute is that of a new directory.
func File(t testing.TB, path, text string) string {
	t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(t.TempDir(), path)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

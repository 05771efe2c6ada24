package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/config"
)

// The user of a container cannot read a clone that was made under umask 077.
// The error names the file, its mode and the remedy.
func TestReadWithoutPermission(t *testing.T) {
	t.Chdir(t.TempDir()) // relative paths do not depend on the modes of the directories above
	if err := os.Mkdir("closed", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"ms1.yaml", "closed/ms1.yaml"} {
		if err := os.WriteFile(path, []byte("count: 2\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 { // root may read everything: this thread reads files as another user
		if err := os.Chmod(".", 0o755); err != nil {
			t.Fatal(err)
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := syscall.Setfsuid(65532); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Setfsuid(0) }()
	} else {
		t.Cleanup(func() { _ = os.Chmod("closed", 0o700) })
		if err := errors.Join(os.Chmod("ms1.yaml", 0), os.Chmod("closed", 0)); err != nil {
			t.Fatal(err)
		}
	}
	for path, closed := range map[string]string{"ms1.yaml": "ms1.yaml", "closed/ms1.yaml": "closed"} {
		s := defaults()
		_, secret := config.Secret("password_file", path)
		for _, err := range []error{read(&s, path), secret} {
			if !errors.Is(err, fs.ErrPermission) {
				t.Fatalf("got %v, want a lack of permission", err)
			}
			for _, want := range []string{"open " + path + ": permission denied: must be readable by user ",
				"------ of " + closed + " (", "chmod a+rX"} {
				if text := err.Error(); !strings.Contains(text, want) || strings.Contains(text, "\n") {
					t.Errorf("got %q, want %q in one line", text, want)
				}
			}
		}
	}
}

// A token or password of the shell's <(command) can be read once. Neither the
// second time nor a FIFO without a writer may stop the program.
func TestReadPipes(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("hunter2\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	pipe, fifo := fmt.Sprintf("/dev/fd/%d", r.Fd()), filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if secret, err := config.Secret("password_file", pipe); err != nil || secret != "hunter2" {
		t.Errorf("got %q and %v, want the secret", secret, err)
	}
	for _, path := range []string{pipe, fifo} {
		_, err := config.Secret("password_file", path)
		expect(t, err, "password_file: "+path+": must be a file, got a pipe without a writer")
		s := defaults()
		expect(t, read(&s, path), "read configuration: "+path+": must be a file, got a pipe without a writer")
	}
}

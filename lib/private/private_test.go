package private_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/private"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func mode(t *testing.T, path string) os.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := private.Directory(path); err != nil || mode(t, path) != 0o700 {
			t.Errorf("got %v, mode %o, want mode 700", err, mode(t, path))
		}
	}
	for _, wrong := range []os.FileMode{0o720, 0o702, 0o777} {
		if err := os.Chmod(path, wrong); err != nil {
			t.Fatal(err)
		}
		if err := private.Directory(path); err == nil || !strings.Contains(err.Error(), "nobody else can write to, got d") {
			t.Errorf("mode %o: got %v, want an error that others can write to it", wrong, err)
		}
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := private.Directory(path); err != nil {
		t.Errorf("mode 755: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	if err := os.Chown(path, 65532, -1); err != nil {
		t.Fatal(err)
	}
	if err := private.Directory(path); err == nil || !strings.HasSuffix(err.Error(), " of user 65532") {
		t.Errorf("got %v, want an error that it belongs to another user", err)
	}
}

func TestFile(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, "file")
	if err := private.Restrict(path); err != nil {
		t.Errorf("no file: %v", err)
	}
	if err := private.File(path); err != nil || mode(t, path) != 0o600 {
		t.Errorf("got %v, mode %o, want mode 600", err, mode(t, path))
	}
	servicetest.File(t, path, "text")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := private.File(path); err != nil || mode(t, path) != 0o600 {
		t.Errorf("got %v, mode %o, want mode 600", err, mode(t, path))
	}
	link, target := filepath.Join(directory, "link"), filepath.Join(directory, "target")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := private.File(link); err == nil || !strings.HasSuffix(err.Error(), "got a symbolic link") {
		t.Errorf("got %v, want an error that it is a link", err)
	}
	if _, err := os.Stat(target); err == nil {
		t.Error("the target of the link was created")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "text" {
		t.Errorf("got %q, %v, want the old text of the file", text, err)
	}
}

// Package private creates files and directories that only their owner can use.
package private

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ErrLocked is the error of [Lock] for a file that another process has taken.
var ErrLocked = errors.New("locked by another program")

// Directory creates the directory and its parents with mode 0700 if absent. It
// refuses one of another user, or one that others can write to: they could put
// links into it.
func Directory(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if user := owner(info); user != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: must be a directory of user %d that nobody else can write to, got %s of user %d", path, os.Geteuid(), info.Mode(), user)
	}
	return nil
}

// File creates the file with mode 0600, or gives that mode to one that exists.
// It refuses a symbolic link. It opens no existing file: closing it would release
// the locks that this process has on it.
func File(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // never follows a link
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	return Restrict(path)
}

// Restrict is [File] for a file that may be absent; it creates none.
func Restrict(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("open %s: must be a file, got a symbolic link", path)
	case info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0:
		return os.Chmod(path, 0o600)
	}
	return nil
}

// Lock creates the file as [File] does and locks it until the returned closer is
// closed or the process ends. Its error is [ErrLocked] if another process holds
// the lock.
func Lock(path string) (io.Closer, error) {
	if err := File(path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if !lock(f) {
		return nil, errors.Join(ErrLocked, f.Close())
	}
	return f, nil
}

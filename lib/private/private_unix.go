//go:build unix

package private

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// lock takes the file and reports whether it could; on a file system that has
// no locks it always can.
func lock(f *os.File) bool {
	return !errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// owner returns the user who owns a file.
func owner(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

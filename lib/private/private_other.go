//go:build !unix

package private

import (
	"io/fs"
	"os"
)

// lock reports that the file was taken, where there is no lock to take.
func lock(*os.File) bool { return true }

// owner returns the user of this process, where files have no user.
func owner(fs.FileInfo) int { return os.Geteuid() }

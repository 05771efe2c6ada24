//go:build !unix

package private

import (
	"io/fs"
	"os"
)

// owner returns the user of this process, where files have no user.
func owner(fs.FileInfo) int { return os.Geteuid() }

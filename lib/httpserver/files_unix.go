//go:build unix

package httpserver

import "syscall"

// connectionLimit returns [MaxConnections], or less if the process may open
// only few files: half of them are for connections to others.
func connectionLimit() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur/2 > MaxConnections {
		return MaxConnections
	}
	return max(1, int(files.Cur/2))
}

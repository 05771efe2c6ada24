//go:build !unix

package httpserver

// connectionLimit returns [MaxConnections].
func connectionLimit() int { return MaxConnections }

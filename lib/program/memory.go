package program

import (
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// memoryShare is the share of a container's memory that the garbage collector
// may use. The rest is for memory that it does not manage: kernel buffers and
// SQLite's pages.
const memoryShare = 0.8

// limitMemory sets the memory limit of the garbage collector to that of the
// container, unless there is none or GOMEMLIMIT is set.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	if limit := memoryLimit(os.DirFS("/")); limit > 0 {
		debug.SetMemoryLimit(int64(memoryShare * float64(limit)))
	}
}

// memoryLimit returns the memory limit in bytes of this process's control
// group, version 2 or 1; 0 if there is none.
func memoryLimit(root fs.FS) int64 {
	files := []string{"sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"}
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		switch group := strings.SplitN(strings.TrimSpace(line), ":", 3); {
		case len(group) < 3:
		case group[0] == "0":
			files = append(files, path.Join("sys/fs/cgroup", group[2], "memory.max"))
		case group[1] == "memory":
			files = append(files, path.Join("sys/fs/cgroup/memory", group[2], "memory.limit_in_bytes"))
		}
	}
	least := int64(0)
	for _, file := range files {
		text, _ := fs.ReadFile(root, file)
		// "max", or in version 1 almost all of 63 bits, is no limit.
		limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && limit > 0 && limit < 1<<62 && (least == 0 || limit < least) {
			least = limit
		}
	}
	return least
}

package program

import (
	"runtime/debug"
	"testing"
	"testing/fstest"
)

func TestMemoryLimit(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no control groups":  {nil, 0},
		"no limit":           {map[string]string{"sys/fs/cgroup/memory.max": "max\n"}, 0},
		"a container":        {map[string]string{"sys/fs/cgroup/memory.max": "134217728\n", "proc/self/cgroup": "0::/\n"}, 134217728},
		"a unit of the host": {map[string]string{"sys/fs/cgroup/a/b/memory.max": "1000\n", "proc/self/cgroup": "0::/a/b\n"}, 1000},
		"version 1":          {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n"}, 2000},
		"version 1, no limit": {map[string]string{
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		"version 1, a group": {map[string]string{
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n",
			"sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "3000\n",
			"proc/self/cgroup": "12:cpu:/docker/x\n4:memory:/docker/x\nodd\n"}, 3000},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for path, text := range c.files {
				root[path] = &fstest.MapFile{Data: []byte(text)}
			}
			if got := memoryLimit(root); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestGOMEMLIMITGoesFirst(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "1GiB")
	before := debug.SetMemoryLimit(-1)
	limitMemory()
	if after := debug.SetMemoryLimit(-1); after != before {
		t.Errorf("got %d, want it unchanged at %d", after, before)
	}
}

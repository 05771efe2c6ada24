package program

import "github.com/KimMachineGun/automemlimit/memlimit"

// memoryShare is the share of a container's memory that the garbage collector
// may use. The rest is for memory that it does not manage: kernel buffers and
// SQLite's pages.
const memoryShare = 0.8

// limitMemory sets the memory limit of the garbage collector by that of the
// container, unless there is none or GOMEMLIMIT is set.
func limitMemory(container memlimit.Provider) {
	_, _ = memlimit.Set(memlimit.WithProvider(container), memlimit.WithRatio(memoryShare)) // fails outside containers
}

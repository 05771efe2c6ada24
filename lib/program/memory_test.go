package program

import (
	"math"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

func TestMemoryLimit(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	limitMemory(memlimit.Limit(1000 << 20))
	if got := debug.SetMemoryLimit(-1); got != 800<<20 {
		t.Errorf("got %d, want 80 %% of the container's", got)
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	limitMemory(memlimit.Limit(2000 << 20))
	if got := debug.SetMemoryLimit(-1); got != 800<<20 {
		t.Errorf("GOMEMLIMIT is set: got %d, want the limit unchanged", got)
	}
}

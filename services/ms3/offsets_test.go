package ms3

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// TestOffsets plays a script: "f0:5" fetches offset 5 of partition 0, "d0:5"
// reports it done, "a0:5" abandons it, "r0:5" rewinds to it, "o" reopens, and "c"
// commits. An offset that is fetched again is called "0:5'".
func TestOffsets(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   string // each commit's partition:offset
	}{
		"nothing done":                         {"f0:0 f0:1 c", ""},
		"in order":                             {"f0:0 d0:0 c f0:1 d0:1 c", "0:0 0:1"},
		"several at once":                      {"f0:0 f0:1 f0:2 d0:0 d0:1 d0:2 c", "0:2"},
		"the first is open":                    {"f0:0 f0:1 f0:2 d0:1 d0:2 c", ""},
		"the first is done last":               {"f0:0 f0:1 f0:2 d0:2 d0:1 c d0:0 c", "0:2"},
		"one in the middle is open":            {"f0:0 f0:1 f0:2 d0:0 d0:2 c", "0:0"},
		"nothing new":                          {"f0:0 d0:0 c c c", "0:0"},
		"offsets with gaps":                    {"f0:3 f0:17 f0:40 d0:17 d0:3 c d0:40 c", "0:17 0:40"},
		"partitions apart":                     {"f0:0 f1:9 d1:9 c d0:0 c", "1:9 0:0"},
		"read again from the same offset":      {"f0:5 f0:5 d0:5' c", "0:5"},
		"an open one no longer holds up":       {"f0:5 f0:6 d0:6 f0:5 d0:5' c", "0:5"},
		"an open one is done late":             {"f0:5 f0:6 f0:5 f0:6 d0:5 d0:6 c d0:5' c", "0:5"},
		"a done one is open after a rewind":    {"f0:5 f0:6 d0:6 f0:5 f0:6 d0:5' c", "0:5"},
		"read again from an earlier offset":    {"f0:5 d0:5 c f0:3 d0:3 c f0:4 d0:4 c", "0:5 0:3 0:4"},
		"done before, committed after, a pass": {"f0:5 f0:6 d0:5 f0:5 c d0:5' c", "0:5"},
		"rewound":                              {"f0:5 f0:6 d0:5 c r0:0 d0:6 c c f0:0 f0:1 d0:0 c", "0:5 0:-1 0:0"},
		"rewound to where it was":              {"f0:5 d0:5 c r0:6 c f0:6 d0:6 c", "0:5 0:5 0:6"},
		"abandoned, and read by another":       {"f0:5 f0:6 d0:5 a0:6 o c f0:20 d0:20 c", "0:5 0:20"},
		"done after the reader was replaced":   {"f0:5 f0:6 a0:6 o d0:5 c f0:5 d0:5' c", "0:5"},
		"away and back, further on":            {"f0:5 f0:20 d0:20 c d0:5 c", "0:20"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newOffsets(100)
			open := map[string]*fetched{}
			var commits []string
			for _, step := range strings.Fields(c.script) {
				var number int
				var offset int64
				if _, err := fmt.Sscanf(step[1:], "%d:%d", &number, &offset); err != nil && len(step) > 1 {
					t.Fatal(err)
				}
				switch step[0] {
				case 'a':
					k.abandon(open[step[1:]])
				case 'o':
					k.reopen()
				case 'r':
					k.rewind(number, offset)
				case 'f':
					f, err := k.fetch(t.Context(), number, offset, 1, time.Time{})
					servicetest.NoError(t, err)
					name := step[1:]
					for open[name] != nil {
						name += "'"
					}
					open[name] = f
				case 'd':
					k.done(open[step[1:]])
				case 'c':
					_ = k.commit(func(offsets map[int]int64) error {
						for number, offset := range offsets {
							commits = append(commits, fmt.Sprintf("%d:%d", number, offset))
						}
						return nil
					})
				}
			}
			if got := strings.Join(commits, " "); got != c.want {
				t.Errorf("got commits %q, want %q", got, c.want)
			}
		})
	}
}

func TestCommitThatFailsIsRepeated(t *testing.T) {
	k := newOffsets(10)
	f, _ := k.fetch(t.Context(), 2, 7, 1, time.Time{})
	k.done(f)
	away := errors.New("away")
	calls := 0
	for _, err := range []error{away, away, nil, nil} {
		if got := k.commit(func(offsets map[int]int64) error {
			calls++
			if offsets[2] != 7 {
				t.Errorf("found %v", offsets)
			}
			return err
		}); got != err {
			t.Errorf("got %v, want %v", got, err)
		}
	}
	if calls != 3 {
		t.Errorf("got %d calls, want two that failed and one that did not", calls)
	}
	if k.next(2) != 8 || k.next(0) != 0 {
		t.Errorf("got next %d and %d, want 8 and 0", k.next(2), k.next(0))
	}
}

func TestOffsetsBoundWhatIsOpen(t *testing.T) {
	k := newOffsets(10)
	var all []*fetched
	for i := range int64(10) {
		f, err := k.fetch(t.Context(), 0, i, 1, time.Time{})
		servicetest.NoError(t, err)
		all = append(all, f)
	}
	full := func(weight int) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		f, err := k.fetch(ctx, 1, 0, weight, time.Time{})
		if err == nil {
			k.done(f)
		}
		return err != nil
	}
	for _, f := range all[1:] {
		k.done(f)
	}
	if !full(1) {
		t.Error("there is room though none can be committed")
	}
	k.done(all[0])
	if full(10) || full(1000) { // one larger than everything must not wait indefinitely
		t.Error("there is no room though all can be committed")
	}
	// Two of three done, then the partition is read again: their room is free,
	// and that of the third when it is done.
	a, _ := k.fetch(t.Context(), 0, 20, 2, time.Time{})
	b, _ := k.fetch(t.Context(), 0, 21, 3, time.Time{})
	k.done(b)
	c, _ := k.fetch(t.Context(), 0, 20, 1, time.Time{})
	if !full(8) || full(7) {
		t.Error("expected the room of one record of the former pass, 3, to be free again")
	}
	k.done(a)
	k.done(c)
	if full(10) || len(k.room) != 0 {
		t.Errorf("got %d taken at the end, want none", len(k.room))
	}
}

// Whatever the order in which records are done, and wherever a rebalance
// strikes: what is committed was done, before any commit everything below it
// was, and in the end everything is committed. (A record of a pass before a
// rebalance may set the commit back; then it is fetched again.)
func TestOffsetsProperty(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		k := newOffsets(64)
		partitions := 1 + random.IntN(3)
		logs := make([][]int64, partitions) // the offsets there are, with gaps
		for p := range logs {
			offset := int64(random.IntN(3))
			for range random.IntN(60) {
				logs[p] = append(logs[p], offset)
				offset += 1 + int64(random.IntN(3))
			}
		}
		type open struct {
			f      *fetched
			number int
			offset int64
		}
		var running []open
		done := make([]map[int64]bool, partitions)
		next := make([]int, partitions)        // index of the log to fetch next
		committed := make([]int64, partitions) // as the broker has it
		for p := range done {
			done[p], committed[p] = map[int64]bool{}, -1
		}
		commit := func() {
			_ = k.commit(func(offsets map[int]int64) error {
				for p, offset := range offsets {
					for _, o := range logs[p] {
						if o <= offset && !done[p][o] {
							t.Fatalf("committed %d of partition %d, but %d is not done", offset, p, o)
						}
					}
					committed[p] = offset
				}
				return nil
			})
		}
		for step := 0; ; step++ {
			p := random.IntN(partitions)
			switch what := random.IntN(10); {
			case what < 4 && next[p] < len(logs[p]) && len(k.room) < cap(k.room):
				offset := logs[p][next[p]]
				next[p]++
				f, err := k.fetch(t.Context(), p, offset, 1, time.Time{})
				servicetest.NoError(t, err)
				running = append(running, open{f, p, offset})
			case what < 8 && len(running) > 0:
				i := random.IntN(len(running))
				r := running[i]
				running = slices.Delete(running, i, i+1)
				done[r.number][r.offset] = true
				k.done(r.f)
			case what == 8:
				commit()
			case what == 9 && step < 300 && random.IntN(4) == 0: // a rebalance: from what was committed
				next[p] = 0
				for next[p] < len(logs[p]) && logs[p][next[p]] <= committed[p] {
					next[p]++
				}
			}
			finished := len(running) == 0
			for p := range logs {
				finished = finished && next[p] == len(logs[p])
			}
			if finished && step > 300 {
				break
			}
		}
		commit()
		for p := range logs {
			for _, offset := range logs[p] {
				if !done[p][offset] {
					t.Fatalf("partition %d: %d was never done", p, offset)
				}
				if offset > committed[p] {
					f, _ := k.fetch(t.Context(), p, offset, 1, time.Time{})
					k.done(f)
				}
			}
			commit()
			if n := len(logs[p]); n > 0 && committed[p] != logs[p][n-1] {
				t.Fatalf("partition %d: committed %d, expected %d", p, committed[p], logs[p][n-1])
			}
		}
		if len(k.room) != 0 {
			t.Fatalf("found %d places taken at the end", len(k.room))
		}
	}
}

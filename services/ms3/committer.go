package ms3

import (
	"context"
	"sync"
)

// committer knows which offset of each partition may be committed: the last
// one before which every record fetched is done. Records are done in any
// order; offsets may have gaps.
//
// It also bounds the records that were fetched and cannot be committed yet,
// and so the memory that they take.
type committer struct {
	room chan struct{} // one place taken for each unit of weight

	mu         sync.Mutex
	partitions map[int]*partition
}

// partition is what was fetched from a partition in one pass.
type partition struct {
	open      []*fetched // not yet committable, in the order fetched
	last      int64      // offset fetched last
	ready     int64      // offset that may be committed, -1 for none
	committed int64      // offset handed over for commit last, -1 for none
	over      bool       // the pass has ended: offsets were fetched again
}

// fetched is a record that was fetched.
type fetched struct {
	partition *partition
	offset    int64
	weight    int
	done      bool
}

// newCommitter returns a committer with room for the given weight.
func newCommitter(room int) *committer {
	return &committer{room: make(chan struct{}, room), partitions: map[int]*partition{}}
}

// fetch notes that a record was fetched, as soon as there is room for its
// weight. An offset at or below the last one of its partition means that the
// partition is read again, after a rebalance: what is still open of the former
// pass is fetched again too, and no longer holds up a commit.
// The error is that of ctx.
func (c *committer) fetch(ctx context.Context, number int, offset int64, weight int) (*fetched, error) {
	weight = min(weight, cap(c.room))
	for i := range weight {
		select {
		case c.room <- struct{}{}:
		case <-ctx.Done():
			c.free(i)
			return nil, ctx.Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.partitions[number]
	if p == nil || offset <= p.last {
		p = c.pass(number, partition{ready: -1, committed: -1})
	}
	f := &fetched{partition: p, offset: offset, weight: weight}
	p.last = offset
	p.open = append(p.open, f)
	return f, nil
}

// pass puts a new pass of a partition in place of the one before. The caller
// holds the mutex.
func (c *committer) pass(number int, next partition) *partition {
	if p := c.partitions[number]; p != nil {
		p.over = true
		for _, f := range p.open {
			if f.done {
				c.free(f.weight)
			}
		}
	}
	c.partitions[number] = &next
	return &next
}

// rewind has the partition read from the offset on: the next commit says so.
func (c *committer) rewind(number int, offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass(number, partition{last: offset - 1, ready: offset - 1, committed: offset - 2})
}

// done notes that a record needs no more work. It is called once.
func (c *committer) done(f *fetched) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.done = true
	p := f.partition
	if p.over {
		c.free(f.weight)
		return
	}
	for len(p.open) > 0 && p.open[0].done {
		p.ready = p.open[0].offset
		c.free(p.open[0].weight)
		p.open[0] = nil
		p.open = p.open[1:]
	}
}

// commit hands the offsets that may be committed and were not yet, by
// partition, to the function, and notes that they are unless it fails.
func (c *committer) commit(do func(offsets map[int]int64) error) error {
	c.mu.Lock()
	offsets := map[int]int64{}
	from := map[*partition]int64{}
	for number, p := range c.partitions {
		if p.ready > p.committed {
			offsets[number], from[p] = p.ready, p.ready
		}
	}
	c.mu.Unlock()
	if len(offsets) == 0 {
		return nil
	}
	if err := do(offsets); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, offset := range from {
		p.committed = offset
	}
	return nil
}

// next returns the offset after the last one fetched of a partition, 0 if
// there is none.
func (c *committer) next(number int) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.partitions[number]; p != nil {
		return p.last + 1
	}
	return 0
}

func (c *committer) free(weight int) {
	for range weight {
		<-c.room
	}
}

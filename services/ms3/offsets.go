package ms3

import (
	"context"
	"sync"
	"time"
)

// offsets tracks which offset of each partition may be committed: the last one
// before which every fetched record is done. Records are done in any order;
// offsets may have gaps.
//
// It also bounds the records that are fetched and not yet committable, and so
// the memory that they take.
type offsets struct {
	room chan struct{} // one element per unit of weight in use

	mu         sync.Mutex
	partitions map[int]*partition
	newest     map[int]time.Time // of the records fetched, by partition
}

// partition is one pass over a partition.
type partition struct {
	open      []*fetched // not yet committable, in the order fetched
	last      int64      // last offset fetched
	ready     int64      // offset that may be committed, -1 for none
	committed int64      // last offset passed on for commit, -1 for none
	over      bool       // offsets were fetched again: a new pass has begun
}

// fetched is a record that was fetched.
type fetched struct {
	partition *partition
	offset    int64
	weight    int
	done      bool
}

// newOffsets returns offsets with room for the given weight.
func newOffsets(room int) *offsets {
	return &offsets{room: make(chan struct{}, room), partitions: map[int]*partition{}, newest: map[int]time.Time{}}
}

// fetch adds a fetched record, dated at, as soon as there is room for its weight.
// An offset at or below the partition's last one begins a new pass, as after a
// rebalance: the open records of the former pass are fetched again and no
// longer hold up a commit. The error is that of ctx.
func (o *offsets) fetch(ctx context.Context, number int, offset int64, weight int, at time.Time) (*fetched, error) {
	weight = min(weight, cap(o.room))
	for i := range weight {
		select {
		case o.room <- struct{}{}:
		case <-ctx.Done():
			o.free(i)
			return nil, ctx.Err()
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.partitions[number]
	if p == nil || offset <= p.last {
		p = o.pass(number, partition{ready: -1, committed: -1})
	}
	f := &fetched{partition: p, offset: offset, weight: weight}
	p.last = offset
	p.open = append(p.open, f)
	if at.After(o.newest[number]) {
		o.newest[number] = at
	}
	return f, nil
}

// pass replaces the pass of a partition. The caller holds the mutex.
func (o *offsets) pass(number int, next partition) *partition {
	if p := o.partitions[number]; p != nil {
		p.over = true
		for _, f := range p.open {
			if f.done {
				o.free(f.weight)
			}
		}
	}
	o.partitions[number] = &next
	return &next
}

// rewind begins a pass at the offset and makes the next commit set it.
func (o *offsets) rewind(number int, offset int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pass(number, partition{last: offset - 1, ready: offset - 1, committed: offset - 2})
}

// done marks a record that needs no more work. It is called once per record.
func (o *offsets) done(f *fetched) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f.done = true
	p := f.partition
	if p.over {
		o.free(f.weight)
		return
	}
	for len(p.open) > 0 && p.open[0].done {
		p.ready = p.open[0].offset
		o.free(p.open[0].weight)
		p.open[0] = nil
		p.open = p.open[1:]
	}
}

// abandon frees the room of a record that is not done and will be fetched again.
func (o *offsets) abandon(f *fetched) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.free(f.weight)
	f.weight = 0
}

// reopen begins a pass of each partition, in which an abandoned record of the former
// one holds up no commit: another member may have read it since.
func (o *offsets) reopen() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for number, p := range o.partitions {
		o.pass(number, partition{last: p.last, ready: p.ready, committed: p.committed})
	}
}

// commit passes the offsets that may be committed and were not yet, by
// partition, to do. They count as committed unless do fails.
func (o *offsets) commit(do func(byPartition map[int]int64) error) error {
	o.mu.Lock()
	byPartition := map[int]int64{}
	from := map[*partition]int64{}
	for number, p := range o.partitions {
		if p.ready > p.committed {
			byPartition[number], from[p] = p.ready, p.ready
		}
	}
	o.mu.Unlock()
	if len(byPartition) == 0 {
		return nil
	}
	if err := do(byPartition); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for p, offset := range from {
		p.committed = offset
	}
	return nil
}

// next returns the offset after the last one fetched of a partition, 0 if
// there is none.
func (o *offsets) next(number int) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.partitions[number]; p != nil {
		return p.last + 1
	}
	return 0
}

// since returns the date from which records of a partition may be unread: that of
// the newest one fetched, less the overlap, or a minute ago if there is none.
func (o *offsets) since(number int, overlap time.Duration) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at := o.newest[number]; !at.IsZero() && at.Before(time.Now()) { // not dated by a wrong clock
		return at.Add(-overlap)
	}
	return time.Now().Add(-time.Minute)
}

func (o *offsets) free(weight int) {
	for range weight {
		<-o.room
	}
}

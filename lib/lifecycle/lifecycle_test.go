package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// diary notes what happens, in order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) expect(t *testing.T, want ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(d.lines, want) {
		t.Errorf("got %q, want %q", d.lines, want)
	}
}

// part runs until it is stopped and needs a second to put its things away.
func (d *diary) part(name string, err error) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context) error {
		<-ctx.Done()
		d.note(name + " must stop")
		time.Sleep(time.Second)
		d.note(name + " has stopped")
		return err
	}}
}

// ending ends by itself after a minute.
func (d *diary) ending(name string, err error) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(context.Context) error {
		time.Sleep(time.Minute)
		d.note(name + " ends")
		return err
	}}
}

func TestStopsInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Hour, cancel)
		if err := lifecycle.Run(ctx, d.part("database", nil), d.part("sender", nil), d.part("server", nil)); err != nil {
			t.Error(err)
		}
		d.expect(t, "server must stop", "server has stopped",
			"sender must stop", "sender has stopped",
			"database must stop", "database has stopped")
	})
}

func TestAnEndStopsTheOthers(t *testing.T) {
	trouble := errors.New("no space left")
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"with an error": {trouble, "sender: no space left"},
		"without":       {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				began := time.Now()
				err := lifecycle.Run(t.Context(), d.part("database", nil), d.ending("sender", c.err), d.part("server", nil))
				if !errors.Is(err, c.err) || err != nil && err.Error() != c.want {
					t.Errorf("got %v, want %q", err, c.want)
				}
				d.expect(t, "sender ends", "server must stop", "server has stopped", "database must stop", "database has stopped")
				if took := time.Since(began); took != time.Minute+2*time.Second {
					t.Errorf("took %s, want a minute and a second for each of the others", took)
				}
			})
		})
	}
}

func TestErrorsAreJoinedUnderNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		first, second, third := errors.New("a"), errors.New("b"), errors.New("c")
		err := lifecycle.Run(t.Context(), d.part("database", first), d.part("quiet", nil), d.ending("sender", second), d.part("server", third))
		const want = "server: c\nsender: b\ndatabase: a"
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		for _, e := range []error{first, second, third} {
			if !errors.Is(err, e) {
				t.Errorf("%v is not in %v", e, err)
			}
		}
	})
}

func TestTheContextOfAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
		cancel() // asked to stop before it starts: parts still see their turn
		var alive, value any
		err := lifecycle.Run(ctx,
			lifecycle.Part{Name: "first", Run: func(ctx context.Context) error {
				<-ctx.Done()
				return nil
			}},
			lifecycle.Part{Name: "last", Run: func(ctx context.Context) error {
				<-ctx.Done()
				alive, value = context.Cause(ctx), ctx.Value(key{})
				return nil
			}})
		if err != nil || alive != context.Canceled || value != "kept" {
			t.Errorf("got %v, %v, %v, want a cancelled context with its values", err, alive, value)
		}
	})
}

func TestGrace(t *testing.T) {
	type key struct{}
	within := func(t *testing.T, end <-chan struct{}, want time.Duration) {
		t.Helper()
		began := time.Now()
		<-end
		if took := time.Since(began); took != want {
			t.Errorf("the work ended after %s, want %s", took, want)
		}
	}
	for name, c := range map[string]struct {
		stop, cancel, want time.Duration
	}{
		"it ends after the signal":            {stop: time.Minute, cancel: time.Hour, want: time.Minute + 2*time.Second},
		"it is over before the signal":        {stop: time.Hour, cancel: time.Minute, want: time.Minute},
		"it is over within the grace time":    {stop: time.Minute, cancel: time.Minute + time.Second, want: time.Minute + time.Second},
		"the signal was there from the start": {stop: 0, cancel: time.Hour, want: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
				if c.stop == 0 {
					stop()
				} else {
					time.AfterFunc(c.stop, stop)
				}
				work, cancel := lifecycle.Grace(ctx, 2*time.Second)
				time.AfterFunc(c.cancel, cancel)
				within(t, work.Done(), c.want)
				if got := work.Value(key{}); got != "kept" {
					t.Errorf("got value %v, want that of the context", got)
				}
				time.Sleep(2 * time.Hour) // nothing is left
			})
		})
	}
}

func TestNoParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := lifecycle.Run(ctx); err != nil || ctx.Err() == nil {
			t.Errorf("got %v before the end of the context", err)
		}
	})
}

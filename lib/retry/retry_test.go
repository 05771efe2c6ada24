package retry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tricycle-relay/tricycle/lib/retry"
)

// checkPause checks that a pause since began took want, plus or minus a fifth.
func checkPause(t *testing.T, began time.Time, want time.Duration) {
	t.Helper()
	if took := time.Since(began); took < want*4/5 || took > want*6/5 {
		t.Errorf("paused for %s, want %s ± 20 %%", took, want)
	}
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.Backoff{First: 50 * time.Millisecond, Most: 300 * time.Millisecond}
		for range 2 {
			for _, want := range []time.Duration{50, 100, 200, 300, 300} {
				began := time.Now()
				if err := b.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				checkPause(t, began, want*time.Millisecond)
			}
			b.Reset()
		}
	})
}

func TestBackoffIsJittered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pauses := map[time.Duration]bool{}
		for range 20 {
			began := time.Now()
			if !retry.Pause(t.Context(), time.Hour) {
				t.Fatal("got false, want true after the pause")
			}
			checkPause(t, began, time.Hour)
			pauses[time.Since(began)] = true
		}
		if len(pauses) < 10 {
			t.Errorf("got %d different pauses of 20", len(pauses))
		}
	})
}

func TestBackoffIsExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := retry.Backoff{First: time.Second, Most: time.Second, Attempts: 3}
		for range 2 {
			began := time.Now()
			for attempt, want := range []error{nil, nil, retry.ErrExhausted} {
				if err := b.Wait(t.Context()); !errors.Is(err, want) {
					t.Errorf("attempt %d: got %v, want %v", attempt+1, err, want)
				}
			}
			checkPause(t, began, 2*time.Second) // none after the last attempt
			b.Reset()
		}
	})
}

func TestCancelledIsNotExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stopped := errors.New("stopped")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(stopped) })
		b := retry.Backoff{First: time.Hour, Most: time.Hour, Attempts: 2}
		began := time.Now()
		if err := b.Wait(ctx); !errors.Is(err, stopped) {
			t.Errorf("got %v, want the cause of the end", err)
		}
		checkPause(t, began, time.Second)
		if retry.Pause(ctx, 0) {
			t.Error("got true, want false: the context had ended before the pause")
		}
	})
}

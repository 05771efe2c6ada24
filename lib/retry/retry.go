// Package retry spaces out the attempts of an operation that can fail for a
// while. Pauses are jittered, grow from one attempt to the next, and end with
// their context; an error tells a cancelled wait from exhausted attempts.
package retry

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// ErrExhausted is the error of [Backoff.Wait] after the last attempt.
var ErrExhausted = errors.New("no attempts left")

// Backoff is the pause between attempts: First after the first failure, twice
// as long after each further one, up to Most. A Backoff belongs to one
// goroutine.
type Backoff struct {
	First, Most time.Duration
	Attempts    int // attempts in all; 0: unlimited

	failed int
	pause  time.Duration
}

// Wait pauses after a failed attempt. It returns nil when the next attempt is
// due, [ErrExhausted] if there is none, and the cause of ctx's end otherwise.
func (b *Backoff) Wait(ctx context.Context) error {
	if b.failed++; b.failed == b.Attempts {
		return ErrExhausted
	}
	if !Pause(ctx, b.Next()) {
		return context.Cause(ctx)
	}
	return nil
}

// Next returns the pause after a failed attempt, for a caller that waits for
// several operations at once.
func (b *Backoff) Next() time.Duration {
	b.pause = max(b.First, min(2*b.pause, b.Most))
	return b.pause
}

// Reset makes the next pause and the number of attempts those of a new
// Backoff. It is called after a success.
func (b *Backoff) Reset() { b.failed, b.pause = 0, 0 }

// Pause waits for d, plus or minus a fifth, so that programs which wait for the
// same thing do not act in step. It reports whether ctx outlasted the pause.
func Pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d*4/5 + rand.N(d*2/5+1)):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

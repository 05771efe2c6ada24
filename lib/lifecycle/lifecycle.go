// Package lifecycle starts the parts of a program together and stops them in
// order.
//
// The caller lists dependencies first. All parts start at once; a part that
// depends on another waits or retries by itself. When the program has to stop, or
// any part ends, the parts stop one after the other in reverse order. The context
// of a part is cancelled only after every part listed after it has ended. A part
// that drains can therefore still use its dependencies. Work that may
// outlast the signal to stop gets [Grace].
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Part is something that runs until its context is cancelled.
type Part struct {
	Name string
	// Run returns nil once ctx is cancelled and the part has released its
	// resources. If it returns earlier, the other parts stop.
	Run func(ctx context.Context) error
}

// Grace returns a context for work that may go on for d after ctx has ended.
// It has the values of ctx and ends early by cancel.
func Grace(ctx context.Context, d time.Duration) (work context.Context, cancel context.CancelFunc) {
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	forget := context.AfterFunc(ctx, func() { time.AfterFunc(d, end) })
	return work, func() {
		forget()
		end()
	}
}

// Run runs the parts until ctx is cancelled or a part ends, then stops them in
// reverse order. It returns when all have ended, with the joined errors of the
// parts after their names.
func Run(ctx context.Context, parts ...Part) error {
	running, end := context.WithCancel(ctx) // all parts
	defer end()
	stops := make([]func() error, len(parts))
	for i, p := range parts {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan error, 1)
		go func() {
			defer end()
			err := p.Run(own)
			if err != nil {
				err = fmt.Errorf("%s: %w", p.Name, err)
			}
			done <- err
		}()
		stops[i] = func() error {
			cancel()
			return <-done
		}
	}
	<-running.Done()
	var errs []error
	for _, stop := range slices.Backward(stops) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

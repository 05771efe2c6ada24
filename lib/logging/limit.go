package logging

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// limitPeriod is the least time between two events of a limited logger.
const limitPeriod = time.Second

// Limit returns a logger for one kind of event that others can cause at any
// rate. It writes at most one event a second, with the number of events omitted
// before it in the field suppressed.
func Limit(log zerolog.Logger) zerolog.Logger {
	l := &limiter{now: time.Now}
	return log.Sample(l).Hook(l)
}

type limiter struct {
	now func() time.Time

	mu         sync.Mutex
	last       time.Time // when an event was written
	suppressed int       // events since
}

// Sample implements [zerolog.Sampler].
func (l *limiter) Sample(zerolog.Level) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now(); l.last.IsZero() || now.Sub(l.last) >= limitPeriod {
		l.last = now
		return true
	}
	l.suppressed++
	return false
}

// Run implements [zerolog.Hook].
func (l *limiter) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.suppressed > 0 {
		e.Int("suppressed", l.suppressed)
		l.suppressed = 0
	}
}

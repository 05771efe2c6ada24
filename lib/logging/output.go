package logging

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

const (
	// patience is how long a line waits for an output that blocks. Later lines
	// do not wait until the output has caught up.
	patience = 100 * time.Millisecond
	// maxQueued is the limit of the queue in bytes.
	maxQueued = 4 << 20
	// closeTimeout bounds the wait for the last lines when a program ends.
	closeTimeout = 500 * time.Millisecond
)

// Output is an [io.Writer] for whole lines that never blocks for long: a
// console that nobody reads or a disk that hangs must not stop a service.
//
// Write returns when its line is written. If that takes more than 100 ms, this
// and the following lines wait in a queue of 4 MiB, which drops its oldest lines
// when it is full. Dropped lines and those that the output refuses are counted,
// and reported when the output accepts a line again. Write returns no error.
type Output struct {
	out    io.Writer
	report func(dropped int) []byte // the line about dropped lines
	done   chan struct{}            // closed after the last line
	torn   bool                     // the output accepted a part of its last line

	mu       sync.Mutex
	changed  *sync.Cond // a line was added, or the output closed
	lines    []line
	bytes    int  // of lines
	stuck    bool // a line was not written in time
	closed   bool
	dropped  int // lines
	reported int // dropped lines in a report
}

type line struct {
	text []byte
	out  chan struct{} // closed when the output has accepted or refused it
}

func newOutput(out io.Writer, report func(dropped int) []byte) *Output {
	o := &Output{out: out, report: report, done: make(chan struct{})}
	o.changed = sync.NewCond(&o.mu)
	go o.run()
	return o
}

// Console returns an output to a console, which must be closed. It escapes
// control and invisible characters except line ends and colours.
func Console(console io.Writer) *Output {
	return newOutput(person{console}, func(dropped int) []byte {
		return fmt.Appendf(nil, "%s WRN log lines dropped count=%d\n", time.Now().Format(consoleTime), dropped)
	})
}

// person is the console of an [Output].
type person struct{ io.Writer }

func (p person) Write(text []byte) (int, error) {
	if n, err := p.Writer.Write([]byte(escape(string(text), "\n\r\t\x1b"))); err != nil {
		return n, err
	}
	return len(text), nil
}

// Terminal reports whether w is a terminal or an [Output] to one. One with TERM=dumb
// shows escape sequences as text, and is treated as a file.
func Terminal(w io.Writer) bool {
	if o, ok := w.(*Output); ok {
		w = o.out
	}
	if p, ok := w.(person); ok {
		w = p.Writer
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// Write implements [io.Writer].
func (o *Output) Write(p []byte) (int, error) {
	l := line{bytes.Clone(p), make(chan struct{})}
	o.mu.Lock()
	if o.closed {
		o.dropped++
		o.mu.Unlock()
		return len(p), nil
	}
	o.lines = append(o.lines, l)
	o.bytes += len(l.text)
	for o.bytes > maxQueued {
		o.pop()
		o.dropped++
	}
	wait := !o.stuck
	o.changed.Signal()
	o.mu.Unlock()
	if !wait {
		return len(p), nil
	}
	select {
	case <-l.out:
	case <-time.After(patience):
		o.mu.Lock()
		defer o.mu.Unlock()
		select {
		case <-l.out:
		default:
			o.stuck = true
		}
	}
	return len(p), nil
}

// pop takes the oldest line. The caller holds the mutex.
func (o *Output) pop() line {
	l := o.lines[0]
	o.lines[0] = line{}
	o.lines = o.lines[1:]
	o.bytes -= len(l.text)
	return l
}

// run writes the lines until the output is closed and none is left.
func (o *Output) run() {
	defer close(o.done)
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for len(o.lines) == 0 {
			if o.stuck = false; o.closed {
				return
			}
			o.changed.Wait()
		}
		l, dropped := o.pop(), o.dropped-o.reported
		o.mu.Unlock()
		var text bytes.Buffer
		if o.torn {
			text.WriteByte('\n')
		}
		if dropped > 0 {
			text.Write(o.report(dropped))
		}
		text.Write(l.text)
		n, err := o.out.Write(text.Bytes())
		o.mu.Lock()
		if err != nil {
			o.torn = o.torn || n > 0
			o.dropped++
		} else {
			o.torn = false
			o.reported += dropped
		}
		close(l.out)
	}
}

// Dropped returns the number of lines that did not reach the output, 0 for nil.
func (o *Output) Dropped() int {
	if o == nil {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.dropped
}

// Close waits up to half a second for the lines in the queue. Lines written
// after it are dropped.
func (o *Output) Close() error {
	o.mu.Lock()
	o.closed = true
	o.changed.Signal()
	o.mu.Unlock()
	select {
	case <-o.done:
	case <-time.After(closeTimeout):
	}
	return nil
}

package allinone

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

const (
	plainEvery = time.Second // between two lines of progress, unless they overwrite each other
	barWidth   = 10
	maxLine    = 79 // a longer line could wrap and not be overwritten
)

// screen is the console. Lines written to it appear above the line of progress,
// which overwrites itself on a terminal.
type screen struct {
	mu      sync.Mutex
	out     io.Writer
	live    bool // out is a terminal
	escapes bool // that knows escape sequences
	width   int  // of the line of progress that stands there now
	plainAt time.Time
}

func newScreen(out io.Writer) *screen {
	return &screen{out: out, live: logging.Terminal(out), escapes: os.Getenv("TERM") != ""}
}

// Write implements [io.Writer] for whole lines.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draw("") // the next progress draws it again
	return s.out.Write(p)
}

// print prints a line. It ignores errors of the console.
func (s *screen) print(format string, args ...any) {
	_, _ = fmt.Fprintf(s, format+"\n", args...)
}

func (s *screen) say(what, where string) { s.print("%-9s %s", what+":", where) }

// progress shows the progress of a session, for the last time if last is set.
func (s *screen) progress(now ms1.Summary, inFlight int, last bool) {
	seconds := *now.TotalSeconds
	left := max(0, float64(now.IntervalSeconds)-seconds)
	line := fmt.Sprintf("%.1f s left  %.0f/s  in flight %d  lost %d", left, float64(*now.Stored)/max(seconds, 0.001), inFlight, *now.Lost-int64(inFlight))
	if h := now.Hops; h != nil {
		line += fmt.Sprintf("  p50 %.2f p99 %.2f ms", h.Round.P50*1e3, h.Round.P99*1e3)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.live:
		done := min(barWidth, int(barWidth*seconds/float64(now.IntervalSeconds)))
		line = fmt.Sprintf("[%-*s] %s", barWidth, strings.Repeat("#", done), line)
		if !last {
			s.draw(line)
			return
		}
		s.draw("")
		fmt.Fprintln(s.out, line) // it stays
	case last || time.Since(s.plainAt) >= plainEvery:
		s.plainAt = time.Now()
		fmt.Fprintln(s.out, line)
	}
}

// draw replaces the line of progress. The caller holds the mutex.
func (s *screen) draw(line string) {
	if len(line) > maxLine { // half a number would be another one
		line = line[:strings.LastIndexByte(line[:maxLine+1], ' ')]
	}
	if line == "" && s.width == 0 {
		return
	}
	format := "\r%-*s"
	if s.escapes { // a narrow terminal then clips the line instead of wrapping it
		format = "\r\x1b[?7l%-*s \x1b[?7h"
	}
	fmt.Fprintf(s.out, format, s.width, line)
	if s.width = len(line); line == "" {
		fmt.Fprint(s.out, "\r")
	}
}

// troubles passes on log lines of level warning or above. The file has all. The
// error with which a service has stopped is that of the program.
type troubles struct{ screen *screen }

var grave = []string{"WRN", "ERR", "FTL", "PNC", "[WRN]", "[ERR]"} // levels; the last two are kfake's

func (t troubles) Write(line []byte) (int, error) {
	words := bytes.Fields(line) // time, level, service and message, as lib/logging writes them
	stopped := len(words) > 3 && string(words[3]) == "stopped"
	if len(words) > 1 && !stopped && slices.Contains(grave, string(words[1])) {
		return t.screen.Write(line)
	}
	return len(line), nil
}

package logging_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func TestAConsoleThatNobodyReadsBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		o := logging.Console(w)
		began := time.Now()
		const written = 1000 // some 8 MB
		text := strings.Repeat("x", 8000)
		for n := range written {
			fmt.Fprintf(o, "%s %d\n", text, n)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %s, want one short wait", took)
		}
		dropped := o.Dropped()
		if dropped == 0 {
			t.Error("got no line dropped, want a bounded queue")
		}

		// The console is read again: the report, then the newest lines.
		lines, report := bufio.NewScanner(r), regexp.MustCompile(`WRN log lines dropped count=(\d+)$`)
		read, reported := 0, 0
		for lines.Scan() {
			if found := report.FindStringSubmatch(lines.Text()); found != nil {
				n, _ := strconv.Atoi(found[1])
				reported += n
				continue
			}
			read++
			if strings.HasSuffix(lines.Text(), " "+strconv.Itoa(written-1)) {
				break
			}
		}
		if read+reported != written || reported != dropped {
			t.Errorf("got %d lines, %d reported and %d counted as dropped, want %d in all", read, reported, dropped, written)
		}
		synctest.Wait()
		began = time.Now()
		go func() { _, _ = io.ReadFull(r, make([]byte, 6)) }()
		fmt.Fprint(o, "again\n")
		if took := time.Since(began); took > 0 {
			t.Errorf("took %s, want a line that is out at once", took)
		}
		o.Close()
	})
}

func TestTheEndOfAConsoleThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		o := logging.Console(w)
		fmt.Fprint(o, "one\n")
		fmt.Fprint(o, "two\n")
		began := time.Now()
		o.Close()
		if took := time.Since(began); took == 0 || took > time.Second {
			t.Errorf("took %s, want a bounded wait", took)
		}
		text := make([]byte, 8)
		_, err := io.ReadFull(r, text)
		fmt.Fprint(o, "after the end\n")
		if err != nil || string(text) != "one\ntwo\n" || o.Dropped() != 1 {
			t.Errorf("got %q, %v, %d dropped, want both lines and one dropped", text, err, o.Dropped())
		}
	})
}

func TestABurstLosesNothing(t *testing.T) {
	var out bytes.Buffer
	o := logging.Console(&out)
	const writers, each = 8, 1000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				fmt.Fprintf(o, "%d %d\n", w, n)
			}
		})
	}
	wg.Wait()
	o.Close()
	var next [writers]int
	for text := range strings.Lines(out.String()) {
		var w, n int
		if _, err := fmt.Sscanf(text, "%d %d\n", &w, &n); err != nil || n != next[w] {
			t.Fatalf("got %q, %v, want line %d", text, err, next[w])
		}
		next[w]++
	}
	if o.Dropped() != 0 || next != [writers]int{each, each, each, each, each, each, each, each} {
		t.Errorf("got %v lines, %d dropped, want all", next, o.Dropped())
	}
}

// moody is a disk that is full after the third byte of a line.
type moody struct {
	bytes.Buffer
	full bool
}

func (m *moody) Write(p []byte) (int, error) {
	if m.full {
		m.Buffer.Write(p[:3])
		return 3, errors.New("no space left on device")
	}
	return m.Buffer.Write(p)
}

func TestLinesThatWereRefusedAreReported(t *testing.T) {
	out := &moody{}
	o := logging.Console(out)
	fmt.Fprint(o, "one\n")
	out.full = true
	fmt.Fprint(o, "two\n")
	out.full = false
	fmt.Fprint(o, "three\n")
	fmt.Fprint(o, "four\n")
	o.Close()
	if want := regexp.MustCompile(`^one\ntwo\n\S+ WRN log lines dropped count=1\nthree\nfour\n$`); !want.MatchString(out.String()) || o.Dropped() != 1 {
		t.Errorf("got %q, %d dropped, want %s", out, o.Dropped(), want)
	}
}

func TestAFileThatRefusesALine(t *testing.T) {
	c := logging.Defaults()
	c.File, c.MaxSizeMegabytes = filepath.Join(t.TempDir(), "ms9.log"), 1
	console := logging.Console(&bytes.Buffer{})
	defer console.Close()
	log, l, err := logging.New(c, "ms9", console)
	if err != nil {
		t.Fatal(err)
	}
	log.Info().Ints("numbers", make([]int, 1<<20)).Msg("too long")
	log.Info().Msg("hello")
	if err := l.Close(); err != nil { // first: on a busy machine, a line may wait longer than its writer
		t.Error(err)
	}
	if console, file := l.Console.Dropped(), l.File.Dropped(); console != 0 || file != 1 {
		t.Errorf("got %d and %d lines dropped, want 0 and 1", console, file)
	}
	events := servicetest.Events(t, c.File)
	if len(events) != 2 || events[0]["message"] != "log lines dropped" || events[0]["count"] != 1.0 || events[1]["message"] != "hello" {
		t.Errorf("got %v, want the report and the second line", events)
	}
}

func TestTheConsoleIsEscaped(t *testing.T) {
	var out bytes.Buffer
	o := logging.Console(&out)
	fmt.Fprint(o, "\r\x1b[31mred\x1b[0m\t\u202e\u009b\x07норма\n")
	o.Close()
	if want := "\r\x1b[31mred\x1b[0m\t\\u202e\\u009b\\aнорма\n"; out.String() != want {
		t.Errorf("got %q, want %q", &out, want)
	}
}

func TestADumbTerminalIsNone(t *testing.T) {
	device, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	for term, want := range map[string]bool{"xterm": true, "": true, "dumb": false} {
		t.Setenv("TERM", term)
		if got := logging.Terminal(device); got != want {
			t.Errorf("TERM=%s: got %v, want %v", term, got, want)
		}
	}
}

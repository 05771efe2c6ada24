package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

const ms = time.Millisecond

func TestPercentiles(t *testing.T) {
	var thousand []time.Duration
	for i := range 1000 {
		thousand = append(thousand, time.Duration(1000-i)*time.Microsecond)
	}
	for name, c := range map[string]struct {
		times []time.Duration
		want  Percentile
	}{
		"none":     {nil, Percentile{}},
		"one":      {[]time.Duration{ms}, Percentile{1000, 1000, 1000, 1000, 1000}},
		"two":      {[]time.Duration{2 * ms, ms}, Percentile{1000, 2000, 2000, 2000, 2000}},
		"thousand": {thousand, Percentile{500, 950, 990, 999, 1000}},
		"negative": {[]time.Duration{-ms, -ms, ms}, Percentile{-1000, 1000, 1000, 1000, 1000}},
	} {
		if got := percentiles(c.times); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

// A pause of 100 ms among times of 1 ms is met by every message that a client
// at a constant rate would have sent meanwhile.
func TestCorrect(t *testing.T) {
	var times []time.Duration
	for range 900 {
		times = append(times, ms)
	}
	times = append(times, 100*ms)
	into := map[string]Percentile{}
	addNext(into, times)
	if got := into[next].P99; got != 1000 {
		t.Errorf("p99 as measured: got %v µs, want 1000", got)
	}
	// 1,000 messages, of which the last 100 waited 1 to 100 ms.
	if got := into[corrected]; got.P50 != 1000 || got.P95 != 50_000 || got.P99 != 90_000 || got.Max != 100_000 {
		t.Errorf("corrected: got %+v, want a p95 of 50 ms, a p99 of 90 ms", got)
	}
	if got := correct([]time.Duration{0, ms}, 0); len(got) != 2 {
		t.Errorf("without an expected time: got %v, want no more times", got)
	}
}

// rowsOf returns messages that take 1, 2 and 3 ms for the hops and 4 ms from
// the last stamp to the next message.
func rowsOf(n int) (rows []row) {
	at := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for i := range n {
		first := at.Add(time.Duration(i) * 10 * ms)
		rows = append(rows, row{first, first.Add(ms), first.Add(3 * ms), first.Add(6 * ms)})
	}
	return rows
}

func TestTimesOfASession(t *testing.T) {
	rows := rowsOf(101)
	got := timesOf(rows, 1)
	for name, want := range map[string]float64{toMS2: 1000, toMS3: 2000, toMS1: 3000, round: 6000, commit: 4000, next: 10_000, corrected: 10_000} {
		if got[name].P50 != want || got[name].Max != want {
			t.Errorf("%s: got %+v, want %v µs", name, got[name], want)
		}
	}
	if got := timesOf(rows, 4); got[next].P50 != 40_000 {
		t.Errorf("4 in flight: got %+v, want 40 ms to the message that takes the place", got[next])
	} else if _, ok := got[commit]; ok {
		t.Error("4 in flight: got a commit time, want none")
	}
	if got := timesOf(rows[:1], 1); got[round].P50 != 6000 || got[next].P50 != 0 {
		t.Errorf("one message: got %+v", got)
	}
	if got, want := perSecond(rows), 101/1.006; math.Abs(got-want) > 1e-9 {
		t.Errorf("got %v messages/s, want %v", got, want)
	}
}

func TestProcessFigures(t *testing.T) {
	stat := "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 100 1000 200 1844"
	if got, err := parseStat([]byte(stat)); err != nil || got != 2*time.Second {
		t.Errorf("processor time: got %v, %v, want 2s", got, err)
	}
	if got, err := parsePeak([]byte("Name:\tms1\nVmHWM:\t   20480 kB\nVmRSS:\t 1 kB\n")); err != nil || got != 20 {
		t.Errorf("peak memory: got %v, %v, want 20", got, err)
	}
	for _, text := range []string{"", "42 (x) S 1 2", "42 (x) S 1 42 42 0 -1 4194560 100 0 0 0 no 50"} {
		if _, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q: got no error", text)
		}
	}
	for _, text := range []string{"", "VmHWM:\tmuch kB\n"} {
		if _, err := parsePeak([]byte(text)); err == nil {
			t.Errorf("%q: got no error", text)
		}
	}
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestCounter(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "# HELP dropped_total x\ndropped_total{reason=\"a b\"} 3\ndropped_total{reason=\"c\"} 1e+01\nother 7\n")
	}))
	defer server.Close()
	if got, err := counter(t.Context(), server.Client(), server.URL, "dropped_total"); err != nil || got != 13 {
		t.Errorf("got %v, %v, want 13", got, err)
	}
}

func TestParsePrograms(t *testing.T) {
	for text, want := range map[string]programs{
		"now=bin":                         {"now", "bin", 1, "", ""},
		"two=a,b/c,ms3=2":                 {"two", "a,b/c", 2, "", ""},
		"set=bin,ms3=3,GOGC=400,GODEBUG=": {"set", "bin", 3, "", "GOGC=400 GODEBUG="},
		"tls=bin,tls=/keys,GOGC=400":      {"tls", "bin", 1, "/keys", "GOGC=400"},
	} {
		if got, err := parsePrograms(text); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "bin", "=bin", "now=", "now=bin,ms3=0", "now=bin,ms3=x", "now=bin,tls="} {
		if _, err := parsePrograms(text); err == nil {
			t.Errorf("%q: got no error", text)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{"-kafka", "127.0.0.1:1"}, {"-mariadb", "no dsn"}, {"-in-flight", "0"}, {"-seconds", "0"}, {"-parts", "real"}, {"extra"},
		{"-programs", "tls=bin,tls=keys", "-kafka", "127.0.0.1:1", "-mariadb", "tcp(127.0.0.1:1)/", "-parts", "real"},
		{"-programs", "tls=bin,tls=keys", "-kafka-tls", "127.0.0.1:1", "-parts", "embedded"},
		{"-process", "kafka=x"}, {"report"}, {"report", "absent.json"}, {"compare", "absent.json"}, {"compare", "absent.json", "absent.json"},
	} {
		if err := command(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v: got no error", args)
		}
	}
}

// results returns three repetitions in which 'new' is twice as fast as 'old'.
func results() (r Results) {
	r = Results{Date: time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC), Machine: "a machine", Seconds: 1, Revisions: map[string]string{"old": "ff29992"}}
	for i := range 3 {
		slow := float64(i + 1)
		r.Trials = append(r.Trials,
			Trial{Subject: floorSubject, Parts: "real", InFlight: 1, Repetition: i + 1, Times: map[string]Percentile{toMS2: {P50: 10}, commit: {P50: 240}}},
			Trial{Subject: bareSubject, Parts: "real", InFlight: 1, Repetition: i + 1, Times: map[string]Percentile{next: {P50: 500}}})
		for _, subject := range []string{"new", "old"} {
			rate := map[string]float64{"old": 1000, "new": 2000}[subject]
			for _, n := range []int{1, 256} {
				r.Trials = append(r.Trials, Trial{
					Subject: subject, Parts: "real", InFlight: n, Repetition: i + 1, Messages: 100, PerSecond: rate / slow,
					Times:  map[string]Percentile{round: {P50: 1e6 / rate, P99: 2e6 / rate}, next: {P50: 1e6 / rate}},
					CPU:    map[string]float64{"ms1": 1e5 / rate, "kafka": 7},
					Memory: map[string]float64{"ms1": 30},
				})
			}
		}
	}
	return r
}

func TestCompare(t *testing.T) {
	r := results()
	lines := func(tab table) string {
		var out bytes.Buffer
		tab.write(&out)
		return out.String()
	}
	got := lines(compare(r, r, "old", "new"))
	for _, want := range []string{
		"| old → new, tracing off | real | 256 | messages/s | 500 | 1000 | 2.00 (2.00–2.00) |\n",
		"| old → new, tracing off | real | 1 | next p50 | 1000 | 500 | 0.50 (0.50–0.50) |\n",
		"| cpu ms1 | 100 | 50 | 0.50 (0.50–0.50) |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("expected %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "ms3") || strings.Contains(got, floorSubject) {
		t.Errorf("expected no figure that neither has in:\n%s", got)
	}

	// In another run the second repetition was disturbed.
	other := results()
	for i := range other.Trials {
		if other.Trials[i].Repetition == 2 {
			other.Trials[i].PerSecond /= 4
		}
	}
	if got, want := lines(compare(r, other, "", "")), "| new, tracing off | real | 1 | messages/s | 1000 | 666.7 | 1.00 (0.25–1.00) |\n"; !strings.Contains(got, want) {
		t.Errorf("expected %q in:\n%s", want, got)
	}
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "r.json")
	page := servicetest.File(t, filepath.Join(dir, "page.md"), "before\n"+pageBegin+"old\n"+pageEnd+"after\n")
	if err := results().write(file); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second changes nothing
		if err := command(t.Context(), []string{"report", file, page}, io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		var tables bytes.Buffer
		report(&tables, results())
		if got, want := string(text), "before\n"+pageBegin+tables.String()+"\n![Latency against load](r.svg)\n"+pageEnd+"after\n"; got != want {
			t.Fatalf("got %s\nwant %s", got, want)
		}
	}
	if err := command(t.Context(), []string{"report", file, file}, io.Discard, io.Discard); err == nil {
		t.Error("a page without marks: got no error")
	}
	var out bytes.Buffer
	if err := command(t.Context(), []string{"compare", file + ":old", file + ":new"}, &out, io.Discard); err != nil || out.Len() == 0 {
		t.Errorf("compare: %v, %q", err, out.String())
	}
	if err := command(t.Context(), []string{"report", file}, &out, io.Discard); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"'old' is revision ff29992", "| floor | 0.010 |  |  | 0.240 | 0.250 (sum) |", "| × old |", "| 2.00 (2.00–2.00) |", "kafka, µs a message"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("expected %q in:\n%s", want, out.String())
		}
	}

	text, err := os.ReadFile(filepath.Join(dir, "r.svg"))
	if err != nil {
		t.Fatal(err)
	}
	var svg struct {
		Lines []struct{} `xml:"polyline"`
	}
	if err := xml.Unmarshal(text, &svg); err != nil || len(svg.Lines) != 4 {
		t.Errorf("got %d lines in the plot, %v, want the median and the 99th percentile of 2 subjects", len(svg.Lines), err)
	}
}

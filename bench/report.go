package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// The marks in a page between which the tables are written.
const (
	pageBegin = "<!-- bench:begin -->\n"
	pageEnd   = "<!-- bench:end -->\n"
)

// reportCommand prints the tables of a results file and writes its plot beside
// it. With a page it writes the tables and a link to the plot into the page.
func reportCommand(args []string, out io.Writer) error {
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf("report: expected FILE.json [PAGE.md], found %q", args)
	}
	r, err := readResults(args[0])
	if err != nil {
		return err
	}
	if err := writePlot(r, plotFile(args[0])); err != nil {
		return err
	}
	if len(args) == 1 {
		report(out, r)
		return nil
	}
	page, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	before, rest, begins := bytes.Cut(page, []byte(pageBegin))
	_, after, ends := bytes.Cut(rest, []byte(pageEnd))
	if !begins || !ends {
		return fmt.Errorf("write %s: expected the marks %q and %q", args[1], pageBegin, pageEnd)
	}
	var text bytes.Buffer
	text.Write(before)
	text.WriteString(pageBegin)
	report(&text, r)
	if plot, err := filepath.Rel(filepath.Dir(args[1]), plotFile(args[0])); err == nil {
		fmt.Fprintf(&text, "\n![Latency against load](%s)\n", filepath.ToSlash(plot))
	}
	text.WriteString(pageEnd)
	text.Write(after)
	return os.WriteFile(args[1], text.Bytes(), 0o644)
}

func plotFile(results string) string {
	return strings.TrimSuffix(results, filepath.Ext(results)) + ".svg"
}

// report writes the tables of a run in Markdown.
func report(w io.Writer, r Results) {
	keys, trials := groups(r.Trials)
	repetitions := 0
	for _, t := range r.Trials {
		repetitions = max(repetitions, t.Repetition)
	}
	fmt.Fprintf(w, "%s; %s.", r.Date.Format("2006-01-02"), r.Machine)
	if r.Servers != "" {
		fmt.Fprintf(w, " %s.", r.Servers)
	}
	fmt.Fprintf(w, " Each figure is the median of %d repetitions of %d s, taken in turns; brackets have the least and the greatest.", repetitions, r.Seconds)
	for _, name := range slices.Sorted(maps.Keys(r.Revisions)) {
		fmt.Fprintf(w, " '%s' is revision %s.", name, r.Revisions[name])
	}
	fmt.Fprint(w, "\n")
	for _, parts := range []string{"real", "embedded"} {
		of := slices.DeleteFunc(slices.Clone(keys), func(k key) bool { return k.Parts != parts })
		if len(of) == 0 {
			continue
		}
		slices.SortStableFunc(of, func(a, b key) int {
			return cmp.Or(strings.Compare(onOff(a.Tracing), onOff(b.Tracing)), cmp.Compare(a.InFlight, b.InFlight))
		})
		if parts == "real" {
			fmt.Fprint(w, "\n### Real Kafka and MariaDB\n")
		} else {
			fmt.Fprint(w, "\n### Embedded broker and database\n")
		}
		reportLockStep(w, of, trials)
		reportTimes(w, of, trials)
		reportCost(w, of, trials)
	}
}

// hops are the columns of the lock-step table.
var hops = []struct{ name, title string }{
	{toMS2, "MS1 to MS2"}, {toMS3, "MS2 to MS3"}, {toMS1, "MS3 to MS1"}, {commit, "INSERT, to the next message"},
}

// reportLockStep compares floor, bare loop and programs with one message in
// flight.
func reportLockStep(w io.Writer, keys []key, trials map[key][]Trial) {
	t := table{head: []string{"one message in flight, ms"}}
	for _, h := range hops {
		t.head = append(t.head, h.title)
	}
	t.head = append(t.head, "message to message", "× bare loop")
	var bare []Trial
	for _, k := range keys {
		if k.Subject == bareSubject {
			bare = trials[k]
		}
	}
	median := func(t Trial) float64 { return t.Times[next].P50 }
	for _, k := range keys {
		if k.InFlight != 1 {
			continue
		}
		cells, sum := []string{k.title()}, 0.0
		for _, h := range hops {
			s := over(trials[k], func(t Trial) float64 { return t.Times[h.name].P50 })
			sum += s.median
			cells = append(cells, milli(s.median))
		}
		if k.Subject == floorSubject {
			cells = append(cells, milli(sum)+" (sum)", "")
		} else {
			all := over(trials[k], median)
			cells = append(cells, fmt.Sprintf("%s (%s–%s)", milli(all.median), milli(all.least), milli(all.most)), ratio(ratios(bare, trials[k], median)))
		}
		t.rows = append(t.rows, cells)
	}
	t.write(w)
}

// reportTimes is the table of rates and times by load.
func reportTimes(w io.Writer, keys []key, trials map[key][]Trial) {
	t := table{head: []string{"in flight", "", "messages/s"}}
	last := reference(keys)
	compared := slices.ContainsFunc(keys, func(k key) bool { return k.Subject != last && services(k) })
	if compared {
		t.head = append(t.head, "× "+last)
	}
	for _, name := range []string{"round", "message to message"} {
		t.head = append(t.head, name+", ms: p50", "p95", "p99", "p99.9", "max")
	}
	t.head = append(t.head, "corrected p99", "p99.9")
	rate := func(t Trial) float64 { return t.PerSecond }
	for _, k := range keys {
		if k.Subject == floorSubject {
			continue
		}
		s := over(trials[k], rate)
		cells := []string{strconv.Itoa(k.InFlight), k.title(), fmt.Sprintf("%.0f (%.0f–%.0f)", s.median, s.least, s.most)}
		if compared {
			to, cell := k, ""
			to.Subject = last
			if services(k) && k != to {
				cell = ratio(ratios(trials[to], trials[k], rate))
			}
			cells = append(cells, cell)
		}
		for _, name := range []string{round, next} {
			for _, at := range percentileNames {
				cells = append(cells, milli(over(trials[k], func(t Trial) float64 { return at.of(t.Times[name]) }).median))
			}
		}
		for _, of := range []func(Percentile) float64{Percentile.p99, Percentile.p999} {
			cells = append(cells, milli(over(trials[k], func(t Trial) float64 { return of(t.Times[corrected]) }).median))
		}
		t.rows = append(t.rows, cells)
	}
	t.write(w)
}

func (p Percentile) p99() float64  { return p.P99 }
func (p Percentile) p999() float64 { return p.P999 }

var percentileNames = []struct {
	name string
	of   func(Percentile) float64
}{
	{"p50", func(p Percentile) float64 { return p.P50 }},
	{"p95", func(p Percentile) float64 { return p.P95 }},
	{"p99", Percentile.p99},
	{"p99.9", Percentile.p999},
	{"max", func(p Percentile) float64 { return p.Max }},
}

// reportCost is the table of processor time, memory and losses.
func reportCost(w io.Writer, keys []key, trials map[key][]Trial) {
	t := table{head: []string{"in flight", ""}}
	processes, names := map[string]bool{}, []string{}
	for _, k := range keys {
		for _, trial := range trials[k] {
			for name := range trial.CPU {
				processes[name] = true
			}
		}
	}
	for _, name := range []string{"ms1", "ms2", "ms3", "allinone", "bench", "kafka", "mariadb", "jaeger"} {
		if processes[name] {
			names = append(names, name)
		}
	}
	for _, name := range names {
		t.head = append(t.head, name+", µs a message")
	}
	last := reference(keys)
	t.head = append(t.head, "ours, sum", "× "+last, "peak memory, MiB", "spans dropped", "resent", "lost")
	for _, k := range keys {
		if k.Subject == floorSubject {
			continue
		}
		cells := []string{strconv.Itoa(k.InFlight), k.title()}
		for _, name := range names {
			cell := ""
			if _, ok := trials[k][0].CPU[name]; ok {
				cell = fmt.Sprintf("%.0f", over(trials[k], func(t Trial) float64 { return t.CPU[name] }).median)
			}
			cells = append(cells, cell)
		}
		var memory []string
		for _, name := range names {
			if _, ok := trials[k][0].Memory[name]; ok {
				memory = append(memory, fmt.Sprintf("%s %.0f", name, over(trials[k], func(t Trial) float64 { return t.Memory[name] }).median))
			}
		}
		to, compared := k, ""
		to.Subject = last
		if services(k) && k != to {
			compared = ratio(ratios(trials[to], trials[k], ours))
		}
		cells = append(cells, fmt.Sprintf("%.0f", over(trials[k], ours).median), compared, strings.Join(memory, ", "))
		for _, figure := range []func(Trial) float64{
			func(t Trial) float64 { return t.SpansDropped },
			func(t Trial) float64 { return float64(t.Resent) },
			func(t Trial) float64 { return float64(t.Lost) },
		} {
			cells = append(cells, fmt.Sprintf("%.0f", over(trials[k], figure).median))
		}
		t.rows = append(t.rows, cells)
	}
	t.write(w)
}

// ours returns the processor time a message of our own processes.
func ours(t Trial) (sum float64) {
	for _, name := range []string{"ms1", "ms2", "ms3", "allinone", "bench"} {
		sum += t.CPU[name]
	}
	return sum
}

func services(k key) bool {
	return !slices.Contains([]string{floorSubject, bareSubject, apartSubject}, k.Subject)
}

// reference returns the programs that were given last.
func reference(keys []key) (subject string) {
	for _, k := range keys {
		if services(k) {
			subject = k.Subject
		}
	}
	return subject
}

func (k key) title() string {
	if services(k) {
		return k.Subject + ", tracing " + onOff(k.Tracing)
	}
	return k.Subject
}

// compared are the figures that compare prints.
var comparedFigures = []struct {
	name string
	of   func(Trial) float64
}{
	{"messages/s", func(t Trial) float64 { return t.PerSecond }},
	{"round p50", func(t Trial) float64 { return t.Times[round].P50 }},
	{"round p99", func(t Trial) float64 { return t.Times[round].P99 }},
	{"next p50", func(t Trial) float64 { return t.Times[next].P50 }},
	{"next p99", func(t Trial) float64 { return t.Times[next].P99 }},
	{"hop ms1_to_ms2 p50", func(t Trial) float64 { return t.Times[toMS2].P50 }},
	{"hop ms2_to_ms3 p50", func(t Trial) float64 { return t.Times[toMS3].P50 }},
	{"hop ms3_to_ms1 p50", func(t Trial) float64 { return t.Times[toMS1].P50 }},
	{"commit p50", func(t Trial) float64 { return t.Times[commit].P50 }},
	{"cpu, ours", ours},
	{"cpu ms1", func(t Trial) float64 { return t.CPU["ms1"] }},
	{"cpu ms2", func(t Trial) float64 { return t.CPU["ms2"] }},
	{"cpu ms3", func(t Trial) float64 { return t.CPU["ms3"] }},
	{"cpu kafka", func(t Trial) float64 { return t.CPU["kafka"] }},
	{"cpu mariadb", func(t Trial) float64 { return t.CPU["mariadb"] }},
	{"memory ms1", func(t Trial) float64 { return t.Memory["ms1"] }},
	{"memory ms2", func(t Trial) float64 { return t.Memory["ms2"] }},
	{"memory ms3", func(t Trial) float64 { return t.Memory["ms3"] }},
}

// compareCommand prints what became of every figure that both results have. A
// subject after a colon compares two subjects, also of the same file.
func compareCommand(args []string, out io.Writer) error {
	if len(args) != 2 {
		return fmt.Errorf("compare: expected OLD.json[:SUBJECT] NEW.json[:SUBJECT], found %q", args)
	}
	var sides [2]Results
	var subjects [2]string
	for i, arg := range args {
		file, subject, _ := strings.Cut(arg, ":")
		r, err := readResults(file)
		if err != nil {
			return err
		}
		sides[i], subjects[i] = r, subject
	}
	if (subjects[0] == "") != (subjects[1] == "") {
		return fmt.Errorf("compare: expected a subject with both files or with none, found %q", args)
	}
	t := compare(sides[0], sides[1], subjects[0], subjects[1])
	if len(t.rows) == 0 {
		return fmt.Errorf("compare: nothing in common: %q", args)
	}
	t.write(out)
	return nil
}

// compare returns the table of ratios newer / older, paired by repetition.
func compare(older, newer Results, oldSubject, newSubject string) table {
	t := table{head: []string{"subject", "parts", "in flight", "figure", "old", "new", "new / old"}}
	keys, before := groups(older.Trials)
	_, after := groups(newer.Trials)
	for _, k := range keys {
		name, counterpart := k.title(), k
		if oldSubject != "" {
			if k.Subject != oldSubject {
				continue
			}
			counterpart.Subject = newSubject
			name = oldSubject + " → " + counterpart.title()
		}
		for _, f := range comparedFigures {
			all := ratios(before[k], after[counterpart], f.of)
			if len(all) == 0 {
				continue
			}
			t.rows = append(t.rows, []string{name, k.Parts, strconv.Itoa(k.InFlight), f.name,
				fmt.Sprintf("%.4g", over(before[k], f.of).median), fmt.Sprintf("%.4g", over(after[counterpart], f.of).median), ratio(all)})
		}
	}
	return t
}

// milli writes microseconds as milliseconds.
func milli(micros float64) string {
	switch {
	case micros == 0:
		return ""
	case micros < 10_000:
		return fmt.Sprintf("%.3f", micros/1e3)
	}
	return fmt.Sprintf("%.1f", micros/1e3)
}

// ratio writes the median of ratios with the least and the greatest.
func ratio(all []float64) string {
	if len(all) == 0 {
		return ""
	}
	s := spreadOf(all)
	return fmt.Sprintf("%.2f (%.2f–%.2f)", s.median, s.least, s.most)
}

// table is a table in Markdown.
type table struct {
	head []string
	rows [][]string
}

func (t table) write(w io.Writer) {
	if len(t.rows) == 0 {
		return
	}
	fmt.Fprintf(w, "\n| %s |\n|%s\n", strings.Join(t.head, " | "), strings.Repeat("---|", len(t.head)))
	for _, row := range t.rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
}

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"time"
)

// The subjects that are measured beside the programs.
const (
	floorSubject = "floor"
	bareSubject  = "bare loop"
	apartSubject = "bare loop in three processes"
)

// The measured times of a trial. The first three are the hops of a round.
const (
	toMS2 = "ms1_to_ms2"
	toMS3 = "ms2_to_ms3"
	toMS1 = "ms3_to_ms1"
	round = "round" // from the first stamp to the last
	// next is the time from a message to the one that takes its place: to the
	// next message with one in flight, to the Nth after it with N. These times
	// follow each other without a gap, so every pause is part of one.
	next = "next"
	// corrected is next as a client at a constant rate would have seen it.
	corrected = "next_corrected"
	// commit is what next has beyond round. With one message in flight it is
	// the time from the last stamp, over the INSERT, to the next message.
	commit = "commit"
)

// Results is the file that a run writes.
type Results struct {
	Date      time.Time         `json:"date"`
	Machine   string            `json:"machine"`
	Seconds   int               `json:"seconds"`   // of each trial
	Revisions map[string]string `json:"revisions"` // by subject, where the programs know it
	Servers   string            `json:"servers"`
	Trials    []Trial           `json:"trials"`
}

// Trial is one measurement of one subject.
type Trial struct {
	Subject      string                `json:"subject"` // floor, bare loop or the name of some programs
	Parts        string                `json:"parts"`   // real or embedded
	Tracing      bool                  `json:"tracing"`
	InFlight     int                   `json:"in_flight"`
	Repetition   int                   `json:"repetition"`
	Messages     int64                 `json:"messages"` // stored
	Lost         int64                 `json:"lost"`
	Resent       int64                 `json:"resent"`
	PerSecond    float64               `json:"messages_per_second"`
	Times        map[string]Percentile `json:"times_us"`
	CPU          map[string]float64    `json:"cpu_us_per_message"` // by process
	Memory       map[string]float64    `json:"peak_memory_mib"`    // by process, since its start
	SpansDropped float64               `json:"spans_dropped"`
}

// Percentile has percentiles of a set of times, in microseconds, by nearest
// rank.
type Percentile struct {
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

// percentiles sorts the times and returns their percentiles.
func percentiles(times []time.Duration) Percentile {
	if len(times) == 0 {
		return Percentile{}
	}
	slices.Sort(times)
	at := func(q float64) float64 {
		return micros(times[max(0, int(math.Ceil(q*float64(len(times))))-1)])
	}
	return Percentile{P50: at(0.5), P95: at(0.95), P99: at(0.99), P999: at(0.999), Max: at(1)}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// correct adds to the times those of the messages that a client at a constant
// rate would have sent during a pause: v-e, v-2e, … down to e for a time v and
// the expected time e, as HdrHistogram corrects for coordinated omission.
func correct(times []time.Duration, expected time.Duration) []time.Duration {
	all := slices.Clone(times)
	if expected <= 0 {
		return all
	}
	for _, v := range times {
		for v -= expected; v >= expected; v -= expected {
			all = append(all, v)
		}
	}
	return all
}

// addNext adds the times from message to message to a trial's.
func addNext(into map[string]Percentile, times []time.Duration) {
	into[next] = percentiles(times)
	median := time.Duration(into[next].P50 * float64(time.Microsecond))
	into[corrected] = percentiles(correct(times, median))
}

// row is the four stamps of a stored message.
type row [4]time.Time

// timesOf returns the times of a session of which rows has every message, in
// the order of their first stamps.
func timesOf(rows []row, inFlight int) map[string]Percentile {
	times := map[string]Percentile{}
	for name, of := range map[string]func(i int) time.Duration{
		toMS2: func(i int) time.Duration { return rows[i][1].Sub(rows[i][0]) },
		toMS3: func(i int) time.Duration { return rows[i][2].Sub(rows[i][1]) },
		toMS1: func(i int) time.Duration { return rows[i][3].Sub(rows[i][2]) },
		round: func(i int) time.Duration { return rows[i][3].Sub(rows[i][0]) },
	} {
		all := make([]time.Duration, len(rows))
		for i := range rows {
			all[i] = of(i)
		}
		times[name] = percentiles(all)
	}
	var nexts, commits []time.Duration
	for i := inFlight; i < len(rows); i++ {
		nexts = append(nexts, rows[i][0].Sub(rows[i-inFlight][0]))
		commits = append(commits, rows[i][0].Sub(rows[i-inFlight][3]))
	}
	addNext(times, nexts)
	if inFlight == 1 {
		times[commit] = percentiles(commits)
	}
	return times
}

// perSecond returns the rate at which messages came home.
func perSecond(rows []row) float64 {
	if len(rows) < 2 {
		return 0
	}
	first, last := rows[0][0], rows[0][3]
	for _, r := range rows {
		if r[3].After(last) {
			last = r[3]
		}
	}
	return float64(len(rows)) / last.Sub(first).Seconds()
}

// key names the trials that are repetitions of each other.
type key struct {
	Subject, Parts string
	Tracing        bool
	InFlight       int
}

func (t Trial) key() key { return key{t.Subject, t.Parts, t.Tracing, t.InFlight} }

// groups returns the repetitions of each trial, and their keys in the order in
// which they were measured first.
func groups(trials []Trial) (keys []key, of map[key][]Trial) {
	of = map[key][]Trial{}
	for _, t := range trials {
		k := t.key()
		if of[k] == nil {
			keys = append(keys, k)
		}
		of[k] = append(of[k], t)
	}
	for _, k := range keys {
		slices.SortFunc(of[k], func(a, b Trial) int { return cmp.Compare(a.Repetition, b.Repetition) })
	}
	return keys, of
}

// spread is a figure of several repetitions.
type spread struct{ median, least, most float64 }

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + median) / 2
	}
	return spread{median, sorted[0], sorted[len(sorted)-1]}
}

// over returns a figure of the repetitions.
func over(trials []Trial, figure func(Trial) float64) spread {
	var values []float64
	for _, t := range trials {
		values = append(values, figure(t))
	}
	return spreadOf(values)
}

// ratios returns newer / older of a figure, one for each repetition that both
// have and in which the older is not 0.
func ratios(older, newer []Trial, figure func(Trial) float64) (all []float64) {
	for _, o := range older {
		for _, n := range newer {
			if before := figure(o); o.Repetition == n.Repetition && before != 0 {
				all = append(all, figure(n)/before)
			}
		}
	}
	return all
}

func readResults(file string) (r Results, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read results %s: %w", file, err)
	}
	return r, nil
}

func (r Results) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(text, '\n'), 0o644)
	}
	return err
}

package ms1

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/DataDog/sketches-go/ddsketch"

	"github.com/tricycle-relay/tricycle/lib/message"
)

// sketchAccuracy is the relative error of a percentile. The maximum is exact.
const sketchAccuracy = 0.01

// Hop sums up the times that messages took between two stamps, in seconds.
// Percentiles are within 1 % of the true value. A time is negative where the
// clocks of two machines differ by more than the hop took; Negative counts
// those.
type Hop struct {
	P50      float64 `json:"p50_seconds"`
	P95      float64 `json:"p95_seconds"`
	P99      float64 `json:"p99_seconds"`
	Max      float64 `json:"max_seconds"`
	Negative int64   `json:"negative"`
}

// Rounds is a value of each hop of the stored messages of a session.
type Rounds[T any] struct {
	ToMS2 T `json:"ms1_to_ms2"`
	ToMS3 T `json:"ms2_to_ms3"`
	ToMS1 T `json:"ms3_to_ms1"`
	Round T `json:"round"`

	// Commit is the time from the last stamp until the row is committed. It is nil
	// if it was computed from rows, which do not have it.
	Commit *T `json:"commit"`
}

// Hops sums up the rounds, hop by hop.
type Hops = Rounds[Hop]

// Distributions is what [Hops] sums up.
type Distributions = Rounds[Distribution]

func (h Hop) String() string {
	s := fmt.Sprintf("p50 %.3f ms, p95 %.3f ms, p99 %.3f ms, max %.3f ms", h.P50*1e3, h.P95*1e3, h.P99*1e3, h.Max*1e3)
	if h.Negative > 0 {
		s += fmt.Sprintf(", %d negative: the clocks differ", h.Negative)
	}
	return s
}

// hopMeter collects the hops of a session in bounded memory.
type hopMeter struct{ toMS2, toMS3, toMS1, round, commit timeSketch }

func newHopMeter() *hopMeter {
	m := &hopMeter{}
	for _, s := range []*timeSketch{&m.toMS2, &m.toMS3, &m.toMS1, &m.round, &m.commit} {
		s.sketch, _ = ddsketch.NewDefaultDDSketch(sketchAccuracy) // the only error is an accuracy beyond 0 to 1
		s.max = math.Inf(-1)
	}
	return m
}

func (m *hopMeter) add(h message.Hops) {
	m.toMS2.add(h.ToMS2.Seconds())
	m.toMS3.add(h.ToMS3.Seconds())
	m.toMS1.add(h.ToMS1.Seconds())
	m.round.add(h.Round.Seconds())
}

// rounds returns a value of what was collected of each hop, or nil if that is
// nothing.
func rounds[T any](m *hopMeter, of func(*timeSketch) T) *Rounds[T] {
	if m.round.sketch.IsEmpty() {
		return nil
	}
	r := &Rounds[T]{ToMS2: of(&m.toMS2), ToMS3: of(&m.toMS3), ToMS1: of(&m.toMS1), Round: of(&m.round)}
	if !m.commit.sketch.IsEmpty() {
		r.Commit = new(of(&m.commit))
	}
	return r
}

func (m *hopMeter) hops() *Hops { return rounds(m, (*timeSketch).hop) }

func (m *hopMeter) distributions() *Distributions { return rounds(m, (*timeSketch).distribution) }

// Bucket counts the messages whose hop took from From to less than To, in
// seconds.
type Bucket struct {
	From  float64 `json:"from_seconds"`
	To    float64 `json:"to_seconds"`
	Count int64   `json:"count"`
}

// Distribution is a hop with its histogram: ten buckets per decade above a
// microsecond, in their order, without empty ones. Negative times have none.
type Distribution struct {
	Hop
	Buckets []Bucket `json:"buckets"`
}

// copy returns what was collected until now.
func (m *hopMeter) copy() *hopMeter {
	return &hopMeter{toMS2: m.toMS2.copy(), toMS3: m.toMS3.copy(), toMS1: m.toMS1.copy(), round: m.round.copy(), commit: m.commit.copy()}
}

// since returns the hops that were collected after those of earlier, or nil if
// there are none. Their maxima are within 1 %.
func (m *hopMeter) since(earlier *hopMeter) *Hops {
	if m.round.sketch.GetCount() == earlier.round.sketch.GetCount() {
		return nil
	}
	h := &Hops{ToMS2: m.toMS2.since(earlier.toMS2), ToMS3: m.toMS3.since(earlier.toMS3), ToMS1: m.toMS1.since(earlier.toMS1), Round: m.round.since(earlier.round)}
	if m.commit.sketch.GetCount() > earlier.commit.sketch.GetCount() {
		h.Commit = new(m.commit.since(earlier.commit))
	}
	return h
}

const bucketsPerDecade = 10

func (s *timeSketch) distribution() Distribution {
	counts := map[int]int64{}
	s.sketch.ForEach(func(seconds, count float64) bool {
		if seconds >= 0 {
			counts[max(0, int(math.Floor(math.Log10(seconds*1e6)*bucketsPerDecade))+1)] += int64(count)
		}
		return false
	})
	edge := func(i int) float64 { return math.Round(1e3*math.Pow(10, float64(i)/bucketsPerDecade)) / 1e9 }
	d := Distribution{Hop: s.hop(), Buckets: []Bucket{}}
	for _, i := range slices.Sorted(maps.Keys(counts)) {
		b := Bucket{From: edge(i - 1), To: edge(i), Count: counts[i]}
		if i == 0 {
			b.From = 0
		}
		d.Buckets = append(d.Buckets, b)
	}
	return d
}

func (s timeSketch) copy() timeSketch {
	s.sketch = s.sketch.Copy()
	return s
}

// since sums up the times that were added after those of earlier.
func (s timeSketch) since(earlier timeSketch) Hop {
	added := map[float64]float64{}
	s.sketch.ForEach(func(seconds, count float64) bool { added[seconds] += count; return false })
	earlier.sketch.ForEach(func(seconds, count float64) bool { added[seconds] -= count; return false })
	total := s.sketch.GetCount() - earlier.sketch.GetCount()
	maps.DeleteFunc(added, func(_, count float64) bool { return count <= 0 })
	times := slices.Sorted(maps.Keys(added))
	quantile := func(q float64) (seconds float64) {
		rank := q * (total - 1)
		for _, seconds = range times {
			if rank -= added[seconds]; rank < 0 {
				break
			}
		}
		return math.Round(min(seconds, s.max)*1e6) / 1e6
	}
	return Hop{P50: quantile(0.50), P95: quantile(0.95), P99: quantile(0.99), Max: quantile(1), Negative: s.negative - earlier.negative}
}

type timeSketch struct {
	sketch   *ddsketch.DDSketch
	max      float64
	negative int64
}

func (s *timeSketch) add(seconds float64) {
	// The only error is a value beyond the sketch's range of 1e±308.
	_ = s.sketch.Add(seconds)
	s.max = max(s.max, seconds)
	if seconds < 0 {
		s.negative++
	}
}

func (s *timeSketch) hop() Hop {
	// The only error is an empty sketch.
	q, _ := s.sketch.GetValuesAtQuantiles([]float64{0.50, 0.95, 0.99})
	micro := func(seconds float64) float64 { return math.Round(min(seconds, s.max)*1e6) / 1e6 }
	return Hop{P50: micro(q[0]), P95: micro(q[1]), P99: micro(q[2]), Max: s.max, Negative: s.negative}
}

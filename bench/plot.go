package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// The drawing area of the plot, in pixels.
const (
	plotWidth, plotHeight   = 820.0, 520.0
	plotLeft, plotRight     = 70.0, 230.0
	plotTop, plotBottom     = 40.0, 60.0
	plotTitle               = "Round against load, by messages in flight"
	leastMillis, mostMillis = 0.1, 1000.0 // at least; the axis grows by decades
)

// line is the points of one subject with growing load.
type line struct {
	name   string
	points []point
}

type point struct {
	inFlight            int
	rate, p50, p99      float64 // messages/s, ms
	leastRate, mostRate float64
}

// lines returns a line for each subject, with the real parts if there are any.
func lines(r Results) (all []line, parts string) {
	keys, trials := groups(r.Trials)
	parts = "embedded"
	for _, k := range keys {
		if services(k) && k.Parts == "real" {
			parts = "real"
		}
	}
	at := map[string]int{}
	for _, k := range keys {
		if !services(k) || k.Parts != parts {
			continue
		}
		i, ok := at[k.title()]
		if !ok {
			i = len(all)
			at[k.title()] = i
			all = append(all, line{name: k.title()})
		}
		rate := over(trials[k], func(t Trial) float64 { return t.PerSecond })
		all[i].points = append(all[i].points, point{
			inFlight: k.InFlight, rate: rate.median, leastRate: rate.least, mostRate: rate.most,
			p50: over(trials[k], func(t Trial) float64 { return t.Times[round].P50 }).median / 1e3,
			p99: over(trials[k], func(t Trial) float64 { return t.Times[round].P99 }).median / 1e3,
		})
	}
	return all, parts
}

// writePlot draws latency against load as SVG: for each subject the median
// round as a full line, the 99th percentile as a dashed one, and a horizontal
// bar for the spread of the rate.
func writePlot(r Results, file string) error {
	all, parts := lines(r)
	most, low, high := 1.0, leastMillis, mostMillis
	for _, l := range all {
		for _, p := range l.points {
			most = max(most, p.mostRate)
			for p.p50 > 0 && p.p50 < low {
				low /= 10
			}
			for p.p99 > high {
				high *= 10
			}
		}
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	if most/step < 3 {
		step /= 2
	}
	most = math.Ceil(most/step) * step
	x := func(rate float64) float64 { return plotLeft + rate/most*(plotWidth-plotLeft-plotRight) }
	y := func(ms float64) float64 {
		return plotHeight - plotBottom - math.Log10(max(ms, low)/low)/math.Log10(high/low)*(plotHeight-plotTop-plotBottom)
	}
	var svg strings.Builder
	draw := func(format string, args ...any) { fmt.Fprintf(&svg, format+"\n", args...) }
	draw(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`, plotWidth, plotHeight)
	draw(`<rect width="100%%" height="100%%" fill="white"/>`)
	draw(`<text x="%g" y="22" font-size="15">%s, %s parts, %s</text>`, plotLeft, plotTitle, parts, r.Date.Format("2006-01-02"))
	for rate := 0.0; rate <= most; rate += step {
		draw(`<path d="M%.1f %.1fV%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="middle">%.0f</text>`,
			x(rate), y(low), y(high), x(rate), y(low)+18, rate)
	}
	for ms := low; ms <= high*1.001; ms *= 10 {
		draw(`<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%g</text>`,
			x(0), y(ms), x(most), x(0)-6, y(ms)+4, ms)
	}
	draw(`<text x="%.1f" y="%.1f" text-anchor="middle">messages/s</text>`, x(most/2), plotHeight-16)
	draw(`<text transform="translate(18 %.1f) rotate(-90)" text-anchor="middle">round, ms</text>`, (plotHeight-plotBottom+plotTop)/2)
	colours := []string{"#1b6ca8", "#c8553d", "#588157", "#8e5ea2", "#b08900", "#444444"}
	for i, l := range all {
		colour := colours[i%len(colours)]
		var p50, p99 []string
		for _, p := range l.points {
			p50 = append(p50, fmt.Sprintf("%.1f,%.1f", x(p.rate), y(p.p50)))
			p99 = append(p99, fmt.Sprintf("%.1f,%.1f", x(p.rate), y(p.p99)))
			draw(`<path d="M%.1f %.1fH%.1f" stroke="%s"/>`, x(p.leastRate), y(p.p50), x(p.mostRate), colour)
			draw(`<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/><text x="%.1f" y="%.1f" font-size="10" fill="%s">%d</text>`,
				x(p.rate), y(p.p50), colour, x(p.rate)+5, y(p.p50)+12, colour, p.inFlight)
		}
		draw(`<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"/>`, strings.Join(p50, " "), colour)
		draw(`<polyline points="%s" fill="none" stroke="%s" stroke-dasharray="5 3"/>`, strings.Join(p99, " "), colour)
		at := plotTop + 20*float64(i)
		draw(`<path d="M%g %gh24" stroke="%s" stroke-width="2"/><text x="%g" y="%g">%s</text>`,
			plotWidth-plotRight+20, at, colour, plotWidth-plotRight+50, at+4, html.EscapeString(l.name))
	}
	draw(`<text x="%g" y="%g" font-size="11">full: p50, dashed: p99</text>`, plotWidth-plotRight+20, plotTop+20*float64(len(all))+4)
	draw(`</svg>`)
	return os.WriteFile(file, []byte(svg.String()), 0o644)
}

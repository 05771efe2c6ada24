package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Counter registers a counter. It panics if the registry has one of that name.
func Counter(registry prometheus.Registerer, name, help string) prometheus.Counter {
	return promauto.With(registry).NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// Counters registers a counter for each value of a label. It reports the given
// values as 0 from the start. It panics as [Counter] does.
func Counters(registry prometheus.Registerer, name, help, label string, values ...string) *prometheus.CounterVec {
	c := promauto.With(registry).NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, v := range values {
		c.WithLabelValues(v)
	}
	return c
}

package httpserver

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/logging"
)

// probeTimeout is the time-out of a readiness check.
const probeTimeout = 2 * time.Second

// Check is a readiness check of a dependency.
type Check struct {
	Name  string
	Probe func(ctx context.Context) error // nil when the dependency can be used
}

// Health returns the routes for monitoring: /metrics; /healthz,
// which answers 200 as long as the process serves at all; and /readyz, which
// answers 200 when every check passes and 503 otherwise, and names each check
// with "ok" or "not ready". Anybody may ask, so the causes are only logged,
// whenever one changes.
//
// /readyz?exclude=NAME leaves a check out; the parameter may be repeated.
//
// /metrics has the outcome of each check as well, and the exemplars for clients
// that accept the OpenMetrics format.
func Health(log zerolog.Logger, metrics prometheus.Gatherer, checks ...Check) Routes {
	causes := causes{log: logging.Limit(log), last: map[string]string{}}
	readiness := prometheus.NewRegistry()
	for _, c := range checks { // each runs at every scrape
		promauto.With(readiness).NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tricycle_dependency_ready", Help: "1 if the check of /readyz passes, otherwise 0.", ConstLabels: prometheus.Labels{"dependency": c.Name},
		}, func() float64 {
			if Probe(context.Background(), []Check{c})[c.Name] != nil {
				return 0
			}
			return 1
		})
	}
	all := prometheus.Gatherers{metrics, readiness}
	return Routes{
		"/metrics": ReadOnly(promhttp.HandlerFor(all, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP),
		"/healthz": ReadOnly(func(w http.ResponseWriter, _ *http.Request) {
			JSON(w, http.StatusOK, map[string]string{"status": "alive"})
		}),
		"/readyz": ReadOnly(func(w http.ResponseWriter, r *http.Request) {
			exclude := r.URL.Query()["exclude"]
			asked := slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return slices.Contains(exclude, c.Name) })
			results := Probe(r.Context(), asked)
			if r.Context().Err() == nil {
				causes.note(results)
			}
			status, code := "ready", http.StatusOK
			for _, err := range results {
				if err != nil {
					status, code = "not ready", http.StatusServiceUnavailable
				}
			}
			JSON(w, code, map[string]any{"status": status, "checks": States(results)})
		}),
	}
}

// States returns "ok" or "not ready" for each outcome of [Probe].
func States(results map[string]error) map[string]string {
	states := make(map[string]string, len(results))
	for name, err := range results {
		states[name] = "ok"
		if err != nil {
			states[name] = "not ready"
		}
	}
	return states
}

// causes logs why checks fail.
type causes struct {
	log  zerolog.Logger
	mu   sync.Mutex
	last map[string]string
}

func (c *causes) note(results map[string]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, err := range results {
		if err == nil {
			delete(c.last, name)
		} else if text := err.Error(); c.last[name] != text {
			if event := c.log.Info(); event.Enabled() { // otherwise too soon after another one: logged at the next request
				c.last[name] = text
				event.Str("check", name).Err(err).Msg("dependency not ready")
			}
		}
	}
}

// Probe runs the checks side by side, each for two seconds at most, and
// returns the outcome of each by its name.
func Probe(ctx context.Context, checks []Check) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	results := make(map[string]error, len(checks))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, c := range checks {
		wg.Go(func() {
			err := c.Probe(ctx)
			mu.Lock()
			defer mu.Unlock()
			results[c.Name] = err
		})
	}
	wg.Wait()
	return results
}

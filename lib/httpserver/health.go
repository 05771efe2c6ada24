package httpserver

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

// probeTimeout is how long a readiness check may take before it counts as
// failed.
const probeTimeout = 2 * time.Second

// Check is a dependency that a service cannot do without.
type Check struct {
	Name  string
	Probe func(ctx context.Context) error // nil when the dependency can be used
}

// Health returns the routes /healthz, which answers 200 as long as the process
// serves at all, and /readyz, which answers 200 when every check passes and
// 503 otherwise, and names each check with "ok" or its error.
//
// /readyz?exclude=NAME leaves a check out; the parameter may be repeated.
func Health(checks ...Check) Routes {
	return Routes{
		"/healthz": ReadOnly(func(w http.ResponseWriter, _ *http.Request) {
			JSON(w, http.StatusOK, map[string]string{"status": "alive"})
		}),
		"/readyz": ReadOnly(func(w http.ResponseWriter, r *http.Request) {
			exclude := r.URL.Query()["exclude"]
			asked := slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return slices.Contains(exclude, c.Name) })
			status, code, results := "ready", http.StatusOK, map[string]string{}
			for name, err := range Probe(r.Context(), asked) {
				results[name] = "ok"
				if err != nil {
					status, code, results[name] = "not ready", http.StatusServiceUnavailable, err.Error()
				}
			}
			JSON(w, code, map[string]any{"status": status, "checks": results})
		}),
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

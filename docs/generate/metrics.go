package generate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms1/websocket"
	"github.com/tricycle-relay/tricycle/services/ms2"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// services construct each service as its program does, to collect its metrics.
// None of them runs.
var services = map[string]func(*telemetry.Telemetry) error{
	"ms1": func(t *telemetry.Telemetry) error {
		directory, err := os.MkdirTemp("", "generate")
		if err != nil {
			return err
		}
		defer os.RemoveAll(directory)
		store, err := sqlite.Open(filepath.Join(directory, "tricycle.db"), zerolog.Nop())
		if err != nil {
			return err
		}
		c := ms1.Defaults()
		c.Listen = "127.0.0.1:0"
		s, err := ms1.New(c, store, websocket.New(c.MS2.URL, c.MS2.Access, zerolog.Nop()), zerolog.Nop(), t)
		return runStopped(s, err)
	},
	"ms2": func(t *telemetry.Telemetry) error {
		c := ms2.Defaults()
		c.Listen = "127.0.0.1:0"
		s, err := ms2.New(c, zerolog.Nop(), t)
		return runStopped(s, err)
	},
	"ms3": func(t *telemetry.Telemetry) error {
		c := ms3.Defaults()
		c.Listen = "127.0.0.1:0"
		s, err := ms3.New(c, zerolog.Nop(), t)
		return runStopped(s, err)
	},
}

// runStopped runs a service and stops it at once, which releases its port.
func runStopped(s interface{ Run(context.Context) error }, err error) error {
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	stop()
	return s.Run(ctx)
}

// gather returns the metrics of a new service.
func gather(service string) (_ []*dto.MetricFamily, err error) {
	ctx := context.Background()
	c := telemetry.Defaults()
	c.Endpoint = "http://127.0.0.1:4318" // nothing is sent: nothing happens
	t, err := telemetry.New(ctx, c, service, "", zerolog.Nop())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Shutdown(ctx)) }()
	if err := services[service](t); err != nil {
		return nil, err
	}
	return t.Metrics.Gather()
}

func metricsPage(_ *Source, pages map[string]string) error {
	p := newPage("Metrics", "Each service answers `GET /metrics` in the Prometheus text format. All metrics exist, as 0, from the start, those\n"+
		"of spans only with `tracing.endpoint`. Every service also has `go_…` and `process_…` of the Prometheus client; `tricycle_log_lines_dropped_total`: log lines that the `output`\n"+
		"`console` or `file` did not accept; and `tricycle_dependency_ready`: 1 if the check of /readyz for this `dependency` passes,\n"+
		"otherwise 0. With the OpenMetrics format, the histogram of the hops has the trace ids of some messages as exemplars.")
	for _, service := range slices.Sorted(maps.Keys(services)) {
		families, err := gather(service)
		if err != nil {
			return err
		}
		p.linef("## %s\n", service)
		var rows [][]string
		for _, f := range families {
			if !strings.HasPrefix(f.GetName(), "tricycle_") {
				if !strings.HasPrefix(f.GetName(), "go_") && !strings.HasPrefix(f.GetName(), "process_") {
					return fmt.Errorf("metric %s: must begin with tricycle_", f.GetName())
				}
				continue
			}
			rows = append(rows, []string{code(f.GetName()), strings.ToLower(f.GetType().String()), unitOf(f.GetName()), labels(f), f.GetHelp() + buckets(f)})
		}
		p.table([]string{"metric", "type", "unit", "labels", "meaning"}, rows)
	}
	pages["metrics.md"] = p.text()
	return nil
}

func labels(f *dto.MetricFamily) string {
	values := map[string][]string{}
	for _, m := range f.Metric {
		for _, l := range m.Label {
			values[l.GetName()] = append(values[l.GetName()], l.GetValue())
		}
	}
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		texts = append(texts, code(name)+": "+codes(values[name]))
	}
	return strings.Join(texts, "; ")
}

func buckets(f *dto.MetricFamily) string {
	h := f.Metric[0].GetHistogram()
	if h == nil {
		return ""
	}
	n := len(h.Bucket)
	return fmt.Sprintf(" %d buckets from %.3g to %.3g.", n, h.Bucket[0].GetUpperBound(), h.Bucket[n-1].GetUpperBound())
}

package program

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// flushTimeout bounds the wait for the last spans when a program ends.
const flushTimeout = 1500 * time.Millisecond

// Observe runs a service with its log and its telemetry, logs its start and
// its end, and puts both away when it has ended, the spans last.
func Observe(ctx context.Context, service string, l logging.Config, t telemetry.Config, console io.Writer,
	run func(log zerolog.Logger, tel *telemetry.Telemetry) error) (err error) {
	log, output, err := logging.New(l, service, console)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, output.Close()) }()
	tel, err := telemetry.New(ctx, t, service, Version, log)
	if err != nil {
		return err
	}
	dropped := func(output string, count func() int) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "tricycle_log_lines_dropped_total", Help: "Lines of the log that an output did not take, by output: console or file.",
			ConstLabels: prometheus.Labels{"output": output},
		}, func() float64 { return float64(count()) })
	}
	tel.Metrics.MustRegister(
		dropped("console", func() int { n, _ := output.Dropped(); return n }),
		dropped("file", func() int { _, n := output.Dropped(); return n }))
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := tel.Shutdown(flush); err != nil {
			log.Warn().Err(err).Msg("the last spans were not all sent")
		}
	}()
	log.Info().Str("version", Version).Msgf("%s is starting", service)
	err = run(log, tel)
	log.Info().AnErr("error", err).Msgf("%s has stopped", service)
	return err
}

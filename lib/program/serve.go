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

// Observability is the sections with which each configuration ends.
type Observability struct {
	Tracing   telemetry.Config `yaml:"tracing"`
	Logging   logging.Config   `yaml:"logging"`
	Profiling Profiling        `yaml:"profiling"`
}

// ObservabilityDefaults returns the default configuration.
func ObservabilityDefaults() Observability {
	return Observability{telemetry.Defaults(), logging.Defaults(), Profiling{Listen: "127.0.0.1:6060"}}
}

// Validate returns an error for each key that is out of range.
func (c Observability) Validate() error {
	return errors.Join(c.Tracing.Validate(), c.Logging.Validate(), c.Profiling.Validate())
}

// Service is a service that listens and does not serve yet.
type Service interface {
	// Address returns the address that it listens on, with the real port.
	Address() string
	// Run serves until ctx is cancelled.
	Run(ctx context.Context) error
}

// Create returns a service of the configuration, with this log and telemetry.
type Create[C any, S Service] func(c C, log zerolog.Logger, tel *telemetry.Telemetry) (S, error)

// Serve creates a service with its configuration, log and telemetry, calls
// listening, unless that is nil, and runs the service. It logs start and end, and
// closes log and telemetry when the service has ended; the last spans are exported
// before.
func Serve[C any, S Service](ctx context.Context, name string, c C, o Observability, console io.Writer, create Create[C, S], listening func(S)) (err error) {
	log, output, err := logging.New(o.Logging, name, console)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, output.Close()) }()
	tel, err := telemetry.New(ctx, o.Tracing, name, Version, log)
	if err != nil {
		return err
	}
	for name, out := range map[string]*logging.Output{"console": output.Console, "file": output.File} {
		tel.Metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "tricycle_log_lines_dropped_total", Help: "Log lines that an output did not accept, by output: console or file.",
			ConstLabels: prometheus.Labels{"output": name},
		}, func() float64 { return float64(out.Dropped()) }))
	}
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := tel.Shutdown(flush); err != nil {
			log.Warn().Err(err).Msg("last spans not exported")
		}
	}()
	log.Info().Str("version", Version).Msg("starting")
	service, err := create(c, log, tel)
	if err == nil {
		log.Info().Str("address", service.Address()).Msg("started")
		if listening != nil {
			listening(service)
		}
		err = service.Run(ctx)
	}
	log.Err(err).Msg("stopped") // at level info without an error
	return err
}

package program

import (
	"context"
	"errors"
	"io"
	"time"

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
	log, file, err := logging.New(l, service, console)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	tel, err := telemetry.New(ctx, t, service, Version, log)
	if err != nil {
		return err
	}
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

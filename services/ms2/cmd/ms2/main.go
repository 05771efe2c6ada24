// Command ms2 runs the second service of the cycle: WebSocket in, Kafka out.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/services/ms2"
)

const flushTimeout = 2 * time.Second // for the spans that wait at the end

func main() {
	os.Exit(program.Main(context.Background(), command(), os.Args[1:], os.Stdout, os.Stderr))
}

func command() program.Program[ms2.Config] {
	return program.Program[ms2.Config]{
		Name:    "ms2",
		Purpose: "takes messages from MS1 over a WebSocket and hands them to MS3 through Kafka",
		Config:  ms2.Defaults(),
		Ready:   func(c ms2.Config) (address, path string) { return c.Listen, "/readyz" },
		Run:     run,
	}
}

func run(ctx context.Context, c ms2.Config, console io.Writer) (err error) {
	log, file, err := logging.New(c.Logging, "ms2", console)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	t, err := telemetry.New(ctx, c.Tracing, "ms2", program.Version, log)
	if err != nil {
		return err
	}
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if err := t.Shutdown(flush); err != nil {
			log.Warn().Err(err).Msg("the last spans were not all sent")
		}
	}()
	service, err := ms2.New(c, log, t)
	if err != nil {
		return err
	}
	log.Info().Str("version", program.Version).Str("address", service.Address()).Strs("brokers", c.Kafka.Brokers).Msg("ms2 has started")
	err = service.Run(ctx)
	log.Info().AnErr("error", err).Msg("ms2 has stopped")
	return err
}

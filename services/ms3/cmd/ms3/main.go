// Command ms3 runs the third service of the cycle: Kafka in, HTTP out.
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
	"github.com/tricycle-relay/tricycle/services/ms3"
)

const flushTimeout = 2 * time.Second // for the spans that wait at the end

func main() {
	os.Exit(program.Main(context.Background(), command(), os.Args[1:], os.Stdout, os.Stderr))
}

func command() program.Program[ms3.Config] {
	return program.Program[ms3.Config]{
		Name:    "ms3",
		Purpose: "takes messages from Kafka and posts them to MS1",
		Config:  ms3.Defaults(),
		// MS1 stops first, and drains through MS3: its absence is no reason to
		// restart this.
		Ready: func(c ms3.Config) (address, path string) { return c.Listen, "/readyz?exclude=ms1" },
		Run:   run,
	}
}

func run(ctx context.Context, c ms3.Config, console io.Writer) (err error) {
	log, file, err := logging.New(c.Logging, "ms3", console)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	t, err := telemetry.New(ctx, c.Tracing, "ms3", program.Version, log)
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
	service, err := ms3.New(c, log, t)
	if err != nil {
		return err
	}
	log.Info().Str("version", program.Version).Str("address", service.Address()).Strs("brokers", c.Kafka.Brokers).Str("ms1", c.MS1.URL).Msg("ms3 has started")
	err = service.Run(ctx)
	log.Info().AnErr("error", err).Msg("ms3 has stopped")
	return err
}

// Command ms1 runs the first service of the cycle: it opens sessions, sends
// messages, receives them back and stores them in MariaDB.
package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
)

func main() {
	os.Exit(program.Main(context.Background(), command(), os.Args[1:], os.Stdout, os.Stderr))
}

// settings is MS1's configuration with that of its store.
type settings struct {
	ms1.Config
	Database mariadb.Config `yaml:"database"`
}

func (c settings) Validate() error { return errors.Join(c.Config.Validate(), c.Database.Validate()) }

func command() program.Program[settings] {
	return program.Program[settings]{
		Name:    "ms1",
		Purpose: "opens sessions, sends messages to MS2, takes them back from MS3 and stores them",
		Config:  settings{ms1.Defaults(), mariadb.Defaults()},
		Serves: func(c settings) program.Served {
			return program.Served{Address: c.Listen, Ready: "/readyz", TLS: c.TLS.CertificateFile != "", Profiling: c.Profiling}
		},
		Run: func(ctx context.Context, c settings, console io.Writer) error {
			open := func(log zerolog.Logger) (ms1.Store, error) { return mariadb.Open(c.Database, log) }
			return ms1.Run(ctx, c.Config, console, open, nil)
		},
	}
}

package mariadb

import (
	"context"
	"errors"
	"io"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/services/ms1"
)

// Settings is MS1's configuration with that of its store.
type Settings struct {
	ms1.Config
	Database Config `yaml:"database"`
}

// Validate returns an error for each key that is out of range.
func (c Settings) Validate() error { return errors.Join(c.Config.Validate(), c.Database.Validate()) }

// Program returns the command of MS1, which stores in MariaDB.
func Program() program.Program[Settings] {
	return program.Program[Settings]{
		Name:    "ms1",
		Purpose: "opens sessions, sends messages to MS2, takes them back from MS3 and stores them",
		Config:  Settings{ms1.Defaults(), Defaults()},
		Serves: func(c Settings) program.Served {
			return program.Served{Endpoint: c.Endpoint, Ready: "/readyz", Observability: c.Observability}
		},
		Run: func(ctx context.Context, c Settings, console io.Writer) error {
			open := func(log zerolog.Logger) (ms1.Store, error) { return Open(c.Database, log) }
			return ms1.Run(ctx, c.Config, console, open, nil)
		},
	}
}

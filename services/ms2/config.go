package ms2

import (
	"errors"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// Config is the configuration of MS2.
type Config struct {
	httpserver.Endpoint `yaml:",inline"`

	TokenFile string       `yaml:"token_file"` // holds the bearer token that the handshake requires, on one line; read again when it changes; empty: none
	Kafka     topic.Config `yaml:"kafka"`

	program.Observability `yaml:",inline"`
}

// Defaults returns the default configuration.
func Defaults() Config {
	return Config{
		Endpoint:      httpserver.Endpoint{Listen: "127.0.0.1:8081", AllowedHosts: []string{}},
		Kafka:         topic.Defaults(),
		Observability: program.ObservabilityDefaults(),
	}
}

// Validate returns an error for each key that is out of range.
func (c *Config) Validate() error {
	return errors.Join(c.Endpoint.Validate(), c.Kafka.Validate(), c.Observability.Validate())
}

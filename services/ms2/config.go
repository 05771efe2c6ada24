package ms2

import (
	"errors"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// Config is the configuration of MS2.
type Config struct {
	Listen       string           `yaml:"listen"`        // host:port of WebSocket, health and metrics; port 0 for a free one
	AllowedHosts []string         `yaml:"allowed_hosts"` // names with a dot by which clients address the service; IP addresses, localhost and names without a dot need no entry
	TLS          credentials.Pair `yaml:"tls"`
	TokenFile    string           `yaml:"token_file"` // holds the bearer token that the handshake requires, on one line; read again when it changes; empty: none
	Kafka        topic.Config     `yaml:"kafka"`

	program.Observability `yaml:",inline"`
}

// Defaults returns the default configuration.
func Defaults() Config {
	return Config{
		Listen:        "127.0.0.1:8081",
		AllowedHosts:  []string{},
		Kafka:         topic.Defaults(),
		Observability: program.ObservabilityDefaults(),
	}
}

// Validate returns an error for each key that is out of range.
func (c *Config) Validate() error {
	return errors.Join(config.HostPort("listen", c.Listen, 0), config.HostNames("allowed_hosts", c.AllowedHosts), c.TLS.Validate("tls"), c.Kafka.Validate(), c.Observability.Validate())
}

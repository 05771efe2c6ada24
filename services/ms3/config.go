package ms3

import (
	"errors"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// maxBatch messages in a request are the most that MS1 takes.
const maxBatch = 64

// Config is the configuration of MS3.
type Config struct {
	httpserver.Endpoint `yaml:",inline"`

	MS1     MS1          `yaml:"ms1"`
	Workers int          `yaml:"workers"`  // requests to MS1 in flight at once
	GroupID string       `yaml:"group_id"` // of the consumer group, whose members share the partitions
	Kafka   topic.Config `yaml:"kafka"`

	program.Observability `yaml:",inline"`
}

// MS1 configures the requests to MS1.
type MS1 struct {
	URL                string `yaml:"url"` // of MS1's /store
	credentials.Access `yaml:",inline"`
	BatchMessages      int `yaml:"batch_messages"` // at most in one request, where several wait; 1: each has its own request
}

// Defaults returns the default configuration.
func Defaults() Config {
	return Config{
		Endpoint:      httpserver.Endpoint{Listen: "127.0.0.1:8082", AllowedHosts: []string{}},
		MS1:           MS1{URL: "http://127.0.0.1:8080/store", BatchMessages: maxBatch},
		Workers:       64,
		GroupID:       "tricycle-ms3",
		Kafka:         topic.Defaults(),
		Observability: program.ObservabilityDefaults(),
	}
}

// Validate returns an error that names each key out of range.
func (c *Config) Validate() error {
	var group error
	if c.GroupID == "" {
		group = errors.New(`group_id: must be a name, got ""`)
	}
	return errors.Join(
		c.Endpoint.Validate(),
		config.URL("ms1.url", c.MS1.URL, "http://host:port/store"),
		config.InRange("ms1.batch_messages", c.MS1.BatchMessages, 1, maxBatch),
		config.InRange("workers", c.Workers, 1, 1024),
		group, c.Kafka.Validate(), c.Observability.Validate())
}

package ms3

import (
	"errors"
	"fmt"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

// Config is the configuration of MS3.
type Config struct {
	Listen       string           `yaml:"listen"`        // host:port of health and metrics; port 0 for a free one
	AllowedHosts []string         `yaml:"allowed_hosts"` // names with a dot by which clients address the service; IP addresses, localhost and names without a dot need no entry
	MS1          MS1              `yaml:"ms1"`
	Workers      int              `yaml:"workers"`  // requests to MS1 under way at once
	GroupID      string           `yaml:"group_id"` // of the consumer group, whose members share the partitions
	Kafka        topic.Config     `yaml:"kafka"`
	Tracing      telemetry.Config `yaml:"tracing"`
	Logging      logging.Config   `yaml:"logging"`
}

// MS1 says where messages are stored.
type MS1 struct {
	URL string `yaml:"url"` // that messages are posted to
}

// Defaults returns the configuration of a program that is told nothing.
func Defaults() Config {
	return Config{
		Listen:       "127.0.0.1:8082",
		AllowedHosts: []string{},
		MS1:          MS1{URL: "http://127.0.0.1:8080/store"},
		Workers:      64,
		GroupID:      "tricycle-ms3",
		Kafka:        topic.Defaults(),
		Tracing:      telemetry.Defaults(),
		Logging:      logging.Defaults(),
	}
}

// Validate names the keys that are out of range.
func (c *Config) Validate() error {
	var group error
	if c.GroupID == "" {
		group = fmt.Errorf("group_id: found %q, expected a name", c.GroupID)
	}
	return errors.Join(
		config.HostPort("listen", c.Listen, 0), config.HostNames("allowed_hosts", c.AllowedHosts),
		config.URL("ms1.url", c.MS1.URL, "http", "https"),
		config.InRange("workers", c.Workers, 1, 1024),
		group, c.Kafka.Validate(), c.Tracing.Validate(), c.Logging.Validate())
}

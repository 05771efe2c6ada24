package allinone

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// Config is the configuration of all three services. Its sections are theirs.
type Config struct {
	Listen       string                `yaml:"listen"`        // host:port of MS1; the others take free loopback ports
	AllowedHosts []string              `yaml:"allowed_hosts"` // names with a dot by which clients address MS1; IP addresses, localhost and names without a dot need no entry
	Data         string                `yaml:"data"`          // folder of everything that is embedded, and of the logs; it is made
	Once         bool                  `yaml:"once"`          // run one session at once, then end; a session of another client is waited for
	Interaction  ms1.InteractionConfig `yaml:"interaction"`
	Workers      int                   `yaml:"workers"`  // MS3's requests to MS1 under way at once
	GroupID      string                `yaml:"group_id"` // MS3's consumer group
	Kafka        topic.Config          `yaml:"kafka"`    // without brokers: the embedded one
	Database     mariadb.Config        `yaml:"database"` // without address: the embedded one
	Tracing      telemetry.Config      `yaml:"tracing"`
	Logging      logging.Config        `yaml:"logging"`
	Profiling    program.Profiling     `yaml:"profiling"`
}

// Defaults returns the configuration of a program that is told nothing: it
// needs nothing but the folder that it makes.
func Defaults() Config {
	one, three := ms1.Defaults(), ms3.Defaults()
	c := Config{
		Listen:       one.Listen,
		AllowedHosts: one.AllowedHosts,
		Data:         "./tricycle-data",
		Interaction:  one.Interaction,
		Workers:      three.Workers,
		GroupID:      three.GroupID,
		Kafka:        topic.Defaults(),
		Database:     mariadb.Defaults(),
		Tracing:      one.Tracing,
		Logging:      one.Logging,
		Profiling:    one.Profiling,
	}
	c.Kafka.Brokers, c.Database.Address = nil, ""
	// What MS3 has not fetched yet is never more than MS1 has under way, about
	// 2 MB, and the embedded broker reads its whole log when it starts.
	c.Kafka.RetentionMegabytes = 16
	return c
}

// Validate names the keys that are out of range.
func (c *Config) Validate() error {
	var data, file, database error
	if c.Data == "" {
		data = errors.New("data: found nothing, expected the path of a folder")
	}
	if c.Logging.File != "" {
		file = fmt.Errorf("logging.file: found %q, expected nothing: each service has its own log in the folder of data", c.Logging.File)
	}
	if c.Database.Address != "" {
		database = c.Database.Validate()
	}
	// Each section is looked at by one service that has it.
	three := ms3.Defaults()
	three.Workers, three.GroupID, three.Kafka = c.Workers, c.GroupID, c.Kafka
	if len(c.Kafka.Brokers) == 0 {
		three.Kafka.Brokers = topic.Defaults().Brokers
	}
	return errors.Join(c.ms1("ms2:1").Validate(), three.Validate(), data, file, database)
}

// ms1 returns the configuration of MS1, given the address of MS2.
func (c *Config) ms1(ms2 string) ms1.Config {
	return ms1.Config{
		Listen: c.Listen, AllowedHosts: c.AllowedHosts, Interaction: c.Interaction, MS2: ms1.MS2Config{URL: "ws://" + ms2 + "/ws"},
		Tracing: c.Tracing, Logging: c.log("ms1"), Profiling: c.Profiling,
	}
}

// log returns the section 'logging' of one service.
func (c *Config) log(service string) logging.Config {
	l := c.Logging
	l.File = filepath.Join(c.Data, service+".log")
	return l
}

package allinone

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// Config is the configuration of all three services. Its sections are theirs.
type Config struct {
	Listen       string                `yaml:"listen"`        // host:port of MS1; the others take free loopback ports
	AllowedHosts []string              `yaml:"allowed_hosts"` // names with a dot by which clients address MS1; IP addresses, localhost and names without a dot need no entry
	Data         string                `yaml:"data"`          // directory of the embedded parts and the logs; it is created
	Once         bool                  `yaml:"once"`          // run one session, then exit; a session of another client is waited for
	Open         bool                  `yaml:"open"`          // open MS1's page in a browser; not with once
	TokenFile    string                `yaml:"token_file"`    // holds the bearer token that /start, /stop and /store require, on one line; read again when it changes; empty: none
	Interaction  ms1.InteractionConfig `yaml:"interaction"`
	Workers      int                   `yaml:"workers"`  // concurrent requests of MS3 to MS1
	GroupID      string                `yaml:"group_id"` // MS3's consumer group
	Kafka        topic.Config          `yaml:"kafka"`    // without brokers: the embedded one
	Database     mariadb.Config        `yaml:"database"` // without address: the embedded one

	program.Observability `yaml:",inline"`
}

// Program returns the command.
func Program() program.Program[Config] {
	return program.Program[Config]{
		Name:    "allinone",
		Purpose: "runs MS1, MS2 and MS3 in one process, with what they need",
		Config:  Defaults(),
		Flags: func(flags *flag.FlagSet, c *Config) {
			flags.StringVar(&c.Listen, "listen", c.Listen, "listen for MS1's requests on `ADDR`, host:port")
			flags.StringVar(&c.Data, "data", c.Data, "keep database, broker and logs in the directory `DIR`")
			flags.BoolVar(&c.Once, "once", c.Once, "run one session at once and exit: 0, or 1 if a message of it was lost")
			flags.BoolVar(&c.Open, "open", c.Open, "open MS1's page in a browser; not with -once")
			flags.Var((*whole)(&c.Interaction.IntervalSeconds), "interval", "generate messages for `SECONDS` in a session")
			flags.Var((*whole)(&c.Interaction.InFlight), "in-flight", "keep `N` messages in flight")
		},
		Serves: func(c Config) program.Served {
			return program.Served{Endpoint: httpserver.Endpoint{Listen: c.Listen}, Ready: "/readyz", Observability: c.Observability}
		},
		Run: Run,
	}
}

// whole is the value of a flag that is a whole number. The package flag reads 010
// as 8.
type whole int

// String implements [flag.Value].
func (w *whole) String() string { return strconv.Itoa(int(*w)) }

// Set implements [flag.Value].
func (w *whole) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(n) != text {
		return errors.New("expected a whole number")
	}
	*w = whole(n)
	return nil
}

// Defaults returns the default configuration, which needs only a directory.
func Defaults() Config {
	one, three := ms1.Defaults(), ms3.Defaults()
	c := Config{
		Listen:        one.Listen,
		AllowedHosts:  one.AllowedHosts,
		Data:          "./tricycle-data",
		Interaction:   one.Interaction,
		Workers:       three.Workers,
		GroupID:       three.GroupID,
		Kafka:         topic.Defaults(),
		Database:      mariadb.Defaults(),
		Observability: one.Observability,
	}
	c.Kafka.Brokers, c.Database.Address = nil, ""
	// The broker reads its whole log at start. MS1 has at most about 2 MB in
	// flight.
	c.Kafka.RetentionMegabytes = 16
	return c
}

// Validate returns an error for each key that is out of range.
func (c *Config) Validate() error {
	var data, file, database error
	if c.Data == "" {
		data = errors.New(`data: must be the path of a directory, got ""`)
	}
	if c.Logging.File != "" {
		file = fmt.Errorf("logging.file: must be empty as each service logs to its own file in data, got %q", c.Logging.File)
	}
	if c.Database.Address != "" {
		database = c.Database.Validate()
	}
	// Each section is validated by one service that has it.
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
		Endpoint:    httpserver.Endpoint{Listen: c.Listen, AllowedHosts: c.AllowedHosts},
		Interaction: c.Interaction, MS2: ms1.MS2Config{URL: "ws://" + ms2 + "/ws", Access: c.access()},
		TokenFile: c.TokenFile, Observability: c.observability("ms1"),
	}
}

// access returns how the services reach each other.
func (c *Config) access() credentials.Access { return credentials.Access{TokenFile: c.TokenFile} }

// observability returns the sections of a service, which has a log file of its own.
func (c *Config) observability(service string) program.Observability {
	o := c.Observability
	o.Logging.File = filepath.Join(c.Data, service+".log")
	return o
}

package ms1

import (
	"errors"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/program"
)

// Config is the configuration of MS1 without its database, which belongs to the
// store.
type Config struct {
	httpserver.Endpoint `yaml:",inline"`

	TokenFile   string            `yaml:"token_file"` // holds the bearer token that /start, /stop and /store require, on one line; read again when it changes; empty: none
	Interaction InteractionConfig `yaml:"interaction"`
	MS2         MS2Config         `yaml:"ms2"`

	program.Observability `yaml:",inline"`
}

// InteractionConfig is the section 'interaction'.
type InteractionConfig struct {
	IntervalSeconds    int `yaml:"interval_seconds"`      // how long a session generates messages
	InFlight           int `yaml:"in_flight"`             // messages in flight at once; 1: the next is sent when the last has returned
	ResendAfterSeconds int `yaml:"resend_after_seconds"`  // time after which a message that did not return is resent; it doubles, up to 20
	GiveUpAfterSeconds int `yaml:"give_up_after_seconds"` // counted from the first send, then the message is lost
	DrainSeconds       int `yaml:"drain_seconds"`         // how long /stop and SIGTERM wait for messages in flight
}

// MS2Config is the section 'ms2'.
type MS2Config struct {
	URL                string `yaml:"url"` // of MS2's WebSocket
	credentials.Access `yaml:",inline"`
}

// Limits of an interaction's parameters, in the configuration and in the query
// of /start.
const (
	MaxIntervalSeconds = 86400
	MaxInFlight        = 4096
)

// maxResend is the longest wait between two sends of a message.
const maxResend = 20 * time.Second

// Defaults returns the default configuration.
func Defaults() Config {
	return Config{
		Endpoint: httpserver.Endpoint{Listen: "127.0.0.1:8080", AllowedHosts: []string{}},
		Interaction: InteractionConfig{
			IntervalSeconds:    10,
			InFlight:           1,
			ResendAfterSeconds: 5,
			GiveUpAfterSeconds: 60,
			DrainSeconds:       4,
		},
		MS2:           MS2Config{URL: "ws://127.0.0.1:8081/ws"},
		Observability: program.ObservabilityDefaults(),
	}
}

// Validate names the keys that are out of range.
func (c Config) Validate() error {
	return errors.Join(
		c.Endpoint.Validate(), c.Interaction.Validate(),
		config.URL("ms2.url", c.MS2.URL, "ws://host:port/ws"), c.Observability.Validate(),
	)
}

// Validate names the keys that are out of range.
func (c InteractionConfig) Validate() error {
	return errors.Join(
		config.InRange("interaction.interval_seconds", c.IntervalSeconds, 1, MaxIntervalSeconds),
		config.InRange("interaction.in_flight", c.InFlight, 1, MaxInFlight),
		config.InRange("interaction.resend_after_seconds", c.ResendAfterSeconds, 1, int(maxResend/time.Second)),
		config.InRange("interaction.give_up_after_seconds", c.GiveUpAfterSeconds, 1, 3600),
		config.InRange("interaction.drain_seconds", c.DrainSeconds, 1, 60),
	)
}

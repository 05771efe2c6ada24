package topic

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/credentials"
)

// mechanism returns kafka-go's mechanism of that name.
func mechanism(name, user, password string) (sasl.Mechanism, error) {
	switch name {
	case "PLAIN":
		return plain.Mechanism{Username: user, Password: password}, nil
	case scram.SHA256.Name():
		return scram.Mechanism(scram.SHA256, user, password)
	case scram.SHA512.Name():
		return scram.Mechanism(scram.SHA512, user, password)
	}
	return nil, fmt.Errorf("kafka.sasl.mechanism: must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, got %q", name)
}

// login is a mechanism that reads the password for each connection.
type login struct{ SASL }

// Name implements [sasl.Mechanism].
func (l login) Name() string { return l.Mechanism }

// Start implements [sasl.Mechanism].
func (l login) Start(ctx context.Context) (sasl.StateMachine, []byte, error) {
	password, err := config.Secret("kafka.sasl.password_file", l.PasswordFile)
	if err != nil {
		return nil, nil, err
	}
	m, err := mechanism(l.Mechanism, l.User, password)
	if err != nil {
		return nil, nil, err
	}
	return m.Start(ctx)
}

// Login returns the SASL mechanism for connections to the brokers, or nil.
func (c *Cluster) Login() sasl.Mechanism {
	if c.config.SASL == (SASL{}) {
		return nil
	}
	return login{c.config.SASL}
}

// explain returns an error with the key that it is about, if that is known. The
// brokers have answered before, or not yet.
func (c Config) explain(err error, before bool) error {
	switch {
	case errors.Is(err, kafka.SASLAuthenticationFailed):
		return fmt.Errorf("kafka.sasl: user %q with the password in %s: %w", c.SASL.User, c.SASL.PasswordFile, err)
	case errors.Is(err, kafka.UnsupportedSASLMechanism):
		return fmt.Errorf("kafka.sasl.mechanism: %s: %w", c.SASL.Mechanism, err)
	case errors.Is(err, kafka.IllegalSASLState):
		return fmt.Errorf("kafka.sasl.mechanism: must be empty for brokers without SASL, got %q: %w", c.SASL.Mechanism, err)
	case Torn(err) && !before && c.SASL == (SASL{}):
		return fmt.Errorf("kafka.sasl.mechanism: must not be empty if the brokers require SASL, and one closes the connection: %w", err)
	case credentials.Alert(err):
		return c.TLS.Explain("kafka.tls", strings.Join(c.Brokers, ", "), err)
	}
	return err
}

// mistakeIn returns the text of an error that lasts until a person acts, because
// of the configuration, rights or settings of the topic, and "" for another.
func mistakeIn(err error) string {
	text := err.Error()
	if denied(err) || errors.Is(err, errSetting) ||
		strings.Contains(text, "kafka.brokers") || strings.Contains(text, "kafka.tls") || strings.Contains(text, "kafka.sasl") {
		return text
	}
	return ""
}

package mariadb

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/tricycle-relay/tricycle/lib/config"
)

// maxName leaves room for the prefix in the 64 characters of a lock's name.
const maxName = 64 - len(lockPrefix)

// Config is the section 'database' of a configuration.
type Config struct {
	Address      string `yaml:"address"`       // host:port of the server
	Name         string `yaml:"name"`          // the database; it must exist
	User         string `yaml:"user"`          // needs all rights on the database, and none beside them
	PasswordFile string `yaml:"password_file"` // holds the user's password on one line, read for each new connection; empty: no password
	TLS          TLS    `yaml:"tls"`
}

// Defaults returns the default configuration.
func Defaults() Config {
	return Config{Address: "127.0.0.1:3306", Name: "tricycle", User: "tricycle", TLS: TLS{Mode: tlsOff}}
}

// Validate names the keys that are out of range.
func (c Config) Validate() error {
	var name, user error
	if n := utf8.RuneCountInString(c.Name); n < 1 || n > maxName {
		name = fmt.Errorf("database.name: must be 1 to %d characters, got %q", maxName, c.Name)
	}
	if c.User == "" {
		user = errors.New("database.user: must be the name of a database user, got nothing")
	}
	return errors.Join(config.HostPort("database.address", c.Address, 1), name, user, c.TLS.validate())
}

// Package logging gives a program its log: JSON lines in a rotating file, for
// machines, and readable lines on the console, for a person.
//
// A line of the file has time (RFC 3339, UTC, microseconds), level, service
// and message, and whatever the event adds; trace_id where it belongs to a
// trace. A string is cut after 256 bytes, and what a terminal would act on or
// not show is escaped. What must be said at every level (the request that starts a session,
// the summary that ends it) is logged by [zerolog.Logger.Log], which has none.
package logging

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/DeRuina/timberjack"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/message"
)

// Config is the section 'logging' of a configuration.
type Config struct {
	Level            string `yaml:"level"`              // least level of a line
	File             string `yaml:"file"`               // path of the log file, its folder is created; empty: console only
	MaxSizeMegabytes int    `yaml:"max_size_megabytes"` // the file is rotated when it grows beyond
	MaxFiles         int    `yaml:"max_files"`          // rotated files kept beside it
}

// Defaults returns the configuration of a program that is told nothing.
func Defaults() Config { return Config{Level: "info", MaxSizeMegabytes: 64, MaxFiles: 5} }

var levels = []string{"trace", "debug", "info", "warn", "error"}

// Validate names the keys that are out of range.
func (c Config) Validate() error {
	var level error
	if !slices.Contains(levels, c.Level) {
		level = fmt.Errorf("logging.level: found %q, expected one of %s", c.Level, strings.Join(levels, ", "))
	}
	return errors.Join(level,
		config.InRange("logging.max_size_megabytes", c.MaxSizeMegabytes, 1, 10_000),
		config.InRange("logging.max_files", c.MaxFiles, 1, 1000))
}

// New returns the logger of a service, which writes to the file of the
// configuration and to console, and what closes the file. It fails at once if
// the file cannot be written.
func New(c Config, service string, console io.Writer) (zerolog.Logger, io.Closer, error) {
	level, err := zerolog.ParseLevel(c.Level)
	if err != nil {
		return zerolog.Nop(), nil, fmt.Errorf("logging.level: %w", err)
	}
	var out io.Writer = readable(console)
	var closer io.Closer = io.NopCloser(nil)
	if c.File != "" {
		// The rotating writer opens its file at the first line, which is too
		// late to say that it cannot.
		if err := touch(c.File); err != nil {
			return zerolog.Nop(), nil, fmt.Errorf("logging.file: %w", err)
		}
		file := &timberjack.Logger{Filename: c.File, MaxSize: c.MaxSizeMegabytes, MaxBackups: c.MaxFiles}
		out, closer = zerolog.MultiLevelWriter(out, file), file
	}
	log := zerolog.New(cleaner{out}).Level(level).Hook(stampHook{}).With().Str("service", service).Logger()
	return log, closer, nil
}

// stampHook adds the time. zerolog's own has its format in a global.
type stampHook struct{}

func (stampHook) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(message.Layout))
}

func readable(console io.Writer) io.Writer {
	colour := false
	if f, ok := console.(*os.File); ok {
		info, err := f.Stat()
		colour = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""
	}
	return zerolog.ConsoleWriter{
		Out:        console,
		NoColor:    !colour,
		TimeFormat: "15:04:05.000",
		PartsOrder: []string{zerolog.TimestampFieldName, zerolog.LevelFieldName, "service", zerolog.MessageFieldName},
		// The service stands before the message; a session is said in words.
		FieldsExclude: []string{"service", "session"},
		FormatPrepare: func(event map[string]any) error {
			if event[zerolog.LevelFieldName] == nil { // said at every level
				event[zerolog.LevelFieldName] = "log"
			}
			if message, ok := event[zerolog.MessageFieldName].(string); ok {
				event[zerolog.MessageFieldName] = Visible(message)
			}
			return nil
		},
		FormatFieldValue: func(value any) string { return Visible(fmt.Sprintf("%s", value)) }, // strings are quoted before
	}
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// Package logging provides the log of a program: JSON lines in a rotating file for
// machines, and readable lines on the console for people.
//
// A line of the file has time (RFC 3339, UTC, microseconds), level, service,
// message and the fields of the event. It has trace_id if it belongs to a trace.
// A string is cut after 256 bytes, and control and invisible characters are
// escaped. [zerolog.Logger.Log] writes a line at every level, without one of its
// own: the request that starts a session, and the summary that ends it.
package logging

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/DeRuina/timberjack"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/private"
)

// Config is the section 'logging' of a configuration.
type Config struct {
	Level            string `yaml:"level"`              // least level of a line
	File             string `yaml:"file"`               // path of the log file, its directory is created; a second program gets NAME.2.log; empty: console only
	MaxSizeMegabytes int    `yaml:"max_size_megabytes"` // the file is rotated when it grows beyond
	MaxFiles         int    `yaml:"max_files"`          // rotated files kept beside it
}

// Defaults returns the default configuration.
func Defaults() Config { return Config{Level: "info", MaxSizeMegabytes: 64, MaxFiles: 5} }

var levels = []string{"trace", "debug", "info", "warn", "error"}

// Validate returns an error for each key that is out of range.
func (c Config) Validate() error {
	var level error
	if !slices.Contains(levels, c.Level) {
		level = fmt.Errorf("logging.level: must be one of %s, got %q", strings.Join(levels, ", "), c.Level)
	}
	return errors.Join(level,
		config.InRange("logging.max_size_megabytes", c.MaxSizeMegabytes, 1, 10_000),
		config.InRange("logging.max_files", c.MaxFiles, 1, 1000))
}

// consoleTime is the layout of the time on the console.
const consoleTime = "15:04:05.000"

// Log is the outputs of a logger of [New].
type Log struct {
	Console, File *Output // nil if there is none that counts
	rotating      io.Closer
	lock          io.Closer
}

// Close waits up to half a second for the last lines and closes the file.
func (l *Log) Close() error {
	if l.File == nil {
		return nil
	}
	_ = l.File.Close() // never fails
	select {
	case <-l.File.done:
		return errors.Join(l.rotating.Close(), l.lock.Close())
	default: // closing a file that hangs could hang too
		return nil
	}
}

// New returns the logger of a service, which writes to the configured file and to
// console, and its outputs. The file is written by an [Output]; a console that
// may block must be one. New fails if the file cannot be written.
func New(c Config, service string, console io.Writer) (zerolog.Logger, *Log, error) {
	level, err := zerolog.ParseLevel(c.Level)
	if err != nil {
		return zerolog.Nop(), nil, fmt.Errorf("logging.level: %w", err)
	}
	l := &Log{}
	l.Console, _ = console.(*Output)
	logger := func(out io.Writer) zerolog.Logger {
		return zerolog.New(cleaner{out}).Level(level).Hook(stamp).With().Str("service", service).Logger()
	}
	out := readable(console)
	if c.File == "" {
		return logger(out), l, nil
	}
	path, err := l.take(c.File)
	if err != nil {
		return zerolog.Nop(), nil, fmt.Errorf("logging.file: %w", err)
	}
	rotating := &timberjack.Logger{Filename: path, MaxSize: c.MaxSizeMegabytes, MaxBackups: c.MaxFiles, FileMode: 0o600}
	l.rotating = rotating
	l.File = newOutput(present{rotating}, func(dropped int) []byte {
		var line bytes.Buffer
		log := logger(&line)
		log.Warn().Int("count", dropped).Msg("log lines dropped")
		return line.Bytes()
	})
	return logger(zerolog.MultiLevelWriter(out, l.File)), l, nil
}

// present creates the file again after somebody has removed or renamed it.
type present struct{ *timberjack.Logger }

// Write implements [io.Writer].
func (p present) Write(line []byte) (int, error) {
	if _, err := os.Stat(p.Filename); errors.Is(err, fs.ErrNotExist) {
		if err := p.Rotate(); err != nil {
			return 0, err
		}
	}
	return p.Logger.Write(line)
}

// stamp adds the time. The format of zerolog's own is a global variable.
var stamp zerolog.HookFunc = func(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(message.Layout))
}

func readable(console io.Writer) io.Writer {
	return zerolog.ConsoleWriter{
		Out:        console,
		NoColor:    !Terminal(console) || os.Getenv("NO_COLOR") != "",
		TimeFormat: consoleTime,
		PartsOrder: []string{zerolog.TimestampFieldName, zerolog.LevelFieldName, "service", zerolog.MessageFieldName},
		// The service precedes the message; the text of a summary has its figures.
		FieldsExclude: []string{"service", "session"},
		FormatPrepare: func(event map[string]any) error {
			if event[zerolog.LevelFieldName] == nil { // logged at every level
				event[zerolog.LevelFieldName] = "log"
			}
			if message, ok := event[zerolog.MessageFieldName].(string); ok {
				event[zerolog.MessageFieldName] = Visible(message)
			}
			return nil
		},
		FormatFieldValue: func(value any) string { return Visible(fmt.Sprintf("%s", value)) }, // strings are quoted already
	}
}

// maxInstances is the number of programs that can share the path of a log file.
const maxInstances = 100

// take returns a log file for this program alone: ms1.log, or ms1.2.log while
// another uses that. If two shared a file, a rotation would lose lines. The lock
// is a second file, since the log is renamed.
func (l *Log) take(path string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	extension := filepath.Ext(path)
	for n, name := 1, path; n <= maxInstances; n++ {
		if n > 1 {
			name = fmt.Sprintf("%s.%d%s", strings.TrimSuffix(path, extension), n, extension)
		}
		// The rotating writer opens its file too late to report an error.
		if err := touch(name); err != nil {
			return "", err
		}
		var err error
		if l.lock, err = private.Lock(name + ".lock"); err == nil {
			return name, nil
		} else if !errors.Is(err, private.ErrLocked) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s: %w", path, private.ErrLocked)
}

func touch(path string) error {
	if err := private.File(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

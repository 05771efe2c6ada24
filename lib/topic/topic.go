// Package topic implements the Kafka side that MS2 and MS3 share: the topics of
// messages and of dead letters, and the [Cluster] by which a service reaches the
// brokers.
//
// The key of a record is the message's key, its value the encoded message. Its
// headers carry the W3C trace context. A dead letter is the record as it was
// fetched, with headers for its origin and for the reason why it can never be
// stored.
package topic

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/credentials"
)

// The headers that a dead letter has beside those of the record.
const (
	HeaderReason    = "tricycle-reason"           // the error, or the answer of MS1
	HeaderTopic     = "tricycle-origin-topic"     // where the record was found
	HeaderPartition = "tricycle-origin-partition" // a decimal number
	HeaderOffset    = "tricycle-origin-offset"    // a decimal number
	HeaderStatus    = "tricycle-http-status"      // MS1's answer; absent if MS1 was not asked
)

const (
	maxMessageBytes = "max.message.bytes"
	maxRecordBytes  = 1<<20 + 12 // Kafka's default: 1 MiB and what precedes a batch
	compressionType = "compression.type"
	uncompressed    = "uncompressed"
	timestampType   = "message.timestamp.type"
	appendTime      = "LogAppendTime"
	cleanupPolicy   = "cleanup.policy"
)

// Limits returns the settings of a topic that exclude decompression bombs: the
// broker decompresses what it receives, and measures the result.
func Limits() map[string]string {
	return map[string]string{maxMessageBytes: strconv.Itoa(maxRecordBytes), compressionType: uncompressed}
}

// MessageBytes is the size of a record batch that a topic must admit: one message
// with the largest session id and its trace context.
const MessageBytes = 512

// Config is the section 'kafka' of a configuration.
type Config struct {
	Brokers            []string `yaml:"brokers"`             // host:port of one or more bootstrap brokers
	Topic              string   `yaml:"topic"`               // of the messages; created when absent
	DeadLetterTopic    string   `yaml:"dead_letter_topic"`   // of records that can never be stored; created when absent
	Partitions         int      `yaml:"partitions"`          // of each topic; like the next three, only for a topic that tricycle creates
	ReplicationFactor  int      `yaml:"replication_factor"`  // copies of each partition
	RetentionHours     int      `yaml:"retention_hours"`     // older records are deleted
	RetentionMegabytes int      `yaml:"retention_megabytes"` // of each partition; the oldest records beyond that are deleted
	TLS                TLS      `yaml:"tls"`
	SASL               SASL     `yaml:"sasl"`
}

// TLS is the section 'kafka.tls'. Its files are read for each new connection.
type TLS struct {
	Enabled                  bool `yaml:"enabled"` // TLS on every connection to the brokers
	credentials.Certificates `yaml:",inline"`
	ServerName               string `yaml:"server_name"` // expected in the brokers' certificates; empty: the host that is dialed
}

// SASL is the section 'kafka.sasl'.
type SASL struct {
	Mechanism    string `yaml:"mechanism"`     // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty: no authentication
	User         string `yaml:"user"`          // name of the Kafka user
	PasswordFile string `yaml:"password_file"` // holds the user's password on one line; read for each new connection
}

// Defaults returns the default configuration.
func Defaults() Config {
	return Config{
		Brokers: []string{"127.0.0.1:9092"}, Topic: "tricycle.messages", DeadLetterTopic: "tricycle.messages.dead",
		Partitions: 4, ReplicationFactor: 1, RetentionHours: 168, RetentionMegabytes: 1024,
	}
}

// Validate returns an error for each key that is out of range.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("kafka.brokers: must have at least one host:port, got none"))
	}
	for _, b := range c.Brokers {
		errs = append(errs, config.HostPort("kafka.brokers", b, 1))
	}
	legal := regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`) // Kafka's own rule
	for key, name := range map[string]string{"kafka.topic": c.Topic, "kafka.dead_letter_topic": c.DeadLetterTopic} {
		if !legal.MatchString(name) || name == "." || name == ".." {
			errs = append(errs, fmt.Errorf("%s: must be 1 to 249 letters, digits, dots, underscores and hyphens, got %q", key, name))
		}
	}
	if c.Topic == c.DeadLetterTopic {
		errs = append(errs, fmt.Errorf("kafka.dead_letter_topic: must differ from kafka.topic, got %q", c.Topic))
	}
	return errors.Join(append(errs,
		c.TLS.validate(), c.SASL.validate(),
		config.InRange("kafka.partitions", c.Partitions, 1, 1000),
		config.InRange("kafka.replication_factor", c.ReplicationFactor, 1, 100),
		config.InRange("kafka.retention_hours", c.RetentionHours, 1, 87_600),
		config.InRange("kafka.retention_megabytes", c.RetentionMegabytes, 1, 1<<20))...)
}

func (t TLS) validate() error {
	if !t.Enabled && t != (TLS{}) {
		return errors.New("kafka.tls.enabled: must be true with other keys of kafka.tls, got false")
	}
	return t.Certificates.Validate("kafka.tls")
}

func (s SASL) validate() error {
	if s == (SASL{}) {
		return nil
	}
	var user, file error
	if s.User == "" {
		user = errors.New("kafka.sasl.user: must be the name of a Kafka user, got nothing")
	}
	if s.PasswordFile == "" {
		file = errors.New("kafka.sasl.password_file: must name a file with the password, got nothing")
	}
	_, err := mechanism(s.Mechanism, "", "")
	return errors.Join(err, user, file)
}

// CheckFiles reads the files of certificates and passwords, and returns an error
// for one that cannot be used.
func (c Config) CheckFiles() error {
	_, err := c.TLS.Client("kafka.tls")
	_, secret := config.Secret("kafka.sasl.password_file", c.SASL.PasswordFile)
	return errors.Join(err, secret)
}

// topics returns the descriptions of both topics for their creation.
func (c Config) topics() []kafka.TopicConfig {
	entries := []kafka.ConfigEntry{
		{ConfigName: "retention.ms", ConfigValue: strconv.Itoa(c.RetentionHours * 3_600_000)},
		{ConfigName: "retention.bytes", ConfigValue: strconv.Itoa(c.RetentionMegabytes << 20)},
		// By the clock of the producer, the broker refuses records from an hour
		// ahead and deletes those from before the retention time.
		{ConfigName: timestampType, ConfigValue: appendTime},
		{ConfigName: cleanupPolicy, ConfigValue: "delete"}, // the broker's default may be another
	}
	for name, value := range Limits() {
		entries = append(entries, kafka.ConfigEntry{ConfigName: name, ConfigValue: value})
	}
	var topics []kafka.TopicConfig
	for _, name := range []string{c.Topic, c.DeadLetterTopic} {
		topics = append(topics, kafka.TopicConfig{
			Topic: name, NumPartitions: c.Partitions, ReplicationFactor: c.ReplicationFactor, ConfigEntries: entries,
		})
	}
	return topics
}

// Headers is the headers of a record as a propagation.TextMapCarrier of
// OpenTelemetry.
type Headers []kafka.Header

// Get returns the value of a header, "" if there is none.
func (h *Headers) Get(key string) string {
	for _, header := range *h {
		if header.Key == key {
			return string(header.Value)
		}
	}
	return ""
}

// Set sets the value of a header.
func (h *Headers) Set(key, value string) {
	for i := range *h {
		if (*h)[i].Key == key {
			(*h)[i].Value = []byte(value)
			return
		}
	}
	*h = append(*h, kafka.Header{Key: key, Value: []byte(value)})
}

// Keys returns the names of the headers.
func (h *Headers) Keys() []string {
	keys := make([]string, len(*h))
	for i, header := range *h {
		keys[i] = header.Key
	}
	return keys
}

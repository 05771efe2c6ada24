// Package topic implements the Kafka side that MS2 and MS3 share: the topics of
// messages and of dead letters, and the [Cluster] by which a service reaches the brokers.
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
)

// The headers that a dead letter has beside those of the record.
const (
	HeaderReason    = "tricycle-reason"           // what was found and what was expected, or what MS1 answered
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
)

// Limits returns the settings of a topic that exclude a record which is a
// thousand times as large when a consumer has decompressed it: the broker
// decompresses what it is sent, and measures the result.
func Limits() map[string]string {
	return map[string]string{maxMessageBytes: strconv.Itoa(maxRecordBytes), compressionType: uncompressed}
}

// MessageBytes is the size of the record batch of one message of the largest
// session id, with its trace context: what a topic must admit.
const MessageBytes = 512

// Config is the section 'kafka' of a configuration.
type Config struct {
	Brokers            []string `yaml:"brokers"`             // host:port of one or more brokers to begin with
	Topic              string   `yaml:"topic"`               // of the messages; created when absent
	DeadLetterTopic    string   `yaml:"dead_letter_topic"`   // of what can never be stored; created when absent
	Partitions         int      `yaml:"partitions"`          // of each topic; like the next three, only for a topic that is created here
	ReplicationFactor  int      `yaml:"replication_factor"`  // copies of each partition
	RetentionHours     int      `yaml:"retention_hours"`     // older records are deleted
	RetentionMegabytes int      `yaml:"retention_megabytes"` // of each partition; the oldest records beyond are deleted
}

// Defaults returns the configuration of a program that is told nothing.
func Defaults() Config {
	return Config{
		Brokers: []string{"127.0.0.1:9092"}, Topic: "tricycle.messages", DeadLetterTopic: "tricycle.messages.dead",
		Partitions: 4, ReplicationFactor: 1, RetentionHours: 168, RetentionMegabytes: 1024,
	}
}

// Validate names the keys that are out of range.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("kafka.brokers: found none, expected at least one host:port"))
	}
	for _, b := range c.Brokers {
		errs = append(errs, config.HostPort("kafka.brokers", b, 1))
	}
	legal := regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`) // Kafka's own rule
	for key, name := range map[string]string{"kafka.topic": c.Topic, "kafka.dead_letter_topic": c.DeadLetterTopic} {
		if !legal.MatchString(name) || name == "." || name == ".." {
			errs = append(errs, fmt.Errorf("%s: found %q, expected 1 to 249 letters, digits, dots, underscores and hyphens", key, name))
		}
	}
	if c.Topic == c.DeadLetterTopic {
		errs = append(errs, fmt.Errorf("kafka.dead_letter_topic: found %q, expected another topic than kafka.topic", c.Topic))
	}
	return errors.Join(append(errs,
		config.InRange("kafka.partitions", c.Partitions, 1, 1000),
		config.InRange("kafka.replication_factor", c.ReplicationFactor, 1, 100),
		config.InRange("kafka.retention_hours", c.RetentionHours, 1, 87_600),
		config.InRange("kafka.retention_megabytes", c.RetentionMegabytes, 1, 1<<20))...)
}

// topics describes both topics as they are created.
func (c Config) topics() []kafka.TopicConfig {
	entries := []kafka.ConfigEntry{
		{ConfigName: "retention.ms", ConfigValue: strconv.Itoa(c.RetentionHours * 3_600_000)},
		{ConfigName: "retention.bytes", ConfigValue: strconv.Itoa(c.RetentionMegabytes << 20)},
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

// Headers carries the trace context in the headers of a record. It is a
// propagation.TextMapCarrier of OpenTelemetry.
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

// Set gives a header a value, in place of the one it has.
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

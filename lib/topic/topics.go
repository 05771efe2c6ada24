package topic

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// examineInterval is the time between two checks of the topics' settings.
const examineInterval = 30 * time.Second

// errSetting is the error of a topic that cannot be used.
var errSetting = errors.New("topic")

// create creates topics. It returns an error, because new topics have no leaders
// yet, unless the broker forbids to create the one of dead letters: messages do
// not need it.
func (c *Cluster) create(ctx context.Context, missing []kafka.TopicConfig) error {
	resp, err := c.Client().CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: missing})
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	created := true
	for name, err := range resp.Errors {
		switch {
		case errors.Is(err, kafka.TopicAlreadyExists): // another service was faster
			created = false
		case denied(err) && name == c.config.Topic:
			return fmt.Errorf("kafka.topic: must exist or be created by a user who may, got no topic %s: %w", name, err)
		case denied(err) && len(missing) == 1:
			if !c.warned[name] {
				c.warned[name] = true
				c.log.Warn().Err(err).Str("topic", name).Msg("dead-letter topic missing, creation forbidden")
			}
			return nil
		case err != nil && !denied(err): // the denied one is requested again, alone
			return fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	if created {
		c.log.Info().Str("topic", c.config.Topic).Str("dead_letter_topic", c.config.DeadLetterTopic).Msg("topics created")
	}
	c.examined = time.Time{}
	return fmt.Errorf("topics just created: %w", kafka.LeaderNotAvailable)
}

// examine checks the settings of the topics. It returns an error if messages
// cannot be in them, and logs a warning if they admit decompression bombs.
func (c *Cluster) examine(ctx context.Context, client *kafka.Client) error {
	if time.Since(c.examined) < examineInterval {
		return nil
	}
	var resources []kafka.DescribeConfigRequestResource
	for _, name := range []string{c.config.Topic, c.config.DeadLetterTopic} {
		resources = append(resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: name, ConfigNames: []string{cleanupPolicy, maxMessageBytes, compressionType},
		})
	}
	resp, err := client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: resources})
	if err != nil {
		c.log.Debug().Err(err).Msg("topic settings not checked")
		return nil
	}
	for _, r := range resp.Resources {
		if r.Error != nil { // no permission, for example
			c.log.Debug().Err(r.Error).Str("topic", r.ResourceName).Msg("topic settings not checked")
		}
		for _, e := range r.ConfigEntries {
			n, _ := strconv.Atoi(e.ConfigValue)
			switch {
			case e.ConfigName == cleanupPolicy && strings.Contains(e.ConfigValue, "compact") && r.ResourceName == c.config.Topic:
				// It keeps messages indefinitely, as their keys differ. kafka-go panics at
				// the empty batches that compaction leaves of an idempotent producer.
				return fmt.Errorf("%w %s: %s: must be delete since its creation, got %s", errSetting, r.ResourceName, cleanupPolicy, e.ConfigValue)
			case e.ConfigName == maxMessageBytes && n < MessageBytes && r.ResourceName == c.config.Topic:
				return fmt.Errorf("%w %s: %s: must be at least %d, got %d", errSetting, r.ResourceName, maxMessageBytes, MessageBytes, n)
			case e.ConfigName == maxMessageBytes && n > maxRecordBytes, e.ConfigName == compressionType && e.ConfigValue != uncompressed:
				if text := r.ResourceName + e.ConfigName + e.ConfigValue; !c.warned[text] {
					c.warned[text] = true
					c.log.Warn().Str("topic", r.ResourceName).Str("setting", e.ConfigName).Str("value", e.ConfigValue).Str("expected", Limits()[e.ConfigName]).
						Msg("topic admits decompression bombs")
				}
			}
		}
	}
	c.examined = time.Now()
	return nil
}

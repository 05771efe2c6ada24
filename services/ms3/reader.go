package ms3

import (
	"context"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	sessionTime = 6 * time.Second // the least that brokers accept by default
	closeTime   = 1500 * time.Millisecond
	queued      = 4 // records that the reader may be ahead: each may have a megabyte
)

// readBackoff is the first pause before the reader connects again. It is short, as
// kafka-go connects again for no fault about once in ten thousand fetches: it takes
// records beside an older high watermark for an empty answer (its issue 1188).
const readBackoff = 20 * time.Millisecond

// newReader returns a reader that joins the consumer group. Its connections
// are closed when ctx is cancelled.
func (c *consumer) newReader(ctx context.Context) *kafka.Reader {
	return kafka.NewReader(kafka.ReaderConfig{
		Brokers:               []string{topic.Bootstrap},
		Topic:                 c.config.Kafka.Topic,
		GroupID:               c.config.GroupID,
		Dialer:                &kafka.Dialer{ClientID: c.members.clientID, Timeout: 10 * time.Second, DialFunc: patient(c.cluster.Dial(ctx)), SASLMechanism: c.cluster.Login()},
		MinBytes:              1,
		MaxBytes:              1 << 20,
		MaxWait:               c.fetchWait,
		StartOffset:           kafka.FirstOffset,
		HeartbeatInterval:     500 * time.Millisecond,
		SessionTimeout:        c.session,
		RebalanceTimeout:      c.session + 4*time.Second,
		JoinGroupBackoff:      200 * time.Millisecond,
		CommitInterval:        commitInterval,
		QueueCapacity:         queued,
		ReadBackoffMin:        readBackoff,
		WatchPartitionChanges: true,
		ErrorLogger: kafka.LoggerFunc(func(text string, args ...any) {
			c.log.Debug().Str("detail", fmt.Sprintf(text, args...)).Msg("kafka reader failed")
			// kafka-go logs two errors in this form: that of a commit, which it does not
			// return, and that of joining, while this consumer is not a member.
			if text == "%v" && *c.health.Load() == nil {
				if err, ok := args[0].(error); ok {
					c.notCommitted(err)
				}
			}
		}),
	})
}

// closeReader closes a reader, which commits its offsets and leaves the group.
// If that takes too long, cut closes the connections.
func closeReader(reader *kafka.Reader, cut func()) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = reader.Close() // it has no error to return
	}()
	for range 2 {
		select {
		case <-closed:
			return
		case <-time.After(closeTime):
			cut()
		}
	}
}

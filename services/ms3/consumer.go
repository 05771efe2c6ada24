package ms3

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/retry"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	maxOpen        = 1024 // weight of the records fetched and not yet committable
	commitInterval = 100 * time.Millisecond
	commitTime     = 500 * time.Millisecond
	graceTime      = 2 * time.Second
	joinTime       = 10 * time.Second // in which the group's coordinator may not be ready, or move
	groupFull      = kafka.Error(81)  // which kafka-go has no text for
	refusedTime    = 3 * time.Second  // for which readiness remembers a refused fetch or commit; the reader repeats it each second
)

// consumer is a member of the consumer group.
type consumer struct {
	config    Config
	cluster   *topic.Cluster
	client    *storeClient
	telemetry *telemetry.Telemetry
	metrics   *metrics
	offsets   *offsets
	members   members // of the goroutine that watches
	letters   letters
	spanName  string
	stall     time.Duration
	joining   time.Duration
	session   time.Duration // a silent member is removed after it
	fetchWait time.Duration // of the broker for records; closing a reader takes as long
	refused   retry.Backoff // of a dead letter that its topic refuses
	overlap   time.Duration // of records that are read again when a partition has become shorter
	grace     time.Duration // for requests in flight at shutdown

	log        zerolog.Logger
	lettersLog zerolog.Logger // dead letters; repeated events are counted
	// These write at most one event in ten seconds:
	kafkaLog  zerolog.Logger // failures of Kafka
	ms1Log    zerolog.Logger // failures of MS1
	configLog zerolog.Logger // wrong configuration

	work    sync.WaitGroup // records being processed
	waiting atomic.Bool    // for the reader, not for room
	health  atomic.Pointer[error]
	failed  atomic.Pointer[failure] // the last fetch was refused; nil if it succeeded
	behind  atomic.Pointer[failure] // the last commit that was refused; nil if none was

	unwritten atomic.Pointer[error] // why a dead letter waits, and soon the records after it
}

// failure is the error of a fetch or of a commit.
type failure struct {
	at, since time.Time // of the last and of the first one, where they follow each other
	err       error
}

func newConsumer(c Config, cluster *topic.Cluster, client *storeClient, t *telemetry.Telemetry, log zerolog.Logger) *consumer {
	sampled := func() zerolog.Logger {
		return log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 10 * time.Second})
	}
	k := &consumer{
		config: c, cluster: cluster, client: client, telemetry: t, offsets: newOffsets(maxOpen), spanName: "process " + c.Kafka.Topic,
		stall: stallTime, joining: joinTime, session: sessionTime, fetchWait: 500 * time.Millisecond, overlap: 2 * time.Second, grace: graceTime,
		refused: retry.Backoff{First: retryFirst, Most: retryMost, Attempts: permanentTries},
		members: members{clientID: clientPrefix + rand.Text()},
		log:     log, kafkaLog: sampled(), ms1Log: sampled(), configLog: sampled(), lettersLog: logging.Limit(log),
	}
	boundDecompression()
	number := 0 // partition of the dead letters; one request is in flight at a time
	k.letters.produce = func(ctx context.Context, batch ...kafka.Message) error {
		_, err := cluster.Produce(ctx, c.Kafka.DeadLetterTopic, number, batch...)
		switch {
		case errors.Is(err, protocol.ErrNoPartition): // after the last one
			number = 0
		case err != nil && !isPermanent(err): // it may have no leader
			number++
		}
		return err
	}
	k.metrics = newMetrics(t.Metrics, k.offsets)
	noMember := errors.New("not yet a member of the consumer group")
	k.health.Store(&noMember)
	k.unwritten.Store(new(error))
	return k
}

// ready returns nil if at the last check this consumer was a member of the group,
// the group had all partitions, and neither the last fetch, the last commits nor a
// dead letter failed.
func (c *consumer) ready(ctx context.Context) error {
	var refused error
	if f := c.failed.Load(); f != nil && time.Since(f.at) < refusedTime {
		refused = f.err
	} else if f := c.behind.Load(); f != nil && f.at.Sub(f.since) >= c.joining && time.Since(f.at) < refusedTime {
		refused = f.err
	}
	return cmp.Or(c.cluster.Ready(ctx), *c.health.Load(), refused, *c.unwritten.Load())
}

// run consumes until ctx is cancelled.
func (c *consumer) run(ctx context.Context) error {
	// Work in flight outlives ctx by the grace time.
	work, stop := lifecycle.Grace(ctx, c.grace)
	defer stop()
	for c.cluster.Partitions() == 0 && retry.Pause(ctx, commitInterval) { // until the topic exists
	}
	for ctx.Err() == nil {
		if err := c.consume(ctx, work); errors.Is(err, errStalled) {
			c.metrics.reopened.Inc()
			c.log.Warn().Err(err).Msg("kafka reader reopened")
		}
	}
	return nil
}

// consume reads with one reader until ctx is cancelled or the reader stalls.
func (c *consumer) consume(ctx, work context.Context) error {
	wire, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	c.members.rejoin()
	c.offsets.reopen()
	reader := c.newReader(wire)

	reading, cancel := context.WithCancelCause(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { cancel(c.watch(reading)) })
	beside.Go(func() {
		for retry.Pause(reading, commitInterval) {
			c.commit(reading, reader)
		}
	})
	c.fetch(reading, work, reader)
	cause := context.Cause(reading)
	beside.Wait()
	if ctx.Err() != nil {
		c.work.Wait()
	}
	c.commit(context.WithoutCancel(ctx), reader)
	closeReader(reader, cut)
	return cause
}

// fetch starts processing each record of the reader until ctx ends.
func (c *consumer) fetch(ctx, work context.Context, reader *kafka.Reader) {
	p := newPoster(ctx, work, c)
	began := time.Now()
	for ctx.Err() == nil {
		c.waiting.Store(true)
		m, err := reader.FetchMessage(ctx)
		now := message.StampOf(time.Now())
		c.waiting.Store(false)
		if err != nil {
			// Kafka creates the topic of the offsets when the first member asks, and
			// moves the group to its coordinator before it answers.
			reply, replied := errors.AsType[kafka.Error](err)
			joining := replied && reply.Temporary() && time.Since(began) < c.joining
			if ctx.Err() == nil && !joining {
				if reply == groupFull {
					err = fmt.Errorf("group %s: must have fewer members than group.max.size of the brokers: %w", c.config.GroupID, err)
				}
				err = fmt.Errorf("fetch from %s: %w", c.config.Kafka.Topic, err)
				if replied && !reply.Temporary() { // a partition without a leader is its own trouble
					c.failed.Store(&failure{at: time.Now(), err: err})
				}
				c.kafkaLog.Warn().Err(err).Msg("fetch failed")
			}
			retry.Pause(ctx, commitInterval)
			continue
		}
		c.failed.Store(nil)
		f, err := c.offsets.fetch(ctx, m.Partition, m.Offset, 1+size(m)/message.MaxBytes, m.Time)
		if err != nil {
			return // not processed and not committed: it will be fetched again
		}
		if endsTransaction(m) {
			c.offsets.done(f)
			continue
		}
		c.metrics.fetched.Inc()
		c.process(p, m, f, now)
	}
}

// size returns the bytes of memory that a record takes.
func size(m kafka.Message) int {
	const header = 40 // a kafka.Header without its text
	n := len(m.Key) + len(m.Value) + len(m.Headers)*header
	for _, h := range m.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// endsTransaction reports whether m is not a record but Kafka's marker of the
// end of a transaction, which kafka-go does not filter out.
func endsTransaction(m kafka.Message) bool {
	key := m.Key
	return len(key) == 4 && key[0]|key[1]|key[2] == 0 && key[3] <= 1 && len(m.Value) == 6 && m.Value[0] == 0
}

// notCommitted notes that the group's coordinator refused a commit, which the
// reader repeats.
func (c *consumer) notCommitted(err error) {
	now := time.Now()
	f := failure{now, now, fmt.Errorf("commit offsets of group %s: %w", c.config.GroupID, err)}
	if last := c.behind.Load(); last != nil && now.Sub(last.at) < refusedTime {
		f.since = last.since
	}
	if c.behind.Store(&f); now.Sub(f.since) >= c.joining {
		c.kafkaLog.Warn().Err(f.err).Msg("commit of offsets failed")
	}
}

// commit passes the offsets that may be committed to the reader.
func (c *consumer) commit(ctx context.Context, reader *kafka.Reader) {
	err := c.offsets.commit(func(byPartition map[int]int64) error {
		ctx, cancel := context.WithTimeout(ctx, commitTime)
		defer cancel()
		var marks []kafka.Message
		for number, offset := range byPartition {
			marks = append(marks, kafka.Message{Topic: c.config.Kafka.Topic, Partition: number, Offset: offset})
		}
		return reader.CommitMessages(ctx, marks...)
	})
	if err != nil && ctx.Err() == nil {
		c.kafkaLog.Warn().Err(err).Msg("commit of offsets failed")
	}
}

package ms3

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/logging"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
	"github.com/tricycle-relay/tricycle/lib/topic"
)

const (
	maxOpen        = 1024 // weight of the records fetched and not yet committable
	commitInterval = 100 * time.Millisecond
	watchInterval  = 2 * time.Second
	joinInterval   = 200 * time.Millisecond // as long as the group is not complete
	stallTime      = 15 * time.Second
	graceTime      = 2 * time.Second // for requests under way at the end
	commitTime     = 500 * time.Millisecond
	closeTime      = 1500 * time.Millisecond // to leave the group at the end, before the connections are cut
	patience       = 5 * time.Second         // with a slow link, beyond what kafka-go grants
)

var errStalled = errors.New("the reader has stalled")

// consumer is a member of the consumer group.
type consumer struct {
	config    Config
	link      *topic.Link
	store     *store
	telemetry *telemetry.Telemetry
	metrics   *metrics
	committer *committer
	letters   letters
	log       zerolog.Logger
	troubles  zerolog.Logger // with Kafka; says at most one thing in ten seconds
	refusals  zerolog.Logger // the same, with MS1
	wrongs    zerolog.Logger // the same, for what a person must put right
	buried    zerolog.Logger // dead letters; the topic has all of them
	stall     time.Duration

	posting chan struct{}  // one place taken by each request to MS1
	work    sync.WaitGroup // the records being processed
	waiting atomic.Bool    // for the reader, not for room
	health  atomic.Pointer[error]
}

func newConsumer(c Config, link *topic.Link, s *store, t *telemetry.Telemetry, log zerolog.Logger) *consumer {
	sampled := func() zerolog.Logger {
		return log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 10 * time.Second})
	}
	k := &consumer{
		config: c, link: link, store: s, telemetry: t, committer: newCommitter(maxOpen),
		log: log, troubles: sampled(), refusals: sampled(), wrongs: sampled(), buried: logging.Limit(log), stall: stallTime,
		posting: make(chan struct{}, c.Workers),
	}
	boundDecompression()
	k.letters.produce = func(ctx context.Context, batch ...kafka.Message) error {
		// The first partition: any topic has it.
		_, err := link.Produce(ctx, c.Kafka.DeadLetterTopic, 0, batch...)
		return err
	}
	k.metrics = newMetrics(t.Metrics, k.committer)
	k.setReady(errors.New("not yet a member of the consumer group"))
	return k
}

func (c *consumer) setReady(err error) { c.health.Store(&err) }

// ready returns nil if the group has all its partitions and this consumer is a
// member of it. It asks nobody.
func (c *consumer) ready(ctx context.Context) error {
	if err := c.link.Ready(ctx); err != nil {
		return err
	}
	return *c.health.Load()
}

// run consumes until ctx is cancelled.
func (c *consumer) run(ctx context.Context) error {
	// What is under way when ctx ends may end itself within the grace time.
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(graceTime, stop) })()
	for c.link.Partitions() == 0 && topic.Pause(ctx, commitInterval) { // until the topic is there
	}
	for ctx.Err() == nil {
		if err := c.consume(ctx, work); errors.Is(err, errStalled) {
			c.metrics.reopened.Inc()
			c.log.Warn().Err(err).Msg("the kafka reader is closed and opened again")
		}
	}
	return nil
}

// consume reads with one reader until ctx is cancelled or the reader stalls.
func (c *consumer) consume(ctx, work context.Context) error {
	wire, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	clientID := "tricycle-ms3-" + rand.Text()
	reader := kafka.NewReader(c.readerConfig(clientID, wire))

	reading, cancel := context.WithCancelCause(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { cancel(c.watch(reading, clientID)) })
	beside.Go(func() {
		for topic.Pause(reading, commitInterval) {
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
	c.close(reader, cut)
	return cause
}

func (c *consumer) readerConfig(clientID string, wire context.Context) kafka.ReaderConfig {
	dial := c.link.Dial(wire)
	return kafka.ReaderConfig{
		Brokers: []string{topic.Bootstrap},
		Topic:   c.config.Kafka.Topic,
		GroupID: c.config.GroupID,
		Dialer: &kafka.Dialer{
			ClientID: clientID, // by which the watch knows this member
			Timeout:  10 * time.Second,
			DialFunc: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return patientConn{conn}, nil
			},
		},
		MinBytes:              1,
		MaxBytes:              1 << 20,
		MaxWait:               500 * time.Millisecond, // closing takes as long
		StartOffset:           kafka.FirstOffset,
		HeartbeatInterval:     500 * time.Millisecond,
		SessionTimeout:        6 * time.Second,
		RebalanceTimeout:      10 * time.Second,
		JoinGroupBackoff:      200 * time.Millisecond,
		CommitInterval:        commitInterval,
		WatchPartitionChanges: true,
		ErrorLogger:           kafka.LoggerFunc(func(text string, args ...any) { c.log.Debug().Msgf("kafka reader: "+text, args...) }),
	}
}

// patientConn lets reads and writes take longer than kafka-go asks it to.
// MaxWait is kafka-go's deadline for a whole fetch as well as the time that it
// lets the broker wait for records, so on a slow link every fetch would time
// out, and its connection be thrown away, for ever.
type patientConn struct{ net.Conn }

func (c patientConn) SetReadDeadline(t time.Time) error {
	return c.Conn.SetReadDeadline(patient(t))
}

func (c patientConn) SetWriteDeadline(t time.Time) error {
	return c.Conn.SetWriteDeadline(patient(t))
}

func patient(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(patience)
}

// fetch starts the processing of each record that the reader has, until ctx
// ends.
func (c *consumer) fetch(ctx, work context.Context, reader *kafka.Reader) {
	for ctx.Err() == nil {
		c.waiting.Store(true)
		m, err := reader.FetchMessage(ctx)
		now := message.StampOf(time.Now())
		c.waiting.Store(false)
		if err != nil {
			if ctx.Err() == nil {
				c.troubles.Warn().Err(err).Msg("fetching failed; trying until it succeeds")
				topic.Pause(ctx, commitInterval)
			}
			continue
		}
		f, err := c.committer.fetch(ctx, m.Partition, m.Offset, 1+len(m.Value)/message.MaxBytes)
		if err != nil {
			return // it was not processed, is not committed, and so will be fetched again
		}
		if endsTransaction(m) {
			c.committer.done(f)
			continue
		}
		c.metrics.fetched.Inc()
		c.work.Go(func() {
			if c.process(ctx, work, m, now) {
				c.committer.done(f)
			}
		})
	}
}

// endsTransaction says that m is no record but Kafka's mark of the end of a
// transaction, which kafka-go hands out like one.
func endsTransaction(m kafka.Message) bool {
	key := m.Key
	return len(key) == 4 && key[0]|key[1]|key[2] == 0 && key[3] <= 1 && len(m.Value) == 6 && m.Value[0] == 0
}

// commit hands what may be committed to the reader.
func (c *consumer) commit(ctx context.Context, reader *kafka.Reader) {
	err := c.committer.commit(func(offsets map[int]int64) error {
		ctx, cancel := context.WithTimeout(ctx, commitTime)
		defer cancel()
		var marks []kafka.Message
		for number, offset := range offsets {
			marks = append(marks, kafka.Message{Topic: c.config.Kafka.Topic, Partition: number, Offset: offset})
		}
		return reader.CommitMessages(ctx, marks...)
	})
	if err != nil && ctx.Err() == nil {
		c.troubles.Warn().Err(err).Msg("committing offsets failed; trying until it succeeds")
	}
}

// close closes the reader, which commits what it was handed and leaves the
// group. If that takes too long its connections are cut.
func (c *consumer) close(reader *kafka.Reader, cut func()) {
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

// watch looks after the reader, which can stall when a broker was restarted
// (kafka-go issues 387 and 955). It returns errStalled if the reader is no
// member of its group, or has fetched nothing though there is something, for
// the stall time while Kafka answers; else when ctx ends. It does so at once
// if a partition ends before what was read of it, where the reader would wait
// for ever: then the partition begins anew.
func (c *consumer) watch(ctx context.Context, clientID string) error {
	type position struct {
		offset int64
		since  time.Time
	}
	member := time.Now()
	positions, short := map[int]position{}, map[int]int64{}
	for interval := joinInterval; topic.Pause(ctx, interval); {
		group, err := c.inspect(ctx, clientID)
		if ctx.Err() != nil {
			break
		}
		interval = joinInterval
		if err == nil {
			interval = min(watchInterval, c.stall/5)
		}
		now := time.Now()
		c.setReady(err)
		if group == nil || group.member {
			member = now
		}
		if now.Sub(member) > c.stall {
			return fmt.Errorf("%w: it is no member of the group %s", errStalled, c.config.GroupID)
		}
		was := positions
		positions = map[int]position{}
		if group == nil {
			continue
		}
		anew := false
		for number, first := range group.short {
			if _, twice := short[number]; twice { // twice, for it may cost reading all of it again
				c.committer.rewind(number, first)
				anew = true
			}
		}
		if short = group.short; anew {
			return fmt.Errorf("%w: %w", errStalled, err)
		}
		for number, p := range group.behind {
			since := now
			if before, ok := was[number]; ok && before.offset == p && c.waiting.Load() {
				since = before.since
			}
			positions[number] = position{p, since}
			if now.Sub(since) > c.stall {
				return fmt.Errorf("%w: nothing fetched from partition %d at offset %d", errStalled, number, p)
			}
		}
	}
	return ctx.Err()
}

// group is the consumer group as the brokers see it.
type group struct {
	member bool          // this consumer is one
	behind map[int]int64 // its partitions that have more records: the offset to fetch next
	short  map[int]int64 // its partitions that end before that, as those of a topic made anew do: their first offset
}

// inspect asks the brokers about the group. The error says why the group is
// not ready; the group is nil if the brokers did not answer.
func (c *consumer) inspect(ctx context.Context, clientID string) (*group, error) {
	client, name := c.link.Client(), c.config.Kafka.Topic
	described, err := client.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{c.config.GroupID}})
	if err == nil && len(described.Groups) == 1 {
		err = described.Groups[0].Error
	}
	if err != nil || len(described.Groups) != 1 {
		return nil, fmt.Errorf("asking for the group %s: %w", c.config.GroupID, err)
	}
	g, assigned, mine := group{}, 0, []int(nil)
	for _, m := range described.Groups[0].Members {
		for _, t := range m.MemberAssignments.Topics {
			if t.Topic != name {
				continue
			}
			assigned += len(t.Partitions)
			if m.ClientID == clientID {
				mine = append(mine, t.Partitions...)
			}
		}
		g.member = g.member || m.ClientID == clientID
	}
	switch state := described.Groups[0].GroupState; {
	case !g.member:
		return &g, fmt.Errorf("not a member of the group %s", c.config.GroupID)
	case state != "Stable":
		return &g, fmt.Errorf("found the group %s in state %s, expected Stable", c.config.GroupID, state)
	case assigned < c.link.Partitions():
		return &g, fmt.Errorf("found %d partitions assigned in the group %s, expected %d", assigned, c.config.GroupID, c.link.Partitions())
	case len(mine) == 0:
		return &g, nil // a spare member
	}
	committed, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.config.GroupID, Topics: map[string][]int{name: mine}})
	if err != nil {
		return nil, fmt.Errorf("asking for the committed offsets of %s: %w", name, err)
	}
	next := map[int]int64{}
	for _, p := range committed.Topics[name] {
		next[p.Partition] = max(p.CommittedOffset, c.committer.next(p.Partition))
	}
	// After what was read, or a partition that grows would seem to be short.
	var ask []kafka.OffsetRequest
	for _, p := range mine {
		ask = append(ask, kafka.FirstOffsetOf(p), kafka.LastOffsetOf(p))
	}
	listed, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{name: ask}})
	if err != nil {
		return nil, fmt.Errorf("asking for the offsets of %s: %w", name, err)
	}
	g.behind, g.short = map[int]int64{}, map[int]int64{}
	for _, p := range listed.Topics[name] {
		switch n := max(next[p.Partition], p.FirstOffset); {
		case p.Error != nil:
		case n < p.LastOffset:
			g.behind[p.Partition] = n
		case n > p.LastOffset:
			g.short[p.Partition] = p.FirstOffset
			err = fmt.Errorf("partition %d of %s ends at offset %d, and was read up to %d", p.Partition, name, p.LastOffset, n)
		}
	}
	return &g, err
}

package topic

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/tricycle-relay/tricycle/lib/dial"
	"github.com/tricycle-relay/tricycle/lib/retry"
)

const (
	checkInterval = time.Second
	retryInterval = 200 * time.Millisecond // between checks of which one has failed
	// requestTimeout leaves room for a slow link: opening a connection takes
	// four round trips before the request itself.
	requestTimeout = 8 * time.Second
	// electionTime is how long a partition may be without a leader before that
	// is worth a warning; a topic that was just created is for a moment.
	electionTime = 5 * time.Second
	maxMistakes  = 100 // texts that are logged until the cluster is available again
)

var errNotYet = errors.New("not connected yet")

// Cluster is a client of a Kafka cluster that reopens all its connections as
// soon as no partition can be reached: kafka-go by itself may keep those of a
// broker that was restarted (its issues 387 and 955).
type Cluster struct {
	config Config
	client string // id
	log    zerolog.Logger
	slowed zerolog.Logger // at most one event in ten seconds
	dialer dial.Dialer

	request, election time.Duration // requestTimeout and electionTime

	mu         sync.Mutex
	kafka      *kafka.Client
	cut        func()        // closes every connection of kafka
	err        error         // of the last check
	partitions int           // of the topic; 0 before the first check that succeeded
	bad        map[int]error // partitions whose leader does not answer

	// Used by Run only.
	examined time.Time       // when the topics' settings were checked
	warned   map[string]bool // settings that a warning was logged for
}

// NewCluster returns a client with the client id. It connects in [Cluster.Run].
func NewCluster(config Config, clientID string, log zerolog.Logger) *Cluster {
	c := &Cluster{config: config, client: clientID, log: log, err: errNotYet, warned: map[string]bool{}, request: requestTimeout, election: electionTime}
	c.slowed = log.Sample(&zerolog.BurstSampler{Burst: 1, Period: 10 * time.Second})
	c.dialer.Handshake = config.examined(&c.dialer)
	c.open()
	return c
}

// Run checks every second that the leaders of the topic's partitions answer.
// It creates missing topics, and reopens the connections when no partition can
// be reached. When ctx is cancelled, it closes the connections and returns nil.
func (c *Cluster) Run(ctx context.Context) error {
	var noLeader time.Time                     // since when a partition has none; zero if all have one
	mistakes, reported := map[string]bool{}, 0 // logged since the cluster was available
	former := ""                               // id of the cluster
	for interval := time.Duration(0); retry.Pause(ctx, interval); {
		id, partitions, bad, err := c.check(ctx)
		if ctx.Err() != nil {
			break
		}
		was := c.Ready(ctx)
		if err == nil && len(bad) == 0 || err != nil && !hasNoLeader(err) {
			noLeader = time.Time{}
		} else if noLeader.IsZero() {
			noLeader = time.Now()
		}
		electing := time.Since(noLeader) < c.election
		if err == nil && len(bad) > 0 && (len(bad) == partitions || was != nil && electing) {
			number := slices.Min(slices.Collect(maps.Keys(bad)))
			err = fmt.Errorf("get the offsets of %s, partition %d: %w", c.config.Topic, number, bad[number])
		}
		err = c.config.explain(err, c.Partitions() > 0)
		c.mu.Lock()
		if c.err = err; err == nil {
			c.partitions, c.bad = partitions, bad
		}
		c.mu.Unlock()

		interval = checkInterval
		if err != nil {
			interval = retryInterval
			if electing && hasNoLeader(err) {
				continue
			}
			// Each broker may have another one, and is asked in turn.
			known := mistakeIn(err)
			if n := len(mistakes); n == 0 || known != "" && !mistakes[known] && n < maxMistakes {
				c.log.Warn().Err(err).Strs("brokers", c.config.Brokers).Msg("kafka unavailable")
				mistakes[known] = true
			}
			if errors.Is(err, errSetting) {
				interval = checkInterval
			} else {
				c.reopen()
			}
			continue
		}
		if former != "" && former != id {
			c.log.Warn().Str("cluster_id", id).Str("former", former).Strs("brokers", c.config.Brokers).Msg("brokers of another cluster answer")
		}
		former = id
		if was != nil {
			c.log.Info().Str("cluster_id", id).Strs("brokers", c.config.Brokers).Int("partitions", partitions).Msg("kafka available")
			clear(mistakes)
		}
		if n := len(bad); n != reported && (n == 0 || !electing) {
			if n == 0 {
				c.log.Info().Msg("every partition available")
			}
			for _, number := range slices.Sorted(maps.Keys(bad)) {
				c.log.Warn().Err(bad[number]).Int("partition", number).Msg("partition unavailable")
			}
			reported = n
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut()
	return nil
}

// Ready returns the error of the last check: nil if a partition could be
// reached and the topic's settings admit messages.
func (c *Cluster) Ready(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Partitions returns the number of partitions of the topic, 0 while unknown.
func (c *Cluster) Partitions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.partitions
}

// Reachable reports whether the partition answered at the last check.
func (c *Cluster) Reachable(partition int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bad[partition] == nil
}

// Client returns the kafka-go client for the next request. The one of an earlier
// call may be closed.
func (c *Cluster) Client() *kafka.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kafka
}

// Produce writes messages to one partition in one request (acks=all) and returns
// the offset of the first. It uses their keys, values and headers. After an
// error, they may be written or not.
func (c *Cluster) Produce(ctx context.Context, topic string, partition int, messages ...kafka.Message) (int64, error) {
	records := make([]kafka.Record, len(messages))
	for i, m := range messages {
		records[i] = kafka.Record{Key: kafka.NewBytes(m.Key), Value: kafka.NewBytes(m.Value), Headers: m.Headers}
	}
	resp, err := c.Client().Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
	})
	if err == nil {
		err = resp.Error
		if resp.Throttle > 0 { // the broker reads no further request on this connection for so long
			c.slowed.Warn().Str("client_id", c.client).Stringer("throttle", resp.Throttle).Msg("kafka throttles this client")
		}
	}
	if away := c.Ready(ctx); away != nil && errors.Is(err, protocol.ErrNoTopic) {
		err = errors.New(away.Error()) // kafka-go knows no topic before a broker has answered
	}
	if errors.Is(err, kafka.InvalidTimestamp) {
		err = fmt.Errorf("%s: must be %s, or the clocks of producer and broker must agree: %w", timestampType, appendTime, err)
	}
	if err != nil {
		return 0, fmt.Errorf("produce to %s, partition %d: %w", topic, partition, err)
	}
	return resp.BaseOffset, nil
}

// check returns the id of the cluster, the number of partitions of the topic, and an
// error for each that cannot be reached.
func (c *Cluster) check(ctx context.Context) (id string, partitions int, bad map[int]error, err error) {
	client := c.Client()
	metadata, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{c.config.Topic, c.config.DeadLetterTopic}})
	if err != nil {
		return "", 0, nil, fmt.Errorf("get the topics: %w", err)
	}
	var missing []kafka.TopicConfig
	for i, t := range metadata.Topics {
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			missing = append(missing, c.config.topics()[i])
		}
	}
	if len(missing) > 0 {
		if err := c.create(ctx, missing); err != nil {
			return "", 0, nil, err
		}
	}
	if err := metadata.Topics[0].Error; err != nil {
		return "", 0, nil, fmt.Errorf("get topic %s: %w", c.config.Topic, err)
	}
	if err := c.examine(ctx, client); err != nil {
		return "", 0, nil, err
	}
	// Metadata may be cached. This asks each leader in a request of its own: one
	// that is silent does not hide the others.
	bad = map[int]error{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, p := range metadata.Topics[0].Partitions {
		asking.Go(func() {
			resp, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{c.config.Topic: {kafka.LastOffsetOf(p.ID)}}})
			if err == nil && len(resp.Topics[c.config.Topic]) == 1 {
				err = resp.Topics[c.config.Topic][0].Error
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				bad[p.ID] = err
			}
		})
	}
	asking.Wait()
	return metadata.ClusterID, len(metadata.Topics[0].Partitions), bad, nil
}

func (c *Cluster) open() {
	ctx, cancel := context.WithCancel(context.Background())
	transport := &kafka.Transport{
		// kafka-go also gives up its own requests for metadata after the TTL. A new
		// connection takes four round trips, which have the time of one request of ours.
		MetadataTTL: c.request / 4,
		Dial:        c.Dial(ctx), DialTimeout: c.request, ClientID: c.client, Context: ctx, SASL: c.Login(),
		MetadataTopics: []string{c.config.Topic, c.config.DeadLetterTopic},
	}
	c.kafka = &kafka.Client{Addr: kafka.TCP(Bootstrap), Timeout: c.request, Transport: transport}
	c.cut = func() {
		transport.CloseIdleConnections() // ends the goroutines of idle ones
		cancel()                         // closes the others
	}
}

func (c *Cluster) reopen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut()
	c.open()
}

// Bootstrap is the address for which [Cluster.Dial] dials the configured brokers,
// the next one if one does not answer. Given the list, kafka-go would keep using
// the first that accepts a connection.
const Bootstrap = "bootstrap.invalid:9092"

// Dial returns a function that dials connections which are closed when owner
// ends: a request that waits on one of them ends with its owner.
func (c *Cluster) Dial(owner context.Context) func(ctx context.Context, network, address string) (net.Conn, error) {
	dial := c.dialer.Until(owner)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == Bootstrap {
			address = strings.Join(c.config.Brokers, " ")
		}
		return dial(ctx, network, address)
	}
}

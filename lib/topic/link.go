package topic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
	electionTime    = 5 * time.Second
	examineInterval = 30 * time.Second
)

var (
	errNotYet  = errors.New("kafka has not answered yet")
	errSetting = errors.New("wrong setting of the topic")
)

// Link is the way of a service to the brokers: a client whose connections are
// all thrown away and opened anew as soon as no partition can be reached by
// them, because kafka-go by itself may hold on to those of a broker that was
// restarted (its issues 387 and 955).
type Link struct {
	config Config
	client string // client id
	log    zerolog.Logger
	dialer dial.Dialer

	mu         sync.Mutex
	kafka      *kafka.Client
	cut        func()        // closes every connection of kafka
	err        error         // outcome of the last check
	partitions int           // of the topic; 0 before the first check that succeeded
	bad        map[int]error // partitions whose leader does not answer

	// Only of Run.
	examined time.Time       // the topics' settings
	warned   map[string]bool // about settings
}

// NewLink returns a link that introduces itself to the brokers by the client
// id. It does nothing before [Link.Run].
func NewLink(c Config, clientID string, log zerolog.Logger) *Link {
	l := &Link{config: c, client: clientID, log: log, err: errNotYet, warned: map[string]bool{}}
	l.open()
	return l
}

// Run checks once a second that the partitions of the topic have leaders that
// answer, creates the topics when they are absent and reopens the link when
// no partition can be reached, until ctx is cancelled, when it closes the link.
func (l *Link) Run(ctx context.Context) error {
	var trouble time.Time // since when a partition has no leader; zero if all have
	said, saidBad := false, 0
	for ctx.Err() == nil {
		partitions, bad, err := l.check(ctx)
		if ctx.Err() != nil {
			break
		}
		l.mu.Lock()
		was := l.err
		l.mu.Unlock()
		if err == nil && len(bad) == 0 || err != nil && !hasNoLeader(err) {
			trouble = time.Time{}
		} else if trouble.IsZero() {
			trouble = time.Now()
		}
		electing := time.Since(trouble) < electionTime
		if err == nil && (len(bad) == partitions || was != nil && electing) {
			for number, cause := range bad {
				err = fmt.Errorf("get the offsets of %s, partition %d: %w", l.config.Topic, number, cause)
			}
		}
		l.mu.Lock()
		l.err = err
		if err == nil {
			l.partitions, l.bad = partitions, bad
		}
		l.mu.Unlock()
		interval := checkInterval
		switch {
		case err != nil && electing && hasNoLeader(err):
			interval = retryInterval
		case err != nil:
			interval = retryInterval
			if !said {
				l.log.Warn().Err(err).Strs("brokers", l.config.Brokers).Msg("kafka is away; trying until it is back")
			}
			said = true
			if errors.Is(err, errSetting) {
				interval = checkInterval
				break
			}
			l.reopen()
		case was != nil:
			l.log.Info().Strs("brokers", l.config.Brokers).Int("partitions", partitions).Msg("kafka answers")
			said = false
		}
		if n := len(bad); err == nil && n != saidBad && (n == 0 || !electing) {
			if n == 0 {
				l.log.Info().Msg("every partition has a leader")
			}
			for _, number := range slices.Sorted(maps.Keys(bad)) {
				l.log.Warn().Err(bad[number]).Int("partition", number).Msg("partition has no leader")
			}
			saidBad = n
		}
		retry.Pause(ctx, interval)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
	return nil
}

// hasNoLeader reports whether the error is that of a partition between two
// leaders, or of a topic not yet known to every broker.
func hasNoLeader(err error) bool {
	for _, e := range []error{
		kafka.NotLeaderForPartition, kafka.LeaderNotAvailable, kafka.UnknownTopicOrPartition,
		protocol.ErrNoLeader, protocol.ErrNoPartition, protocol.ErrNoTopic,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Ready returns nil if at the last check a partition could be reached and the
// topic's settings allow messages, else why not. It asks nobody.
func (l *Link) Ready(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Partitions returns the number of partitions of the topic, 0 as long as that
// is not known.
func (l *Link) Partitions() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.partitions
}

// Route returns the partition number modulo the number of partitions, or the
// next one after it that could be reached at the last check.
func (l *Link) Route(number int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := max(1, l.partitions)
	for i := range n {
		if p := (number + i) % n; l.bad[p] == nil {
			return p
		}
	}
	return number % n
}

// Client returns the client as it is now. It is asked for anew for each
// request, since the link may be reopened.
func (l *Link) Client() *kafka.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kafka
}

// TooLarge reports whether a request to produce was refused because its records
// are more than the topic's max.message.bytes.
func TooLarge(err error) bool {
	return errors.Is(err, kafka.MessageSizeTooLarge) || errors.Is(err, kafka.RecordListTooLarge)
}

// Torn reports whether a broker closed the connection under a request, which
// is its answer to more than its socket.request.max.bytes, among other things.
func Torn(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// Produce writes key, value and headers of the messages to one partition of a
// topic in one request and returns the offset of the first. A nil error means
// that every replica in sync has them (acks=all); after any other they may be
// there or not.
func (l *Link) Produce(ctx context.Context, topic string, partition int, messages ...kafka.Message) (int64, error) {
	records := make([]kafka.Record, len(messages))
	for i, m := range messages {
		records[i] = kafka.Record{Key: kafka.NewBytes(m.Key), Value: kafka.NewBytes(m.Value), Headers: m.Headers}
	}
	resp, err := l.Client().Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
	})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return 0, fmt.Errorf("producing to %s, partition %d: %w", topic, partition, err)
	}
	return resp.BaseOffset, nil
}

// check returns the number of partitions of the topic and the errors of those
// that cannot be reached.
func (l *Link) check(ctx context.Context) (partitions int, bad map[int]error, err error) {
	client := l.Client()
	metadata, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{l.config.Topic, l.config.DeadLetterTopic}})
	if err != nil {
		return 0, nil, fmt.Errorf("get the topics: %w", err)
	}
	var missing []kafka.TopicConfig
	for i, t := range metadata.Topics {
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			missing = append(missing, l.config.topics()[i])
		}
	}
	if len(missing) > 0 {
		return 0, nil, l.create(ctx, missing)
	}
	if err := metadata.Topics[0].Error; err != nil {
		return 0, nil, fmt.Errorf("get topic %s: %w", l.config.Topic, err)
	}
	if err := l.examine(ctx, client); err != nil {
		return 0, nil, err
	}
	// Metadata comes from a cache. This asks the leader of each partition, each
	// by itself lest one that is silent hide the answers of the others.
	bad = map[int]error{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, p := range metadata.Topics[0].Partitions {
		asking.Go(func() {
			resp, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{l.config.Topic: {kafka.LastOffsetOf(p.ID)}}})
			if err == nil && len(resp.Topics[l.config.Topic]) == 1 {
				err = resp.Topics[l.config.Topic][0].Error
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				bad[p.ID] = err
			}
		})
	}
	asking.Wait()
	return len(metadata.Topics[0].Partitions), bad, nil
}

// create creates topics. It returns an error even if it succeeds, since they
// have no leaders yet.
func (l *Link) create(ctx context.Context, missing []kafka.TopicConfig) error {
	resp, err := l.Client().CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: missing})
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	created := true
	for name, err := range resp.Errors {
		if errors.Is(err, kafka.TopicAlreadyExists) { // another service was faster
			created = false
		} else if err != nil {
			return fmt.Errorf("create topic %s: %w", name, err)
		}
	}
	if created {
		l.log.Info().Str("topic", l.config.Topic).Str("dead_letter_topic", l.config.DeadLetterTopic).Msg("topics were created")
	}
	l.examined = time.Time{}
	return fmt.Errorf("topics have just been created: %w", kafka.LeaderNotAvailable)
}

// examine compares the settings of the topics with those that they are created
// with. It returns an error only if a message cannot be written at all.
func (l *Link) examine(ctx context.Context, client *kafka.Client) error {
	if time.Since(l.examined) < examineInterval {
		return nil
	}
	var resources []kafka.DescribeConfigRequestResource
	for _, name := range []string{l.config.Topic, l.config.DeadLetterTopic} {
		resources = append(resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: name, ConfigNames: []string{maxMessageBytes, compressionType},
		})
	}
	resp, err := client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: resources})
	if err != nil {
		l.log.Debug().Err(err).Msg("topic settings were not checked")
		return nil
	}
	for _, r := range resp.Resources {
		if r.Error != nil { // such as no right to see them
			l.log.Debug().Err(r.Error).Str("topic", r.ResourceName).Msg("topic settings were not checked")
		}
		for _, e := range r.ConfigEntries {
			n, _ := strconv.Atoi(e.ConfigValue)
			switch {
			case e.ConfigName == maxMessageBytes && n < MessageBytes && r.ResourceName == l.config.Topic:
				return fmt.Errorf("%w %s: %s: must be at least %d, got %d", errSetting, r.ResourceName, maxMessageBytes, MessageBytes, n)
			case e.ConfigName == maxMessageBytes && n > maxRecordBytes, e.ConfigName == compressionType && e.ConfigValue != uncompressed:
				if text := r.ResourceName + e.ConfigName + e.ConfigValue; !l.warned[text] {
					l.warned[text] = true
					l.log.Warn().Str("topic", r.ResourceName).Str("setting", e.ConfigName).Str("value", e.ConfigValue).Str("expected", Limits()[e.ConfigName]).
						Msg("topic admits decompression bombs")
				}
			}
		}
	}
	l.examined = time.Now()
	return nil
}

func (l *Link) open() {
	ctx, cancel := context.WithCancel(context.Background())
	transport := &kafka.Transport{
		Dial: l.Dial(ctx), DialTimeout: requestTimeout, MetadataTTL: checkInterval, ClientID: l.client, Context: ctx,
		MetadataTopics: []string{l.config.Topic, l.config.DeadLetterTopic},
	}
	l.kafka = &kafka.Client{Addr: kafka.TCP(Bootstrap), Timeout: requestTimeout, Transport: transport}
	l.cut = func() {
		transport.CloseIdleConnections() // the goroutines of those that nobody uses
		cancel()                         // the others
	}
}

func (l *Link) reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
	l.open()
}

// Bootstrap is an address for kafka-go by which [Link.Dial] dials the brokers
// to begin with, and walks on from those that do not answer. kafka-go would
// keep to the first of a list that accepts a connection.
const Bootstrap = "bootstrap.invalid:9092"

// Dial returns a function that dials connections which are closed when ctx is
// cancelled. So nothing that waits on one of them outlives its owner.
func (l *Link) Dial(ctx context.Context) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(dialCtx context.Context, network, address string) (net.Conn, error) {
		dialCtx, cancel := context.WithCancel(dialCtx)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		if address == Bootstrap {
			address = strings.Join(l.config.Brokers, " ")
		}
		c, err := l.dialer.DialContext(dialCtx, network, address)
		if err != nil {
			return nil, err
		}
		return conn{c, context.AfterFunc(ctx, func() { _ = c.Close() })}, nil
	}
}

type conn struct {
	net.Conn
	forget func() bool
}

func (c conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// ErrorType names an error for the attribute error.type of a span: the code of
// the protocol where there is one.
func ErrorType(err error) string {
	var code kafka.Error
	switch {
	case errors.As(err, &code):
		return strings.ReplaceAll(strings.ToLower(code.Title()), " ", "_")
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "connection"
}

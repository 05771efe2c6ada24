package topic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
)

const (
	checkInterval = time.Second
	dialTimeout   = 3 * time.Second
	// requestTimeout leaves room for a slow link: opening a connection takes
	// four round trips before the request itself.
	requestTimeout = 8 * time.Second
)

var (
	errNotYet  = errors.New("kafka has not answered yet")
	errCreated = errors.New("the topics have just been created")
)

// Link is the way of a service to the brokers: a client whose connections are
// all thrown away and opened anew as soon as the brokers stop answering on
// them, because kafka-go by itself may hold on to those of a broker that was
// restarted (its issues 387 and 955).
type Link struct {
	config Config
	client string // client id
	log    zerolog.Logger

	mu         sync.Mutex
	kafka      *kafka.Client
	cut        func() // closes every connection of kafka
	err        error  // outcome of the last check
	partitions int    // of the topic; 0 before the first check that succeeded
}

// NewLink returns a link that introduces itself to the brokers by the client
// id. It does nothing before [Link.Run].
func NewLink(c Config, clientID string, log zerolog.Logger) *Link {
	l := &Link{config: c, client: clientID, log: log, err: errNotYet}
	l.open()
	return l
}

// Run checks once a second that every partition of the topic has a leader that
// answers, creates the topics when they are absent and reopens the link when
// the check fails, until ctx is cancelled, when it closes the link.
func (l *Link) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		partitions, err := l.check(ctx)
		if ctx.Err() != nil {
			break
		}
		l.mu.Lock()
		was := l.err
		l.err = err
		if err == nil {
			l.partitions = partitions
		}
		l.mu.Unlock()
		switch {
		case err == errCreated:
			l.log.Info().Str("topic", l.config.Topic).Str("dead_letter_topic", l.config.DeadLetterTopic).Msg("topics were created")
			Pause(ctx, checkInterval/10)
			continue
		case err != nil:
			if was == nil || was == errNotYet || was == errCreated {
				l.log.Warn().Err(err).Strs("brokers", l.config.Brokers).Msg("kafka is away; trying until it is back")
			}
			l.reopen()
		case was != nil:
			l.log.Info().Strs("brokers", l.config.Brokers).Int("partitions", partitions).Msg("kafka answers")
		}
		Pause(ctx, checkInterval)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut()
	return nil
}

// Ready returns nil if the brokers answered at the last check, else why not.
// It asks nobody.
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

// Client returns the client as it is now. It is asked for anew for each
// request, since the link may be reopened.
func (l *Link) Client() *kafka.Client {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.kafka
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

func (l *Link) check(ctx context.Context) (partitions int, err error) {
	client := l.Client()
	metadata, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{l.config.Topic, l.config.DeadLetterTopic}})
	if err != nil {
		return 0, fmt.Errorf("asking for the topics: %w", err)
	}
	var missing []kafka.TopicConfig
	for i, t := range metadata.Topics {
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			missing = append(missing, l.config.topics()[i])
		}
	}
	if len(missing) > 0 {
		resp, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: missing})
		if err != nil {
			return 0, fmt.Errorf("creating topics: %w", err)
		}
		for name, err := range resp.Errors {
			if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) { // another service was faster
				return 0, fmt.Errorf("creating topic %s: %w", name, err)
			}
		}
		return 0, errCreated
	}
	if err := metadata.Topics[0].Error; err != nil {
		return 0, fmt.Errorf("asking for topic %s: %w", l.config.Topic, err)
	}
	// Metadata comes from a cache. This asks the leader of each partition.
	var ask []kafka.OffsetRequest
	for _, p := range metadata.Topics[0].Partitions {
		ask = append(ask, kafka.LastOffsetOf(p.ID))
	}
	offsets, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{l.config.Topic: ask}})
	if err != nil {
		return 0, fmt.Errorf("asking for the offsets of %s: %w", l.config.Topic, err)
	}
	for _, p := range offsets.Topics[l.config.Topic] {
		if p.Error != nil {
			return 0, fmt.Errorf("asking for the offsets of %s, partition %d: %w", l.config.Topic, p.Partition, p.Error)
		}
	}
	return len(ask), nil
}

func (l *Link) open() {
	ctx, cancel := context.WithCancel(context.Background())
	transport := &kafka.Transport{
		Dial: Dial(ctx), DialTimeout: requestTimeout, MetadataTTL: checkInterval, ClientID: l.client, Context: ctx,
		MetadataTopics: []string{l.config.Topic, l.config.DeadLetterTopic},
	}
	l.kafka = &kafka.Client{Addr: kafka.TCP(l.config.Brokers...), Timeout: requestTimeout, Transport: transport}
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

// Dial returns a function that dials connections which are closed when ctx is
// cancelled. So nothing that waits on one of them outlives its owner.
func Dial(ctx context.Context) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(dialCtx context.Context, network, address string) (net.Conn, error) {
		dialCtx, cancel := context.WithTimeout(dialCtx, dialTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		c, err := new(net.Dialer).DialContext(dialCtx, network, address)
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

// Pause waits for d, give or take a fifth so that several waiting for the same
// thing do not come all at once. It returns false if ctx ended first.
func Pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d*4/5 + rand.N(d*2/5+1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
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

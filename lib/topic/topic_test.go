package topic_test

import (
	"context"
	"errors"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/relaytest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }

// create returns a client that does not run yet, and its log.
func create(c topic.Config) (*topic.Cluster, *servicetest.Console) {
	var log servicetest.Console
	return topic.NewCluster(c, "test", zerolog.New(&log)), &log
}

// embedded returns an embedded broker with a client that does not run yet.
func embedded(t *testing.T, options ...kfake.Opt) (*kfake.Cluster, topic.Config, *topic.Cluster, *servicetest.Console) {
	t.Helper()
	cluster, address := topictest.Cluster(t, options...)
	c := topictest.For(t, address)
	l, log := create(c)
	return cluster, c, l, log
}

func TestValidate(t *testing.T) {
	t.Parallel()
	if err := topic.Defaults().Validate(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*topic.Config)
		want   string
	}{
		"no broker":         {func(c *topic.Config) { c.Brokers = nil }, "kafka.brokers: must have at least one host:port, got none"},
		"no port":           {func(c *topic.Config) { c.Brokers = []string{"kafka"} }, `kafka.brokers: must be host:port with a port from 1 to 65535, got "kafka"`},
		"second is wrong":   {func(c *topic.Config) { c.Brokers = []string{"a:1", "b:0"} }, `kafka.brokers: must be host:port with a port from 1 to 65535, got "b:0"`},
		"empty topic":       {func(c *topic.Config) { c.Topic = "" }, `kafka.topic: must be 1 to 249 letters, digits, dots, underscores and hyphens, got ""`},
		"space in topic":    {func(c *topic.Config) { c.Topic = "a b" }, `kafka.topic: must be 1 to 249 letters, digits, dots, underscores and hyphens, got "a b"`},
		"dots only":         {func(c *topic.Config) { c.DeadLetterTopic = ".." }, `kafka.dead_letter_topic: must be 1 to 249 letters, digits, dots, underscores and hyphens, got ".."`},
		"too long":          {func(c *topic.Config) { c.Topic = strings.Repeat("a", 250) }, `kafka.topic: must be 1 to 249 letters, digits, dots, underscores and hyphens, got "` + strings.Repeat("a", 250) + `"`},
		"one topic for all": {func(c *topic.Config) { c.DeadLetterTopic = c.Topic }, `kafka.dead_letter_topic: must differ from kafka.topic, got "tricycle.messages"`},
		"no partition":      {func(c *topic.Config) { c.Partitions = 0 }, "kafka.partitions: must be between 1 and 1000, got 0"},
		"no replica":        {func(c *topic.Config) { c.ReplicationFactor = 0 }, "kafka.replication_factor: must be between 1 and 100, got 0"},
		"no hours":          {func(c *topic.Config) { c.RetentionHours = 0 }, "kafka.retention_hours: must be between 1 and 87600, got 0"},
		"no megabytes":      {func(c *topic.Config) { c.RetentionMegabytes = -1 }, "kafka.retention_megabytes: must be between 1 and 1048576, got -1"},

		"TLS is off":               {func(c *topic.Config) { c.TLS.CAFile = "ca.pem" }, "kafka.tls.enabled: must be true with other keys of kafka.tls, got false"},
		"certificate without key":  {func(c *topic.Config) { c.TLS.Enabled, c.TLS.CertificateFile = true, "c.pem" }, "kafka.tls.key_file: must name the key of c.pem, got nothing"},
		"key without certificate":  {func(c *topic.Config) { c.TLS.Enabled, c.TLS.KeyFile = true, "k.pem" }, "kafka.tls.certificate_file: must name the certificate of k.pem, got nothing"},
		"unknown mechanism":        {func(c *topic.Config) { c.SASL = topic.SASL{Mechanism: "GSSAPI", User: "u", PasswordFile: "p"} }, `kafka.sasl.mechanism: must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, got "GSSAPI"`},
		"mechanism without user":   {func(c *topic.Config) { c.SASL = topic.SASL{Mechanism: "PLAIN", PasswordFile: "p"} }, "kafka.sasl.user: must be the name of a Kafka user, got nothing"},
		"user without a mechanism": {func(c *topic.Config) { c.SASL = topic.SASL{User: "u", PasswordFile: "p"} }, `kafka.sasl.mechanism: must be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, got ""`},
		"no password":              {func(c *topic.Config) { c.SASL = topic.SASL{Mechanism: "PLAIN", User: "u"} }, "kafka.sasl.password_file: must name a file with the password, got nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			config := topic.Defaults()
			c.change(&config)
			if err := config.Validate(); err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	var h topic.Headers
	h.Set("traceparent", "1")
	h.Set("tracestate", "2")
	h.Set("traceparent", "3")
	if got := h.Get("traceparent") + h.Get("tracestate") + h.Get("none"); got != "32" {
		t.Errorf("got %q", got)
	}
	if got := strings.Join(h.Keys(), " "); got != "traceparent tracestate" {
		t.Errorf("got keys %q", got)
	}
}

func TestTopicsAreCreatedOnce(t *testing.T) {
	t.Parallel()
	c := topictest.Config(t)
	c.Partitions, c.RetentionHours, c.RetentionMegabytes = 3, 2, 5
	first, second := topic.NewCluster(c, "first", zerolog.Nop()), topic.NewCluster(c, "second", zerolog.Nop())
	if first.Ready(t.Context()) == nil || first.Partitions() != 0 {
		t.Error("ready before it has asked")
	}
	topictest.Run(t, first)
	topictest.Run(t, second)
	if first.Partitions() != 3 || second.Partitions() != 3 {
		t.Errorf("got %d and %d partitions, want 3", first.Partitions(), second.Partitions())
	}
	for _, name := range []string{c.Topic, c.DeadLetterTopic} {
		resp, err := first.Client().DescribeConfigs(t.Context(), &kafka.DescribeConfigsRequest{
			Resources: []kafka.DescribeConfigRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: name}},
		})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, e := range resp.Resources[0].ConfigEntries {
			if e.ConfigSource == 1 { // the topic, not the broker
				found[e.ConfigName] = e.ConfigValue
			}
		}
		if found["retention.ms"] != "7200000" || found["retention.bytes"] != "5242880" {
			t.Errorf("%s: got retention of %s ms and %s bytes", name, found["retention.ms"], found["retention.bytes"])
		}
		if found["compression.type"] != "uncompressed" || found["max.message.bytes"] != "1048588" {
			t.Errorf("%s: got %s records of at most %s bytes, want a topic that excludes decompression bombs", name, found["compression.type"], found["max.message.bytes"])
		}
		if found["message.timestamp.type"] != "LogAppendTime" || found["cleanup.policy"] != "delete" {
			t.Errorf("%s: got %s and %s, want the clock of the broker and no compaction", name, found["message.timestamp.type"], found["cleanup.policy"])
		}
		for _, wrong := range []time.Duration{-10_000 * time.Hour, 10_000 * time.Hour} {
			resp, err := first.Client().Produce(t.Context(), &kafka.ProduceRequest{Topic: name, Partition: 1, RequiredAcks: kafka.RequireAll,
				Records: kafka.NewRecordReader(kafka.Record{Time: time.Now().Add(wrong), Value: kafka.NewBytes([]byte("x"))})})
			if err == nil {
				err = resp.Error
			}
			if err != nil {
				t.Errorf("%s: a producer with a clock %s off: %v", name, wrong, err)
			}
		}
		if _, err := first.Produce(t.Context(), name, 2, kafka.Message{Value: []byte("x")}); err != nil {
			t.Errorf("the last partition of %s: %v", name, err)
		}
	}
}

// An existing topic may take its times from the producer.
func TestAClockThatTheBrokerRefusesIsNamed(t *testing.T) {
	t.Parallel()
	cluster, c, k, _ := embedded(t)
	topictest.Run(t, k)
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.Topic, Err: kerr.InvalidTimestamp, Count: -1})
	if _, err := k.Produce(t.Context(), c.Topic, 0, kafka.Message{Value: []byte("x")}); err == nil || !strings.Contains(err.Error(), "message.timestamp.type: must be LogAppendTime") {
		t.Errorf("got %v", err)
	}
}

// A quota slows the client down, and no request fails.
func TestThrottlingIsLogged(t *testing.T) {
	t.Parallel()
	cluster, c, l, log := embedded(t)
	topictest.Run(t, l)
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		request := r.(*kmsg.ProduceRequest)
		response := request.ResponseKind().(*kmsg.ProduceResponse)
		response.ThrottleMillis = 3000
		topic, partition := kmsg.NewProduceResponseTopic(), kmsg.NewProduceResponseTopicPartition()
		topic.Topic, topic.TopicID, topic.Partitions = request.Topics[0].Topic, request.Topics[0].TopicID, append(topic.Partitions, partition)
		response.Topics = append(response.Topics, topic)
		return response, nil, true
	})
	for range 3 {
		if _, err := l.Produce(t.Context(), c.Topic, 0, kafka.Message{Value: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if n := log.Count(`"client_id":"test","throttle":"3s","message":"kafka throttles this client"`); n != 1 {
		t.Errorf("got %d lines, want 1:\n%s", n, log.String())
	}
}

func TestProduceWaitsForEveryReplica(t *testing.T) {
	t.Parallel()
	cluster, c, l, _ := embedded(t)
	topictest.Run(t, l)
	acks := make(chan int16, 100)
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		acks <- r.(*kmsg.ProduceRequest).Acks
		return nil, nil, false
	})
	for want := range int64(3) {
		offset, err := l.Produce(t.Context(), c.Topic, 1, kafka.Message{Key: []byte("k"), Value: []byte("v")})
		if err != nil || offset != want {
			t.Errorf("got offset %d, %v, want %d", offset, err, want)
		}
	}
	if got := <-acks; got != -1 {
		t.Errorf("got acks %d, want -1, which means all", got)
	}
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas})
	if _, err := l.Produce(t.Context(), c.Topic, 1, kafka.Message{}); !errors.Is(err, kafka.NotEnoughReplicas) {
		t.Errorf("got %v, want the broker's error", err)
	} else if got := topic.ErrorType(err); got != "not_enough_replicas" {
		t.Errorf("got error type %q", got)
	}
}

func TestSettingsOfTheTopic(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ setting, wrong, want, right string }{
		"one message is too large": {"max.message.bytes", "100", "must be at least 512, got 100", "512"},
		"compacted":                {"cleanup.policy", "compact,delete", "must be delete since its creation, got compact,delete", "delete"},
	} {
		t.Run(name, func(t *testing.T) {
			k := topictest.Config(t)
			topictest.Create(t, k, c.setting, c.wrong)
			l, log := create(k)
			topictest.Start(t, l)
			want := k.Topic + ": " + c.setting + ": " + c.want
			topictest.Unready(t, l, want)
			log.Find(t, regexp.QuoteMeta(want))
			if l.Partitions() != 0 {
				t.Error("the topic can be used")
			}
			resp, err := l.Client().AlterConfigs(t.Context(), &kafka.AlterConfigsRequest{Resources: []kafka.AlterConfigRequestResource{{
				ResourceType: kafka.ResourceTypeTopic, ResourceName: k.Topic, Configs: []kafka.AlterConfigRequestConfig{{Name: c.setting, Value: c.right}},
			}}})
			if err == nil {
				for _, err = range resp.Errors {
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			topictest.Ready(t, l)
		})
	}
	t.Run("bombs are admitted", func(t *testing.T) {
		c := topictest.Config(t)
		topictest.Create(t, c, "max.message.bytes", "2000000", "compression.type", "producer")
		l, log := create(c)
		topictest.Run(t, l)
		if got := log.Count("decompression bombs"); got != 4 {
			t.Errorf("got %d warnings, want one for each topic and setting:\n%s", got, log)
		}
	})
	t.Run("they are secret", func(t *testing.T) {
		cluster, _, l, log := embedded(t)
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		topictest.Run(t, l)
		if log.Has(`"level":"warn"`) || !log.Has("not checked") {
			t.Errorf("got %s", log)
		}
	})
}

// refuseOne makes the broker refuse requests for offsets of partition 1.
func refuseOne(cluster *kfake.Cluster, err *kerr.Error) *kfake.FaultHandle {
	return cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListOffsets}, Partitions: []int32{1}, Err: err, Count: -1})
}

func TestEachPartitionsTroubleIsItsOwn(t *testing.T) {
	t.Parallel()
	cluster, _, l, log := embedded(t)
	l.Hasten(8*time.Second, time.Second)
	topictest.Run(t, l)
	client := l.Client()
	refusal := refuseOne(cluster, kerr.NotLeaderForPartition)
	servicetest.Eventually(t, time.Minute, "the partition is unreachable", func() bool { return !l.Reachable(1) })
	log.Find(t, `"partition":1,"message":"partition unavailable"`)
	if err := l.Ready(t.Context()); err != nil || l.Client() != client {
		t.Errorf("got %v, want it ready with the same connections", err)
	}
	for _, other := range []int{0, 2, 3} {
		if !l.Reachable(other) {
			t.Errorf("partition %d is unreachable too", other)
		}
	}
	refusal.Remove()
	servicetest.Eventually(t, time.Minute, "the partition is reachable", func() bool { return l.Reachable(1) })
}

func TestTopicsThatWereJustCreatedAreNoTrouble(t *testing.T) {
	t.Parallel()
	for _, refusal := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.OffsetNotAvailable} {
		t.Run(refusal.Message, func(t *testing.T) {
			t.Parallel()
			cluster, _, l, log := embedded(t)
			refusing := refuseOne(cluster, refusal)
			stop := topictest.Start(t, l)
			servicetest.Eventually(t, time.Minute, "it waits for a leader", func() bool { return errors.Is(l.Ready(t.Context()), kafka.Error(refusal.Code)) })
			refusing.Remove()
			topictest.Ready(t, l)
			stop()
			if log.Has(`"level":"warn"`) {
				t.Errorf("got a warning:\n%s", log)
			}
		})
	}
}

func TestAnAddressWithoutABrokerIsPassedOver(t *testing.T) {
	t.Parallel()
	c := topictest.Config(t)
	c.Brokers = append([]string{relaytest.New(t, "127.0.0.1:0", "").Address, rude(t, nil, web...), rude(t, nil, 21, 3, 3, 0, 2, 2, 80)}, c.Brokers...)
	l, _ := create(c)
	l.Hasten(2*time.Second, time.Second)
	topictest.Run(t, l) // waits until it is ready
}

func TestErrorType(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{
		context.DeadlineExceeded:                         "timeout",
		&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}: "timeout",
		net.ErrClosed: "connection",
	} {
		if got := topic.ErrorType(err); got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}

func TestProduceNamesWhyKafkaIsUnavailable(t *testing.T) {
	t.Parallel()
	c := topictest.For(t, "127.0.0.1:1")
	l, _ := create(c)
	topictest.Start(t, l)
	topictest.Unready(t, l, "connection refused")
	if _, err := l.Produce(t.Context(), c.Topic, 0, kafka.Message{Value: []byte("v")}); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

func TestClusterSurvivesItsBroker(t *testing.T) {
	t.Parallel()
	dir := kfake.DataDir(t.TempDir())
	cluster, c, l, _ := embedded(t, dir)
	topictest.Run(t, l)
	produce := func() bool {
		_, err := l.Produce(t.Context(), c.Topic, 0, kafka.Message{Value: []byte("v")})
		return err == nil
	}
	if !produce() {
		t.Fatal("cannot produce")
	}
	for range 2 {
		cluster.Close()
		servicetest.Eventually(t, time.Minute, "not ready", func() bool { return l.Ready(t.Context()) != nil })
		if produce() {
			t.Fatal("produced without a broker")
		}
		cluster, _ = topictest.Cluster(t, dir, kfake.Ports(topictest.Port(t, c.Brokers[0])))
		servicetest.Eventually(t, time.Minute, "kafka is back", func() bool { return l.Ready(t.Context()) == nil })
		servicetest.Eventually(t, time.Minute, "produced", produce)
	}
}

// Answers of a broker that the check cannot use.
func TestClusterIsNotReadyWhileABrokerRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		key  kmsg.Key
		err  *kerr.Error
		want string
	}{
		"creating the topics": {kmsg.CreateTopics, kerr.TopicAuthorizationFailed, "kafka.topic: must exist or be created"},
		"a leader is missing": {kmsg.ListOffsets, kerr.LeaderNotAvailable, "get the offsets"},
		"the topic is secret": {kmsg.Metadata, kerr.TopicAuthorizationFailed, "get topic"},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, _, l, _ := embedded(t)
			fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{c.key}, Err: c.err, Count: -1})
			topictest.Start(t, l)
			topictest.Unready(t, l, c.want)
			fault.Remove()
			topictest.Ready(t, l)
		})
	}
}

func TestDialedConnectionsEndWithTheirOwner(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	owner, cut := context.WithCancel(t.Context())
	dial := topic.NewCluster(topic.Defaults(), "test", zerolog.Nop()).Dial(owner)
	conn, err := dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		read <- err
	}()
	cut()
	if err := <-read; err == nil {
		t.Error("the connection outlives its owner")
	}
	if conn, err := dial(t.Context(), "tcp", listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("dialed without an owner")
	}
}

// Messages that MS2 writes to one cluster never reach an MS3 that reads another.
func TestEachClusterIsNamed(t *testing.T) {
	t.Parallel()
	_, first := topictest.Cluster(t, kfake.ClusterID("first"))
	second, other := topictest.Cluster(t, kfake.ClusterID("second"))
	c := topictest.For(t, other)
	c.Brokers = append(c.Brokers, first)
	l, log := create(c)
	topictest.Run(t, l)
	second.Close()
	for _, want := range []string{
		`"cluster_id":"second","brokers":["` + other + `","` + first + `"],"partitions":4,"message":"kafka available"`,
		`"cluster_id":"first","former":"second","brokers":["` + other + `","` + first + `"],"message":"brokers of another cluster answer"`,
	} {
		log.Find(t, regexp.QuoteMeta(want))
	}
}

// Opening a connection takes four round trips, which have the time of one request.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	_, _, l, _ := embedded(t, topictest.Link(func() { time.Sleep(120 * time.Millisecond) }))
	l.Hasten(800*time.Millisecond, time.Second)
	topictest.Run(t, l) // waits until it is ready
}

package topic_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

// secret returns a file with one line.
func secret(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestValidateOfTLSAndSASL(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*topic.Config)
		want   string
	}{
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

func TestCheckFiles(t *testing.T) {
	t.Parallel()
	ca := credentialstest.New(t)
	pair, other := ca.Issue("client"), ca.Issue("client")
	expired := ca.Issue("client")
	ca.Write(expired, time.Now().Add(-time.Hour), "client")
	for name, c := range map[string]struct {
		change func(*topic.Config)
		want   string // the error has it; empty for none
	}{
		"all is well":         {func(c *topic.Config) { c.TLS.CertificateFile, c.TLS.KeyFile = pair.CertificateFile, pair.KeyFile }, ""},
		"no such CA":          {func(c *topic.Config) { c.TLS.CAFile = "absent.pem" }, "kafka.tls.ca_file: open absent.pem: no such file"},
		"no CA in it":         {func(c *topic.Config) { c.TLS.CAFile = pair.KeyFile }, "kafka.tls.ca_file: must name a PEM file with certificates, got " + pair.KeyFile + " without any"},
		"no such key":         {func(c *topic.Config) { c.TLS.CertificateFile, c.TLS.KeyFile = pair.CertificateFile, "absent.pem" }, "kafka.tls.key_file: open absent.pem: no such file"},
		"another's key":       {func(c *topic.Config) { c.TLS.CertificateFile, c.TLS.KeyFile = pair.CertificateFile, other.KeyFile }, "kafka.tls.certificate_file: use " + pair.CertificateFile + " with key " + other.KeyFile},
		"expired":             {func(c *topic.Config) { c.TLS.CertificateFile, c.TLS.KeyFile = expired.CertificateFile, expired.KeyFile }, "kafka.tls.certificate_file: " + expired.CertificateFile + ": certificate is valid from "},
		"no such password":    {func(c *topic.Config) { c.SASL.PasswordFile = "absent" }, "kafka.sasl.password_file: open absent: no such file"},
		"password of 2 lines": {func(c *topic.Config) { c.SASL.PasswordFile = secret(t, "a\nb") }, "kafka.sasl.password_file: must name a file with one line, got "},
	} {
		t.Run(name, func(t *testing.T) {
			config := topic.Defaults()
			config.TLS = topic.TLS{Enabled: true, Certificates: credentials.Certificates{CAFile: ca.File}}
			c.change(&config)
			switch err := config.CheckFiles(); {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// Each wrong file is one line in the log with key and file, and the client
// recovers as soon as the file is right.
func TestSecureBroker(t *testing.T) {
	t.Parallel()
	ca, stranger := credentialstest.New(t), credentialstest.New(t)
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			cluster, address := topictest.Cluster(t, kfake.TLS(ca.Server("localhost")), kfake.EnableSASL(), kfake.Superuser(mechanism, "tricycle", "right"))
			c := topictest.For(t, address)
			c.TLS = topic.TLS{Enabled: true, Certificates: credentials.Certificates{CAFile: secret(t, "")}, ServerName: "localhost"}
			c.SASL = topic.SASL{Mechanism: mechanism, User: "tricycle", PasswordFile: secret(t, "wrong")}
			var log servicetest.Console
			l := topic.NewCluster(c, "test", zerolog.New(&log))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			defer func() { cancel(); <-done }()
			copyFile := func(from, to string) {
				data, err := os.ReadFile(from)
				if err == nil {
					err = os.WriteFile(to, data, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			is := func(want string) {
				t.Helper()
				servicetest.Eventually(t, 20*time.Second, want, func() bool { return strings.Contains(fmt.Sprint(l.Ready(ctx)), want) })
				servicetest.Eventually(t, 20*time.Second, "logged: "+want, func() bool { return log.Has(strings.ReplaceAll(want, `"`, `\"`)) })
			}
			is("kafka.tls.ca_file: must name a PEM file with certificates, got " + c.TLS.CAFile)
			copyFile(stranger.File, c.TLS.CAFile)
			is("kafka.tls.ca_file: verify certificate of " + address + " with " + c.TLS.CAFile + ": x509: certificate signed by unknown authority")
			// Kafka answers a wrong password; this broker closes the connection.
			fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SASLAuthenticate}, Err: kerr.SaslAuthenticationFailed, Count: -1})
			copyFile(ca.File, c.TLS.CAFile)
			is(`kafka.sasl: user "tricycle" with the password in ` + c.SASL.PasswordFile + ": ")
			fault.Remove()
			copyFile(secret(t, "right"), c.SASL.PasswordFile)
			servicetest.Eventually(t, time.Minute, "ready", func() bool { return l.Ready(ctx) == nil })
			if _, err := l.Produce(ctx, c.Topic, 0, kafka.Message{Value: []byte("v")}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBrokerThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	ca := credentialstest.New(t)
	expired := ca.Server("localhost")
	pair := ca.Issue("localhost")
	ca.Write(pair, time.Now().Add(-time.Minute), "localhost")
	expired.Certificates[0] = load(t, pair)
	for name, c := range map[string]struct {
		options []kfake.Opt
		change  func(*topic.Config)
		want    string
	}{
		"plain text to TLS":     {[]kfake.Opt{kfake.TLS(ca.Server("localhost"))}, func(c *topic.Config) { c.TLS = topic.TLS{} }, "with kafka.tls.enabled false: "},
		"TLS to plain text":     {nil, func(*topic.Config) {}, "kafka.tls: TLS handshake with "},
		"expired":               {[]kfake.Opt{kfake.TLS(expired)}, func(*topic.Config) {}, "kafka.tls: certificate of 127.0.0.1"},
		"another name":          {[]kfake.Opt{kfake.TLS(ca.Server("other.example"))}, func(*topic.Config) {}, "x509: certificate is valid for other.example, not localhost"},
		"the address is not in": {[]kfake.Opt{kfake.TLS(ca.Server("localhost"))}, func(c *topic.Config) { c.TLS.ServerName = "" }, "x509: cannot validate certificate for 127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, address := topictest.Cluster(t, c.options...)
			config := topictest.For(t, address)
			config.TLS = topic.TLS{Enabled: true, Certificates: credentials.Certificates{CAFile: ca.File}, ServerName: "localhost"}
			c.change(&config)
			l := topic.NewCluster(config, "test", zerolog.Nop())
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- l.Run(ctx) }()
			defer func() { cancel(); <-done }()
			servicetest.Eventually(t, 20*time.Second, c.want, func() bool { return strings.Contains(l.Ready(ctx).Error(), c.want) })
		})
	}
}

// Kafka answers plain text with a TLS alert.
func TestPlainTextToABrokerWithTLS(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte{21, 3, 3, 0, 2, 2, 80})
			_ = conn.Close()
		}
	}()
	l := topic.NewCluster(topictest.For(t, listener.Addr().String()), "test", zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	want := "kafka.tls.enabled: must be true for " + listener.Addr().String() + ", got false"
	servicetest.Eventually(t, 20*time.Second, want, func() bool { return strings.Contains(l.Ready(ctx).Error(), want) })
}

// A user who may neither create topics nor read their settings needs only those
// of the messages.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	cluster, address := topictest.Cluster(t)
	fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	c := topictest.For(t, address)
	var log servicetest.Console
	l := topic.NewCluster(c, "test", zerolog.New(&log))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	want := "kafka.topic: must exist or be created by a user who may, got no topic " + c.Topic
	servicetest.Eventually(t, time.Minute, want, func() bool { return strings.Contains(l.Ready(ctx).Error(), want) })
	fault.Remove()
	servicetest.Eventually(t, time.Minute, "ready", func() bool { return l.Ready(ctx) == nil })
	cancel()
	<-done

	t.Run("topics that exist", func(t *testing.T) {
		asked := make(chan bool, 100)
		cluster.ControlKey(int16(kmsg.CreateTopics), func(kmsg.Request) (kmsg.Response, error, bool) {
			asked <- true
			return nil, nil, false
		})
		topictest.Run(t, topic.NewCluster(c, "test", zerolog.Nop()))
		if len(asked) != 0 {
			t.Error("asked to create topics that exist")
		}
	})

	t.Run("without dead letters", func(t *testing.T) {
		c := topictest.For(t, address)
		if err := cluster.CreateTopic(c.Topic, 4, nil); err != nil {
			t.Fatal(err)
		}
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		var log servicetest.Console
		topictest.Run(t, topic.NewCluster(c, "test", zerolog.New(&log)))
		servicetest.Eventually(t, time.Minute, "logged", func() bool { return strings.Contains(log.String(), "dead-letter topic missing") })
	})
}

func load(t *testing.T, p credentials.Pair) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.CertificateFile, p.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

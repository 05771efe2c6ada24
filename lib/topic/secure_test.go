package topic_test

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

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
func secret(t *testing.T, text string) string { return servicetest.File(t, "secret", text+"\n") }

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
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			config, fail := credentialstest.New(t).Failing("localhost")
			cluster, address := topictest.Cluster(t, kfake.TLS(config), kfake.EnableSASL(), kfake.Superuser(mechanism, "tricycle", "right"))
			c := topictest.For(t, address)
			c.TLS = topic.TLS{Enabled: true, Certificates: credentials.Certificates{CAFile: secret(t, "")}, ServerName: "localhost"}
			c.SASL = topic.SASL{Mechanism: mechanism, User: "tricycle", PasswordFile: secret(t, "wrong")}
			l, log := create(c)
			topictest.Start(t, l)
			is := func(want string) {
				t.Helper()
				topictest.Unready(t, l, want)
				servicetest.Eventually(t, 20*time.Second, "logged: "+want, func() bool { return log.Has(strings.ReplaceAll(want, `"`, `\"`)) })
			}
			// Kafka answers a wrong password; this broker closes the connection.
			fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SASLAuthenticate}, Err: kerr.SaslAuthenticationFailed, Count: -1})
			fail("kafka.tls", c.TLS.CAFile, address, is)
			is(`kafka.sasl: user "tricycle" with the password in ` + c.SASL.PasswordFile + ": ")
			servicetest.File(t, c.SASL.PasswordFile, "right\nwrong\n")
			is("kafka.sasl.password_file: must name a file with one line, got " + c.SASL.PasswordFile + ", which has more")
			fault.Remove()
			servicetest.File(t, c.SASL.PasswordFile, "right\r\n")
			topictest.Ready(t, l)
			if _, err := l.Produce(t.Context(), c.Topic, 0, kafka.Message{Value: []byte("v")}); err != nil {
				t.Error(err)
			}
		})
	}
}

// web is the answer of a web server to a client of Kafka. kafka-go takes its
// bytes for a response with 808,460,354 elements.
var web = []byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request")

// rude returns the address of a broker that ends each connection with an answer
// to the first byte, with TLS if config is not nil.
func rude(t *testing.T, config *tls.Config, answer ...byte) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = conn.Write(answer)
			if tcp, ok := conn.(*net.TCPConn); ok && len(answer) == 0 {
				_ = tcp.SetLinger(0) // resets it
			}
			_ = conn.Close()
		}
	}()
	return listener.Addr().String()
}

// Mistakes that are in no file. The answers are those of Kafka 4.
func TestBrokerThatExpectsOtherClients(t *testing.T) {
	t.Parallel()
	ca := credentialstest.New(t)
	certified := ca.Server("localhost")
	certified.ClientAuth = tls.RequireAnyClientCert
	with := func(options ...kfake.Opt) func(*testing.T) string {
		return func(t *testing.T) string { _, address := topictest.Cluster(t, options...); return address }
	}
	handshake := func(refusal *kerr.Error) func(*testing.T) string {
		return func(t *testing.T) string {
			cluster, address := topictest.Cluster(t, kfake.TLS(ca.Server("localhost")), kfake.EnableSASL())
			cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SASLHandshake}, Err: refusal, Count: -1})
			return address
		}
	}
	for name, c := range map[string]struct {
		broker func(*testing.T) string
		change func(*topic.Config)
		want   string
	}{
		"plain text to TLS": {func(t *testing.T) string { return rude(t, nil, 21, 3, 3, 0, 2, 2, 80) }, func(c *topic.Config) { c.TLS = topic.TLS{} },
			"kafka.tls.enabled: must be true for ADDRESS, got false"},
		"another server": {func(t *testing.T) string { return rude(t, nil, web...) }, func(c *topic.Config) { c.TLS = topic.TLS{} },
			`kafka.brokers, or advertised.listeners of a broker: expected a Kafka broker at ADDRESS, found an answer that begins "HTTP"`},
		"another server with TLS": {func(t *testing.T) string { return rude(t, ca.Server("localhost"), web...) }, func(*topic.Config) {},
			`kafka.brokers, or advertised.listeners of a broker: expected a Kafka broker at ADDRESS, found an answer that begins "HTTP"`},
		"plain text to TLS that closes": {with(kfake.TLS(ca.Server("localhost"))), func(c *topic.Config) { c.TLS = topic.TLS{} },
			"no answer from ADDRESS with kafka.tls.enabled false, or above its max.connections: "},
		"TLS to plain text": {func(t *testing.T) string { return rude(t, nil) }, func(*topic.Config) {},
			"kafka.tls: expected TLS at ADDRESS, found a closed connection: "},
		"the address is not in the certificate": {with(kfake.TLS(ca.Server("localhost"))), func(c *topic.Config) { c.TLS.ServerName = "" },
			"kafka.tls: certificate of ADDRESS: x509: cannot validate certificate for 127.0.0.1"},
		"no certificate": {with(kfake.TLS(certified)), func(*topic.Config) {},
			`kafka.tls: ADDRESS refuses TLS with certificate_file "": `},
		"mechanism that is off": {handshake(kerr.UnsupportedSaslMechanism), func(*topic.Config) {},
			"kafka.sasl.mechanism: SCRAM-SHA-256: "},
		"SASL that is off": {handshake(kerr.IllegalSaslState), func(*topic.Config) {},
			`kafka.sasl.mechanism: must be empty for brokers without SASL, got "SCRAM-SHA-256": `},
		"SASL that is required": {with(kfake.TLS(ca.Server("localhost")), kfake.EnableSASL()), func(c *topic.Config) { c.SASL = topic.SASL{} },
			"kafka.sasl.mechanism: must not be empty if the brokers require SASL, and one closes the connection: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := c.broker(t)
			config := topictest.For(t, address)
			config.TLS = topic.TLS{Enabled: true, Certificates: credentials.Certificates{CAFile: ca.File}, ServerName: "localhost"}
			config.SASL = topic.SASL{Mechanism: "SCRAM-SHA-256", User: "tricycle", PasswordFile: secret(t, "right")}
			c.change(&config)
			l, _ := create(config)
			topictest.Start(t, l)
			topictest.Unready(t, l, strings.ReplaceAll(c.want, "ADDRESS", address))
		})
	}
}

// Several brokers that expect TLS, or proxies of brokers that do not run. The next
// one is asked each time.
func TestAMistakeIsLoggedOnce(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{"alert": {21, 3, 3, 0, 2, 2, 80}, "reset": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := topic.Defaults()
			c.Brokers = nil
			for range 3 {
				c.Brokers = append(c.Brokers, rude(t, nil, answer...))
			}
			l, log := create(c)
			topictest.Start(t, l)
			clients := map[*kafka.Client]bool{}
			servicetest.Eventually(t, time.Minute, "each is asked several times", func() bool {
				clients[l.Client()] = true
				return len(clients) > 12
			})
			if got := log.Count("kafka unavailable"); got < 1 || got > len(c.Brokers) {
				t.Errorf("got %d lines, want one for each broker at most:\n%s", got, log)
			}
		})
	}
}

// A user who may neither create topics nor read their settings needs only those
// of the messages.
func TestLeastRights(t *testing.T) {
	t.Parallel()
	cluster, c, l, log := embedded(t)
	starting := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Err: kerr.UnknownServerError, Count: -1})
	fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	stop := topictest.Start(t, l)
	log.Find(t, `\[-1\] Unknown`)
	starting.Remove()
	want := "kafka.topic: must exist or be created by a user who may, got no topic " + c.Topic
	topictest.Unready(t, l, want)
	log.Find(t, want) // after another error too
	fault.Remove()
	topictest.Ready(t, l)
	stop()

	t.Run("topics that exist", func(t *testing.T) {
		asked := make(chan bool, 100)
		cluster.ControlKey(int16(kmsg.CreateTopics), func(kmsg.Request) (kmsg.Response, error, bool) {
			asked <- true
			return nil, nil, false
		})
		l, _ := create(c)
		topictest.Run(t, l)
		if len(asked) != 0 {
			t.Error("asked to create topics that exist")
		}
	})

	t.Run("without dead letters", func(t *testing.T) {
		c := topictest.For(t, c.Brokers[0])
		if err := cluster.CreateTopic(c.Topic, 4, nil); err != nil {
			t.Fatal(err)
		}
		cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		l, log := create(c)
		topictest.Run(t, l)
		log.Find(t, "dead-letter topic missing")
	})
}

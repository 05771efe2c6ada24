package chain

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl/plain"

	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
)

// secured is a chain whose links all have TLS, a token or a password.
type secured struct {
	*chain
	ca       *credentialstest.Authority
	files    string // directory of ca.pem, the passwords of ms2 and ms3 for Kafka, the token that MS1 and MS2 want, and those that ms1 and ms3 send
	database *servertest.Database
	servers  []*servertest.Server // the brokers
}

// newSecured prepares a chain on servers of its own that accept nothing else.
func newSecured(t *testing.T, brokers int) *secured {
	t.Helper()
	ca := credentialstest.New(t)
	pair := ca.Issue("127.0.0.1", "localhost")
	s := &secured{ca: ca, files: t.TempDir()}
	s.database = servertest.MariaDB(t, "--require-secure-transport=ON", "--ssl-ca="+ca.File, "--ssl-cert="+pair.CertificateFile, "--ssl-key="+pair.KeyFile)
	password := rand.Text()
	s.servers = servertest.SecureBrokers(t, brokers, servertest.Security{
		CAFile: ca.File, CertificateFile: pair.CertificateFile, KeyFile: pair.KeyFile, Password: password})

	s.chain = newChainOn(t, mariadbtest.On(t, s.database))
	s.useKafka(6, brokers, s.servers...)
	s.secret("ca.pem", "")
	servicetest.File(t, s.path("ca.pem"), servicetest.Text(t, ca.File))
	token := rand.Text()
	for _, name := range []string{"token", "ms1.token", "ms3.token"} {
		s.secret(name, token)
	}
	s.permit(password)

	secureKafka := func(name, mechanism string) {
		k := s.overlays[name]["kafka"].(settings)
		own := settings{"tls": settings{"enabled": true, "ca_file": s.path("ca.pem")},
			"sasl": settings{"mechanism": mechanism, "user": name, "password_file": s.path(name + ".password")}}
		for key, value := range k {
			own[key] = value
		}
		s.overlays[name]["kafka"] = own
	}
	secureKafka("ms2", "SCRAM-SHA-512")
	secureKafka("ms3", "SCRAM-SHA-256")
	s.overlays["ms1"]["ms2"] = settings{"url": "wss://" + s.address["ms2"] + "/ws", "ca_file": s.path("ca.pem"), "token_file": s.path("ms1.token")}
	s.overlays["ms3"]["ms1"] = settings{"url": "https://" + s.address["ms1"] + "/store", "ca_file": s.path("ca.pem"), "token_file": s.path("ms3.token")}
	s.overlays["ms1"]["database"].(settings)["tls"] = settings{"mode": "verify-identity", "ca_file": s.path("ca.pem")}
	s.front = map[string]string{}
	for _, name := range services {
		s.overlays[name]["tls"] = settings{"certificate_file": pair.CertificateFile, "key_file": pair.KeyFile}
		if name != "ms3" {
			s.overlays[name]["token_file"] = s.path("token")
		}
		s.front[name] = s.proxy(s.address[name])
	}
	return s
}

func (s *secured) path(name string) string { return filepath.Join(s.files, name) }

func (s *secured) secret(name, text string) {
	s.t.Helper()
	servicetest.File(s.t, s.path(name), text+"\n")
}

// proxy returns the address of a proxy that adds TLS and the token.
func (s *secured) proxy(address string) string {
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: address})
			token, _ := os.ReadFile(s.path("token")) // an error shows as 401
			r.Out.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		},
		Transport:    &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool()}},
		ErrorLog:     log.New(io.Discard, "", 0),                                                      // of services that do not listen yet
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // no answer, as from the service
	})
	s.t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// permit creates the users ms2 and ms3 with new passwords, the topics, and only
// those ACLs that docs/security.md lists.
func (s *secured) permit(superuser string) {
	s.t.Helper()
	s.chain.brokers = &kafka.Transport{TLS: &tls.Config{RootCAs: s.ca.Pool()}, SASL: plain.Mechanism{Username: "broker", Password: superuser}}
	admin, ctx := s.admin(), s.t.Context()

	users := &kafka.AlterUserScramCredentialsRequest{}
	for name, mechanism := range map[string]kafka.ScramMechanism{"ms2": kafka.ScramMechanismSha512, "ms3": kafka.ScramMechanismSha256} {
		password, salt := rand.Text(), []byte(rand.Text())
		s.secret(name+".password", password)
		digest := sha512.New
		if mechanism == kafka.ScramMechanismSha256 {
			digest = sha256.New
		}
		salted, err := pbkdf2.Key(digest, password, salt, 4096, digest().Size())
		servicetest.NoError(s.t, err)
		users.Upsertions = append(users.Upsertions, kafka.UserScramCredentialsUpsertion{Name: name, Mechanism: mechanism, Iterations: 4096, Salt: salt, SaltedPassword: salted})
	}
	resp, err := admin.AlterUserScramCredentials(ctx, users)
	servicetest.NoError(s.t, err)
	for _, r := range resp.Results {
		servicetest.NoError(s.t, r.Error)
	}

	topics := &kafka.CreateTopicsRequest{}
	for _, name := range []string{s.kafka.Topic, s.kafka.DeadLetterTopic} {
		topics.Topics = append(topics.Topics, kafka.TopicConfig{Topic: name, NumPartitions: 6, ReplicationFactor: len(s.servers)})
	}
	created, err := admin.CreateTopics(ctx, topics)
	servicetest.NoError(s.t, err)
	for _, err := range created.Errors {
		servicetest.NoError(s.t, err)
	}

	acls := &kafka.CreateACLsRequest{}
	allow := func(user string, kind kafka.ResourceType, name string, operations ...kafka.ACLOperationType) {
		for _, operation := range operations {
			acls.ACLs = append(acls.ACLs, kafka.ACLEntry{Principal: "User:" + user, Host: "*", PermissionType: kafka.ACLPermissionTypeAllow,
				ResourceType: kind, ResourceName: name, ResourcePatternType: kafka.PatternTypeLiteral, Operation: operation})
		}
	}
	allow("ms2", kafka.ResourceTypeTopic, s.kafka.Topic, kafka.ACLOperationTypeWrite)
	allow("ms3", kafka.ResourceTypeTopic, s.kafka.Topic, kafka.ACLOperationTypeRead)
	allow("ms3", kafka.ResourceTypeTopic, s.kafka.DeadLetterTopic, kafka.ACLOperationTypeWrite)
	allow("ms3", kafka.ResourceTypeGroup, s.kafka.Topic, kafka.ACLOperationTypeRead)
	answers, err := admin.CreateACLs(ctx, acls)
	servicetest.NoError(s.t, err)
	for _, err := range answers.Errors {
		servicetest.NoError(s.t, err)
	}
}

func TestEveryLinkIsSecure(t *testing.T) {
	t.Run("one broker", func(t *testing.T) { everyLinkIsSecure(t, 1) })
	t.Run("three brokers", func(t *testing.T) {
		slow(t)
		s := everyLinkIsSecure(t, 3)
		pause := s.survives(32, func() {
			for i, b := range s.servers {
				b.Kill()
				began := time.Now()
				s.goesOn(100)
				t.Logf("broker %d killed: 100 messages stored after %s", i+1, time.Since(began).Round(time.Millisecond))
				b.Start()
				servicetest.Eventually(t, time.Minute, "every replica is in sync", s.inSync)
			}
		})
		atMost(t, pause, 0, 30*time.Second) // two brokers remain at any time

		pause = s.survives(32, s.servers[0].Kill) // for good
		atMost(t, pause, 0, 30*time.Second)
		for _, inFlight := range []int{1, 64} {
			s.round(3, inFlight)
		}
		s.ready(services...)
	})
}

// everyLinkIsSecure returns a chain that has stored messages.
func everyLinkIsSecure(t *testing.T, brokers int) *secured {
	t.Helper()
	s := newSecured(t, brokers)
	s.patient()
	s.up()
	for _, inFlight := range []int{1, 64} {
		s.round(3, inFlight)
	}
	for _, name := range services {
		running := s.running[name]
		if status := s.start(name, "-healthcheck").Status(); status != 0 {
			t.Errorf("the health check of %s: exit status %d, want 0", name, status)
		}
		s.running[name] = running
	}
	resp, err := http.Get("http://" + s.address["ms1"] + "/start")
	servicetest.NoError(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("plain text to TLS: %s, want 400", resp.Status)
	}
	return s
}

// Files that become wrong under load, and are corrected without a restart.
func TestWrongFilesUnderLoad(t *testing.T) {
	slow(t)
	s := newSecured(t, 1)
	s.overlays["ms1"]["interaction"] = settings{"give_up_after_seconds": 600} // the servers may take long to start
	s.up()
	s.load(600, 64)
	read := func(name string) string { return strings.TrimSpace(servicetest.Text(t, s.path(name))) }
	logs := func(name, cause string) {
		t.Helper()
		servicetest.Eventually(t, time.Minute, name+" logs "+cause, func() bool { return s.running[name].Out.Has(cause) })
	}

	t.Run("passwords of Kafka", func(t *testing.T) {
		passwords := map[string]string{"ms2": read("ms2.password"), "ms3": read("ms3.password")}
		for name := range passwords {
			s.secret(name+".password", "wrong")
		}
		s.servers[0].Stop() // for new connections
		s.servers[0].Start()
		for name := range passwords {
			logs(name, "with the password in "+s.path(name+".password"))
		}
		for name, password := range passwords {
			s.secret(name+".password", password)
		}
		s.goesOn(500)
	})
	t.Run("tokens", func(t *testing.T) {
		token := rand.Text()
		s.secret("token", token)
		logs("ms3", "ms1.token_file: must name a file with MS1's token")
		s.running["ms2"].Signal(syscall.SIGTERM)
		s.start("ms2")
		logs("ms1", "ms2.token_file: must name a file with MS2's token")
		servicetest.Eventually(t, time.Minute, "readiness names MS1", func() bool {
			status, body := s.at("ms3").Get("/readyz")
			return status == http.StatusServiceUnavailable && strings.Contains(body, `"ms1":"not ready"`)
		})
		s.secret("ms1.token", token)
		s.secret("ms3.token", token)
		s.goesOn(500)
	})
	t.Run("CA", func(t *testing.T) {
		servicetest.File(t, s.path("ca.pem"), servicetest.Text(t, credentialstest.New(t).File))
		s.running["ms2"].Signal(syscall.SIGTERM)
		s.start("ms2")
		logs("ms1", "ms2.ca_file: verify certificate of "+s.address["ms2"]+" with "+s.path("ca.pem"))
		logs("ms2", "kafka.tls.ca_file: verify certificate of ")
		s.secret("ca.pem", "")
		logs("ms1", "ms2.ca_file: must name a PEM file with certificates, got "+s.path("ca.pem"))
		servicetest.File(t, s.path("ca.pem"), servicetest.Text(t, s.ca.File))
		s.goesOn(500)
	})
	s.stop()
	for _, reason := range []string{"refused", "malformed"} {
		if n := s.at("ms3").Metric("tricycle_ms3_dead_letters_total", reason); n != 0 {
			t.Errorf("%v dead letters (%s), want none", n, reason)
		}
	}
}

// Package servertest starts real MariaDB and Kafka servers for one test. The test
// may change their settings, kill them or fill their disk. The package uses the
// script .ci/servers, whose path TRICYCLE_TEST_SERVERS contains, and skips the
// test if the variable is not set.
package servertest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// Server is a server process of the test's own. It ends with the test.
type Server struct {
	Address string // host:port for clients
	Dir     string // data, log and process id

	t    testing.TB
	name string
	args []string // of each start, after the directory
}

// Database is a MariaDB server with an empty database named tricycle and a
// user of the same name who has all rights in it.
type Database struct {
	*Server
	User, Password string
	PasswordFile   string
	Socket         string // accepts root without a password
}

// MariaDB starts a server with further command-line options of mariadbd, such
// as "--autocommit=0".
func MariaDB(t testing.TB, options ...string) *Database {
	t.Helper()
	s := newServer(t, "mariadb", "options", options, strconv.Itoa(freePort(t, 1)))
	answer := s.Start()
	c, err := mysql.ParseDSN(answer)
	if err != nil {
		t.Fatalf("parse the answer of %s: %v", s.name, err)
	}
	s.Address = c.Addr
	return &Database{Server: s, User: c.User, Password: c.Passwd,
		PasswordFile: filepath.Join(s.Dir, "password"), Socket: filepath.Join(s.Dir, "socket")}
}

// SQL runs statements as root in the database tricycle and returns what the
// client prints: a row per line, tabs between columns, no header.
func (d *Database) SQL(statements string) string {
	d.t.Helper()
	cmd := exec.Command("mariadb", "--no-defaults", "-N", "-B", "-u", "root", "-S", d.Socket, "-e", statements, "tricycle")
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", statements, err, out)
	}
	return strings.TrimSpace(string(out))
}

// ShareAccount gives the server's user the password that it has on another server.
func (d *Database) ShareAccount(other *Database) {
	d.t.Helper()
	for _, host := range []string{"%", "localhost", "127.0.0.1"} {
		d.SQL("ALTER USER IF EXISTS tricycle@'" + host + "' IDENTIFIED BY '" + other.Password + "'")
	}
	d.Password, d.PasswordFile = other.Password, other.PasswordFile
}

// Kafka starts a broker with additional lines of server.properties. Clients
// connect to advertised, or directly to the broker if that is empty.
func Kafka(t testing.TB, advertised string, properties ...string) *Server {
	t.Helper()
	port := freePort(t, 2)
	args := []string{strconv.Itoa(port)}
	if advertised != "" {
		args = append(args, advertised)
	}
	s := newServer(t, "kafka", "properties", properties, args...)
	s.Address = s.Start()
	return s
}

// Brokers starts a cluster of n brokers with a quorum of controllers. Its
// internal topics and those created without further settings have n replicas,
// of which n-1 must be in sync for a write with acks=all.
func Brokers(t testing.TB, n int) []*Server {
	t.Helper()
	return brokers(t, n, func(int) []string { return nil })
}

// Security is how clients reach brokers that trust nobody.
type Security struct {
	CAFile                   string // of the brokers' certificate
	CertificateFile, KeyFile string // for localhost
	Password                 string // of the superuser 'broker' with the mechanism PLAIN
}

// SecureBrokers starts brokers as [Brokers] does that take connections with TLS
// and SASL (PLAIN, SCRAM) only, and allow nothing without an ACL except to the
// superuser. Their name is localhost.
func SecureBrokers(t testing.TB, n int, s Security) []*Server {
	t.Helper()
	var keystore []byte
	for _, file := range []string{s.KeyFile, s.CertificateFile} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		keystore = append(keystore, text...)
	}
	file := servicetest.File(t, "keystore.pem", string(keystore))
	const jaas = ".sasl.jaas.config=org.apache.kafka.common.security."
	started := brokers(t, n, func(port int) []string {
		return []string{
			fmt.Sprintf("listeners=SASL_SSL://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d", port, port+1),
			fmt.Sprintf("advertised.listeners=SASL_SSL://localhost:%d", port),
			"listener.security.protocol.map=SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
			"inter.broker.listener.name=SASL_SSL",
			"sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
			"sasl.mechanism.inter.broker.protocol=PLAIN",
			"listener.name.sasl_ssl.plain" + jaas + fmt.Sprintf("plain.PlainLoginModule required username=\"broker\" password=%q user_broker=%[1]q;", s.Password),
			"listener.name.sasl_ssl.scram-sha-256" + jaas + "scram.ScramLoginModule required;",
			"listener.name.sasl_ssl.scram-sha-512" + jaas + "scram.ScramLoginModule required;",
			"ssl.keystore.type=PEM", "ssl.keystore.location=" + file,
			"ssl.truststore.type=PEM", "ssl.truststore.location=" + s.CAFile,
			"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
			"super.users=User:broker;User:ANONYMOUS", // the latter are the controllers
		}
	})
	for _, b := range started {
		_, port, _ := strings.Cut(b.Address, ":")
		b.Address = "localhost:" + port
	}
	return started
}

// brokers starts a cluster with additional properties for the broker at a port.
func brokers(t testing.TB, n int, properties func(port int) []string) []*Server {
	t.Helper()
	first := freePort(t, 2*n)
	var voters []string
	for i := range n {
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", i+1, first+2*i+1))
	}
	brokers := make([]*Server, n)
	failed := make([]error, n)
	var starting sync.WaitGroup
	for i := range brokers {
		b := newServer(t, "kafka", "properties", append([]string{
			fmt.Sprintf("node.id=%d", i+1),
			"controller.quorum.voters=" + strings.Join(voters, ","),
			fmt.Sprintf("offsets.topic.replication.factor=%d", n),
			fmt.Sprintf("default.replication.factor=%d", n),
			fmt.Sprintf("min.insync.replicas=%d", max(1, n-1)),
		}, properties(first+2*i)...), strconv.Itoa(first+2*i))
		brokers[i] = b
		// Together: no broker is up before a majority of the controllers is.
		starting.Go(func() { b.Address, failed[i] = b.try("start", b.args...) })
	}
	starting.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	return brokers
}

func newServer(t testing.TB, name, file string, lines []string, args ...string) *Server {
	t.Helper()
	if os.Getenv("TRICYCLE_TEST_SERVERS") == "" {
		t.Skip("TRICYCLE_TEST_SERVERS is not set: needs a server of its own")
	}
	dir, err := os.MkdirTemp("", name+"-") //nolint:usetesting // a Unix socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, name: name, Dir: dir, args: args}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(dir)
	})
	if len(lines) > 0 {
		servicetest.File(t, filepath.Join(dir, file), strings.Join(lines, "\n")+"\n")
	}
	return s
}

// Start starts the server after Stop or Kill, with the same data and port,
// returns when it answers clients, and returns its address as the script
// prints it.
func (s *Server) Start() string {
	s.t.Helper()
	return s.run("start", s.args...)
}

// Stop shuts the server down and waits until it has ended.
func (s *Server) Stop() { s.t.Helper(); s.run("stop") }

// Kill ends the server with SIGKILL.
func (s *Server) Kill() { s.t.Helper(); s.run("kill") }

// PID returns the process id of the running server.
func (s *Server) PID() int {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

func (s *Server) run(action string, args ...string) string {
	s.t.Helper()
	answer, err := s.try(action, args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer
}

func (s *Server) try(action string, args ...string) (answer string, err error) {
	cmd := exec.Command(os.Getenv("TRICYCLE_TEST_SERVERS"), append([]string{s.name, action, s.Dir}, args...)...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", s.name, action, err, &problems)
	}
	return strings.TrimSpace(out.String()), nil
}

// FreeAddress returns a loopback address with a free port. Unlike one of those
// that the kernel chooses, it stays free until the test listens on it.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePort(t, 1))
}

var given sync.Map // ports of this process's tests

// freePort returns the first of n free neighbouring ports, below the range
// from which the kernel serves clients.
func freePort(t testing.TB, n int) int {
	t.Helper()
	for range 100 {
		first := 20_000 + rand.N(10_000)
		free := true
		for port := first; port < first+n && free; port++ {
			if _, again := given.LoadOrStore(port, true); again {
				free = false
				break
			}
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if free = err == nil; free {
				_ = l.Close()
			}
		}
		if free {
			return first
		}
	}
	t.Fatal("no free port")
	return 0
}

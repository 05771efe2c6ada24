// Package credentialstest issues certificates for tests.
package credentialstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// Authority is a CA of a test.
type Authority struct {
	File string // its certificate, PEM

	t           testing.TB
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// New returns a CA with files in a directory of the test.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA " + rand.Text()}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	der := a.sign(template, template, a.key)
	var err error
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.File = servicetest.File(t, "ca.pem", block("CERTIFICATE", der))
	return a
}

// Pool returns the CA's certificate for a client.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// Issue writes a certificate for the hosts, names or IP addresses, that is valid
// for an hour. It is for servers and clients.
func (a *Authority) Issue(hosts ...string) credentials.Pair {
	a.t.Helper()
	dir := a.t.TempDir()
	p := credentials.Pair{CertificateFile: filepath.Join(dir, "certificate.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	a.Write(p, time.Now().Add(time.Hour), hosts...)
	return p
}

// Write writes a new certificate and key to the files of a pair.
func (a *Authority) Write(p credentials.Pair, until time.Time, hosts ...string) {
	a.t.Helper()
	a.write(p, until.Add(-3*time.Hour), until, hosts...)
}

func (a *Authority) write(p credentials.Pair, from, until time.Time, hosts ...string) {
	a.t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: hosts[0]}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	key := newKey(a.t)
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	servicetest.File(a.t, p.CertificateFile, block("CERTIFICATE", a.sign(template, a.certificate, key)))
	servicetest.File(a.t, p.KeyFile, block("PRIVATE KEY", encoded))
}

// Server returns the configuration of a server with a certificate of the CA.
func (a *Authority) Server(hosts ...string) *tls.Config {
	a.t.Helper()
	return a.server(a.Issue(hosts...))
}

func (a *Authority) server(p credentials.Pair) *tls.Config {
	a.t.Helper()
	pair, err := tls.LoadX509KeyPair(p.CertificateFile, p.KeyFile)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// Serve starts a server until the test ends. Without a configuration it has a
// certificate that no client trusts.
func Serve(t testing.TB, c *tls.Config, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = c
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that the client ends
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// Failing returns the configuration of a server for the host, and a function
// that makes it, or the CA file of its client, wrong in one way after another.
// After each it calls is with the error that the client must report. At last
// both are right. The client's keys are in the section.
func (a *Authority) Failing(host string) (config *tls.Config, fail func(section, file, address string, is func(want string))) {
	a.t.Helper()
	var current atomic.Pointer[tls.Config]
	config = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil }}
	right := a.Server(host)
	current.Store(right)
	valid := func(from, until time.Duration, host string) *tls.Config {
		p := a.Issue(host)
		a.write(p, time.Now().Add(from), time.Now().Add(until), host)
		return a.server(p)
	}
	known, stranger := block("CERTIFICATE", a.certificate.Raw), block("CERTIFICATE", New(a.t).certificate.Raw)
	return config, func(section, file, address string, is func(want string)) {
		a.t.Helper()
		certificate := section + ": certificate of " + address + ": "
		for _, f := range []struct {
			server *tls.Config
			ca     string // text of the file; empty for no file
			want   string
		}{
			{right, stranger, section + ".ca_file: verify certificate of " + address + " with " + file + ": x509: certificate signed by unknown authority"},
			{valid(-2*time.Hour, -time.Hour, host), known, certificate + "certificate is valid from "},
			{valid(-time.Hour, time.Hour, "other.example"), known, certificate + "x509: "},
			{right, "", section + ".ca_file: open " + file + ": no such file or directory"},
			{right, "not PEM", section + ".ca_file: must name a PEM file with certificates, got " + file + " without any"},
			{valid(time.Hour, 2*time.Hour, host), known, certificate + "certificate is valid from "},
		} {
			_ = os.Remove(file) // first: no connection may be right
			current.Store(f.server)
			if f.ca != "" {
				servicetest.File(a.t, file, f.ca)
			}
			is(f.want)
		}
		current.Store(right)
	}
}

// sign returns a certificate for the key, signed by the CA.
func (a *Authority) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// Package credentials reads the certificates, keys and tokens by which programs
// trust and identify each other. Files are read again for new connections and
// requests, so a renewed certificate or a rotated token needs no restart.
package credentials

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
)

// Certificates names the files of a TLS client.
type Certificates struct {
	CAFile          string `yaml:"ca_file"`          // PEM file of the CAs that the server's certificate is verified with; empty: those of the system
	CertificateFile string `yaml:"certificate_file"` // PEM file of the client's certificate and its intermediates; empty: none
	KeyFile         string `yaml:"key_file"`         // PEM file of the certificate's private key
}

// Validate returns an error for a certificate without a key, or the reverse.
// The section is the path of the keys in the configuration.
func (c Certificates) Validate(section string) error {
	return Pair{c.CertificateFile, c.KeyFile}.Validate(section)
}

// Client reads the files and returns the configuration of one connection.
func (c Certificates) Client(section string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		text, err := config.File(section+".ca_file", c.CAFile)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s.ca_file: must name a PEM file with certificates, got %s without any", section, c.CAFile)
		}
	}
	if c.CertificateFile != "" {
		own, err := Pair{c.CertificateFile, c.KeyFile}.load(section)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{*own}
	}
	return t, nil
}

// Handshake returns [Certificates.Handshake] for an https or wss URL, nil for
// another.
func (a Access) Handshake(section, address string) Handshake {
	u, err := url.Parse(address) // a scheme in upper case is the same one
	if err != nil || u.Scheme != "https" && u.Scheme != "wss" {
		return nil
	}
	return a.certificates().Handshake(section, "")
}

// Handshake makes a connection to the host a TLS one, for
// [github.com/tricycle-relay/tricycle/lib/dial.Dialer].
type Handshake = func(ctx context.Context, conn net.Conn, host string) (net.Conn, error)

// Handshake returns a [Handshake] whose server's certificate must be for the host,
// or for serverName if that is not empty.
func (c Certificates) Handshake(section, serverName string) Handshake {
	return func(ctx context.Context, conn net.Conn, host string) (net.Conn, error) {
		t, err := c.Client(section)
		if err != nil {
			return nil, err
		}
		t.ServerName = cmp.Or(serverName, host)
		secure := tls.Client(conn, t)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, c.Explain(section, conn.RemoteAddr().String(), err)
		}
		return secure, nil
	}
}

// Explain returns the error of a TLS connection with the key, the file and the
// server that it is about.
func (c Certificates) Explain(section, server string, err error) error {
	var unverified *tls.CertificateVerificationError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &unverified) && errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		err = validity(invalid.Cert) // x509's text has the time, so each one would look new in the log
		return fmt.Errorf("%s: certificate of %s: %w", section, server, err)
	case errors.As(err, &unverified) && errors.As(err, &host):
		return fmt.Errorf("%s: certificate of %s: %w", section, server, host)
	case errors.As(err, &unverified):
		return fmt.Errorf("%s.ca_file: verify certificate of %s with %s: %w", section, server, cmp.Or(c.CAFile, "the system's CAs"), unverified.Err)
	case Alert(err):
		return fmt.Errorf("%s: %s refuses TLS with certificate_file %q: %w", section, server, c.CertificateFile, err)
	case errors.As(err, &header):
		return fmt.Errorf("%s: expected TLS at %s, found plain text", section, server)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%s: expected TLS at %s, found a closed connection: %w", section, server, err)
	}
	return fmt.Errorf("%s: TLS handshake with %s: %w", section, server, err)
}

// Alert reports whether the peer has ended a connection by a TLS alert. Without
// a certificate that it wants, the first read can return this.
func Alert(err error) bool {
	remote, ok := errors.AsType[*net.OpError](err)
	return ok && remote.Op == "remote error" // its cause has no exported type
}

// validity returns an error if now is outside the validity of a certificate.
func validity(c *x509.Certificate) error {
	if now := time.Now(); now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return fmt.Errorf("certificate is valid from %s to %s", c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// Pair names the files of a certificate. Both are empty for none.
type Pair struct {
	CertificateFile string `yaml:"certificate_file"` // PEM file of the certificate and its intermediates; empty: no TLS
	KeyFile         string `yaml:"key_file"`         // PEM file of the certificate's private key
}

// Validate returns an error for a certificate without a key, or the reverse.
func (p Pair) Validate(section string) error {
	switch {
	case p.CertificateFile != "" && p.KeyFile == "":
		return fmt.Errorf("%s.key_file: must name the key of %s, got nothing", section, p.CertificateFile)
	case p.CertificateFile == "" && p.KeyFile != "":
		return fmt.Errorf("%s.certificate_file: must name the certificate of %s, got nothing", section, p.KeyFile)
	}
	return nil
}

// Server returns the configuration of a listener, nil without a certificate.
// Changed files are used after a second; failed gets the error of files that
// cannot be, and the certificate before them is used further.
func (p Pair) Server(section string, failed func(error)) (*tls.Config, error) {
	if p.CertificateFile == "" {
		return nil, nil
	}
	current, err := p.load(section)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	read := time.Now()
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Sub(read) > reread {
			read = now
			if next, err := p.load(section); err != nil {
				failed(err)
			} else {
				current = next
			}
		}
		return current, nil
	}}, nil
}

// load reads the files.
func (p Pair) load(section string) (*tls.Certificate, error) {
	certificate, err := config.File(section+".certificate_file", p.CertificateFile)
	if err != nil {
		return nil, err
	}
	key, err := config.File(section+".key_file", p.KeyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("%s.certificate_file: use %s with key %s: %w", section, p.CertificateFile, p.KeyFile, err)
	}
	if err := validity(pair.Leaf); err != nil {
		return nil, fmt.Errorf("%s.certificate_file: %s: %w", section, p.CertificateFile, err)
	}
	return &pair, nil
}

package mariadb

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/tricycle-relay/tricycle/lib/credentials"
)

// The modes of TLS, as in the server's own clients.
const (
	tlsOff            = "off"
	tlsPreferred      = "preferred"       // if the server offers it
	tlsRequired       = "required"        // with any certificate
	tlsVerifyCA       = "verify-ca"       // with a certificate of a known CA
	tlsVerifyIdentity = "verify-identity" // which is for the host as well
)

// TLS is the section 'database.tls'. Its files are read for each new connection.
type TLS struct {
	Mode                     string `yaml:"mode"` // off, preferred (if offered), required (any certificate), verify-ca or verify-identity (for the host as well)
	credentials.Certificates `yaml:",inline"`
}

func (t TLS) validate() error {
	modes := []string{tlsOff, tlsPreferred, tlsRequired, tlsVerifyCA, tlsVerifyIdentity}
	switch {
	case !slices.Contains(modes, t.Mode):
		return fmt.Errorf("database.tls.mode: must be one of verify-identity, verify-ca, required, preferred, off, got %q", t.Mode)
	case t.CAFile != "" && !strings.HasPrefix(t.Mode, "verify-"):
		return fmt.Errorf("database.tls.mode: must be verify-ca or verify-identity with a ca_file, got %q", t.Mode)
	case t.Mode == tlsOff && t.Certificates != (credentials.Certificates{}):
		return errors.New("database.tls.mode: must be another with a certificate_file, got \"off\"")
	}
	return t.Certificates.Validate("database.tls")
}

// apply reads the files and sets the TLS of a connection to the host.
func (t TLS) apply(m *mysql.Config, host string) error {
	if t.Mode == tlsOff || t.Mode == "" {
		return nil
	}
	c, err := t.Client("database.tls")
	if err != nil {
		return err
	}
	c.ServerName, c.InsecureSkipVerify = host, t.Mode != tlsVerifyIdentity
	if t.Mode == tlsVerifyCA {
		c.VerifyConnection = func(s tls.ConnectionState) error {
			options := x509.VerifyOptions{Roots: c.RootCAs, Intermediates: x509.NewCertPool()}
			for _, intermediate := range s.PeerCertificates[1:] {
				options.Intermediates.AddCert(intermediate)
			}
			if _, err := s.PeerCertificates[0].Verify(options); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
			}
			return nil
		}
	}
	m.TLS, m.AllowFallbackToPlaintext = c, t.Mode == tlsPreferred
	return nil
}

// explain returns an error of a connection with the keys that it is about, if
// those are known.
func (c Config) explain(err error) error {
	var refused *mysql.MySQLError
	switch {
	case errors.Is(err, mysql.ErrUnknownPlugin), errors.Is(err, mysql.ErrOldPassword):
		return fmt.Errorf("database.user %q: must be identified via mysql_native_password or ed25519: %w", c.User, err)
	case errors.Is(err, mysql.ErrNoTLS):
		return fmt.Errorf("database.tls.mode: must be off or preferred for a server without TLS, got %q", c.TLS.Mode)
	case errors.As(err, &refused) && strings.Contains(refused.Message, "require_secure_transport"):
		return fmt.Errorf("database.tls.mode: must be another for this server, got %q: %w", c.TLS.Mode, err)
	case errors.As(err, &refused) && refused.Number == 1045: // also without the TLS that the server requires, in 10.11
		return fmt.Errorf("database.user %q, password_file %q, tls.mode %q: %w", c.User, c.PasswordFile, c.TLS.Mode, err)
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(tls.RecordHeaderError)), credentials.Alert(err):
		return c.TLS.Explain("database.tls", c.Address, err)
	}
	return err
}

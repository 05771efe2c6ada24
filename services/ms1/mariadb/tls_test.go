package mariadb

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func TestValidateOfTLS(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]TLS{
		`database.tls.mode: must be one of verify-identity, verify-ca, required, preferred, off, got "on"`: {Mode: "on"},
		`database.tls.mode: must be verify-ca or verify-identity with a ca_file, got "required"`:           {Mode: tlsRequired, Certificates: credentials.Certificates{CAFile: "ca.pem"}},
		`database.tls.mode: must be another with a certificate_file, got "off"`:                            {Mode: tlsOff, Certificates: credentials.Certificates{CertificateFile: "c.pem", KeyFile: "k.pem"}},
		"database.tls.key_file: must name the key of c.pem, got nothing":                                   {Mode: tlsVerifyCA, Certificates: credentials.Certificates{CertificateFile: "c.pem"}},
	} {
		config := Defaults()
		config.TLS = c
		if err := config.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	config := Defaults()
	config.TLS = TLS{Mode: tlsVerifyCA, Certificates: credentials.Certificates{CAFile: "absent.pem"}}
	if _, err := Open(config, zerolog.Nop()); err == nil || !strings.HasPrefix(err.Error(), "database.tls.ca_file: open absent.pem: ") {
		t.Errorf("got %v, want key and file", err)
	}
}

// connected runs a store until the test ends. It fails unless the store is ready
// or, with a cause, logs that.
func connected(t *testing.T, d *servertest.Database, c TLS, cause string) *Store {
	t.Helper()
	var log servicetest.Console
	s, err := Open(Config{Address: d.Address, Name: "tricycle", User: d.User, PasswordFile: d.PasswordFile, TLS: c}, zerolog.New(&log))
	servicetest.NoError(t, err)
	run(t, s)
	if cause == "" {
		ready(t, s)
		return s
	}
	servicetest.Fails(t, time.Second, cause, s.Ready)
	if n := strings.Count(log.String(), "database is unavailable"); n != 1 {
		t.Errorf("got %d lines, want one:\n%s", n, &log)
	}
	return s
}

func TestServerThatRequiresTLS(t *testing.T) {
	t.Parallel()
	ca, stranger := credentialstest.New(t), credentialstest.New(t)
	own, client := ca.Issue("db.example"), ca.Issue("tricycle")
	d := servertest.MariaDB(t, "--require-secure-transport=ON", "--ssl-ca="+ca.File, "--ssl-cert="+own.CertificateFile, "--ssl-key="+own.KeyFile)
	known := credentials.Certificates{CAFile: ca.File}
	for _, c := range []struct {
		tls  TLS
		want string // the cause; empty if it connects
	}{
		{TLS{Mode: tlsOff}, `tls.mode "off": Error 1045`},
		{TLS{Mode: tlsPreferred}, ""},
		{TLS{Mode: tlsRequired}, ""},
		{TLS{Mode: tlsVerifyCA, Certificates: known}, ""},
		{TLS{Mode: tlsVerifyIdentity, Certificates: known}, "database.tls: certificate of " + d.Address + ": x509: cannot validate certificate for 127.0.0.1"},
		{TLS{Mode: tlsVerifyCA, Certificates: credentials.Certificates{CAFile: stranger.File}}, "x509: certificate signed by unknown authority"},
	} {
		t.Run(c.tls.Mode, func(t *testing.T) { connected(t, d, c.tls, c.want) })
	}

	t.Run("files that are corrected", func(t *testing.T) {
		dir := t.TempDir()
		file, changed := filepath.Join(dir, "ca.pem"), *d
		changed.PasswordFile = filepath.Join(dir, "password")
		servicetest.File(t, changed.PasswordFile, "wrong\n")
		servicetest.File(t, file, servicetest.Text(t, stranger.File))
		s := connected(t, &changed, TLS{Mode: tlsVerifyCA, Certificates: credentials.Certificates{CAFile: file}}, "database.tls.ca_file: verify certificate of "+d.Address+" with "+file)
		servicetest.File(t, file, "no PEM")
		servicetest.Fails(t, time.Second, "database.tls.ca_file: must name a PEM file with certificates, got "+file+" without any", s.Ready)
		servicetest.NoError(t, os.Remove(file))
		servicetest.Fails(t, time.Second, "database.tls.ca_file: open "+file+": no such file", s.Ready)
		servicetest.File(t, file, servicetest.Text(t, ca.File))
		servicetest.Fails(t, time.Second, `database.user "tricycle", password_file "`+changed.PasswordFile+`", tls.mode "verify-ca": Error 1045`, s.Ready)
		servicetest.File(t, changed.PasswordFile, d.Password+"\n\nx\n")
		servicetest.Fails(t, time.Second, "database.password_file: must name a file with one line, got "+changed.PasswordFile+", which has more", s.Ready)
		servicetest.File(t, changed.PasswordFile, d.Password+"\r\n")
		ready(t, s)
	})
	t.Run("password that is rotated", func(t *testing.T) {
		s := connected(t, d, TLS{Mode: tlsRequired}, "")
		accounts := d.SQL("SELECT GROUP_CONCAT(CONCAT('ALTER USER ', QUOTE(User), '@', QUOTE(Host), ' IDENTIFIED BY ''rotated''') SEPARATOR '; ') FROM mysql.user WHERE User = 'tricycle'")
		d.SQL(accounts)
		servicetest.File(t, d.PasswordFile, "rotated\n")
		last := d.SQL("SELECT MAX(ID) FROM information_schema.PROCESSLIST")
		d.SQL("KILL USER tricycle")
		servicetest.Eventually(t, 20*time.Second, "it connects with the new password", func() bool {
			return s.Ready(context.Background()) == nil &&
				d.SQL("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE User = 'tricycle' AND ID > "+last) != "0"
		})
	})
	t.Run("client certificate", func(t *testing.T) {
		d.SQL("CREATE USER certified IDENTIFIED BY 'rotated' REQUIRE X509; GRANT ALL ON tricycle.* TO certified")
		certified := *d
		certified.User = "certified"
		connected(t, &certified, TLS{Mode: tlsVerifyCA, Certificates: known}, "Access denied")
		connected(t, &certified, TLS{Mode: tlsVerifyCA, Certificates: credentials.Certificates{CAFile: ca.File, CertificateFile: client.CertificateFile, KeyFile: client.KeyFile}}, "")
	})
	t.Run("certificate that has expired", func(t *testing.T) {
		ca.Write(own, time.Now().Add(-time.Minute), "db.example")
		d.Stop()
		d.Start()
		connected(t, d, TLS{Mode: tlsVerifyCA, Certificates: known}, "database.tls: certificate of "+d.Address+": certificate is valid from ")
	})
}

func TestServerWithoutTLS(t *testing.T) {
	t.Parallel()
	d := servertest.MariaDB(t, "--skip-ssl")
	connected(t, d, TLS{Mode: tlsPreferred}, "")
	connected(t, d, TLS{Mode: tlsRequired}, `database.tls.mode: must be off or preferred for a server without TLS, got "required"`)
	const want = `database.user "older": must be identified via mysql_native_password or ed25519: this `
	d.SQL("SET GLOBAL secure_auth=0; CREATE USER older IDENTIFIED VIA mysql_old_password USING '0123456789abcdef'")
	older := *d
	older.User = "older"
	connected(t, &older, TLS{Mode: tlsOff}, want+"user requires old password authentication")
	// PARSEC of MariaDB 11.8 is such a plugin.
	if err := (Config{User: "older"}).explain(mysql.ErrUnknownPlugin); !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got error %v, want %s", err, want)
	}
}

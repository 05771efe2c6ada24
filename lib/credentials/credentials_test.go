package credentials_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func file(t *testing.T, text string) string { return servicetest.File(t, "file", text) }

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// expect fails the test unless err begins with want, or is nil if that is
// empty. FILE in it stands for the path.
func expect(t *testing.T, err error, want, path string) {
	t.Helper()
	want = strings.ReplaceAll(want, "FILE", path)
	switch {
	case want == "" && err != nil:
		t.Error(err)
	case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n")):
		t.Errorf("got %v, want one line %q", err, want)
	}
}

func TestFilesOfTokens(t *testing.T) {
	t.Parallel()
	const odd = "token_file: must name a file with letters, digits and -._~+/= only, got FILE"
	for name, c := range map[string]struct{ text, want string }{
		"one line":             {"aZ09-._~+/==\n", ""},
		"no line end":          {"token", ""},
		"Windows line end":     {"token\r\n", ""},
		"byte order mark":      {"\ufefftoken\n", ""},
		"an empty file":        {"", "token_file: must name a file with a secret, got FILE, which is empty"},
		"an empty line":        {"\n", "token_file: must name a file with a secret, got FILE, which is empty"},
		"two lines":            {"to\nken\n", "token_file: must name a file with one line, got FILE, which has more"},
		"a line before it":     {"\ntoken\n", "token_file: must name a file with one line, got FILE, which has more"},
		"a carriage return":    {"to\rken\n", "token_file: must name a file with one line, got FILE, which has more"},
		"UTF-16":               {"\xff\xfet\x00o\x00\r\x00\n\x00", "token_file: must name a file in UTF-8, got FILE in UTF-16"},
		"a space":              {"to ken\n", odd},
		"a trailing space":     {"token \n", odd},
		"a quoted token":       {"\"token\"\n", odd},
		"a letter beyond":      {"tökén\n", odd},
		"bytes that are none":  {"to\xffken\n", odd},
		"padding in the front": {"=token\n", odd},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := file(t, c.text)
			_, err := credentials.NewToken("token_file", path).Value()
			expect(t, err, c.want, path)
			r, _ := http.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("Authorization", "Bearer ")
			if admitted, _ := credentials.NewToken("token_file", path).Admits(r); admitted {
				t.Error("admits an empty token")
			}
		})
	}
	_, err := credentials.NewToken("token_file", "absent").Value()
	expect(t, err, "token_file: open absent: no such file or directory", "")
	_, err = credentials.NewToken("token_file", t.TempDir()).Value()
	expect(t, err, "token_file: read ", "")
}

func TestFilesOfCAs(t *testing.T) {
	t.Parallel()
	ca, other := credentialstest.New(t), credentialstest.New(t)
	known, stranger := read(t, ca.File), read(t, other.File)
	const none = "s.ca_file: must name a PEM file with certificates, got FILE without any"
	for name, c := range map[string]struct{ text, want string }{
		"one":                {known, ""},
		"one of several":     {stranger + known, ""},
		"with remarks":       {"# Root of tests\n\n" + known + "\nthe end\n", ""},
		"Windows line ends":  {strings.ReplaceAll(stranger+known, "\n", "\r\n"), ""},
		"byte order mark":    {"\ufeff" + known, ""},
		"no line end":        {strings.TrimSpace(known), ""},
		"an empty file":      {"", none},
		"no PEM":             {"MIIB", none},
		"a key":              {read(t, ca.Issue("x").KeyFile), none},
		"half a certificate": {known[:len(known)/2], none},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := file(t, c.text)
			expect(t, handshake(t, credentials.Certificates{CAFile: path}, ca.Server("localhost")), c.want, path)
		})
	}
}

// handshake connects a client to a server for localhost, whose address replaces
// ADDRESS in the error.
func handshake(t *testing.T, c credentials.Certificates, server *tls.Config) error {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = c.Handshake("s", "")(t.Context(), conn, "localhost")
	if err != nil {
		err = errors.New(strings.ReplaceAll(err.Error(), l.Addr().String(), "ADDRESS"))
	}
	return err
}

// A scheme in upper case must not lead to a connection in plain text.
func TestSchemesWithTLS(t *testing.T) {
	t.Parallel()
	for url, secure := range map[string]bool{
		"https://a.example": true, "wss://a.example/ws": true, "HTTPS://a.example": true, "Wss://a.example/ws": true,
		"http://a.example": false, "ws://a.example/ws": false, "HTTP://https:1": false,
	} {
		if got := (credentials.Access{}).Handshake("s", url) != nil; got != secure {
			t.Errorf("%s: got TLS %t, want %t", url, got, secure)
		}
	}
}

func TestServersThatAreNotTrusted(t *testing.T) {
	t.Parallel()
	ca := credentialstest.New(t)
	config, fail := ca.Failing("localhost")
	fail("s", ca.File, "ADDRESS", func(want string) {
		t.Helper()
		expect(t, handshake(t, credentials.Certificates{CAFile: ca.File}, config), want, "")
	})
	expect(t, handshake(t, credentials.Certificates{CAFile: ca.File}, config), "", "")
}

func TestFilesOfCertificates(t *testing.T) {
	t.Parallel()
	ca := credentialstest.New(t)
	pair, other := ca.Issue("a.example"), ca.Issue("a.example")
	expired, future := ca.Issue("a.example"), ca.Issue("a.example")
	ca.Write(expired, time.Now().Add(-time.Hour), "a.example")
	ca.Write(future, time.Now().Add(4*time.Hour), "a.example")
	crlf := func(p string) string { return file(t, strings.ReplaceAll(read(t, p), "\n", "\r\n")) }
	for name, c := range map[string]struct {
		pair credentials.Pair
		want string
	}{
		"certificate and key":     {pair, ""},
		"Windows line ends":       {credentials.Pair{CertificateFile: crlf(pair.CertificateFile), KeyFile: crlf(pair.KeyFile)}, ""},
		"no such certificate":     {credentials.Pair{CertificateFile: "absent", KeyFile: pair.KeyFile}, "s.certificate_file: open absent: no such file"},
		"no such key":             {credentials.Pair{CertificateFile: pair.CertificateFile, KeyFile: "absent"}, "s.key_file: open absent: no such file"},
		"another's key":           {credentials.Pair{CertificateFile: pair.CertificateFile, KeyFile: other.KeyFile}, "s.certificate_file: use " + pair.CertificateFile + " with key " + other.KeyFile + ": tls: private key does not match public key"},
		"both the other way":      {credentials.Pair{CertificateFile: pair.KeyFile, KeyFile: pair.CertificateFile}, "s.certificate_file: use " + pair.KeyFile + " with key " + pair.CertificateFile + ": tls: "},
		"a key that is empty":     {credentials.Pair{CertificateFile: pair.CertificateFile, KeyFile: file(t, "")}, "s.certificate_file: use " + pair.CertificateFile + " with key "},
		"expired":                 {expired, "s.certificate_file: " + expired.CertificateFile + ": certificate is valid from "},
		"not valid yet":           {future, "s.certificate_file: " + future.CertificateFile + ": certificate is valid from "},
		"certificate without key": {credentials.Pair{CertificateFile: "c.pem"}, "s.key_file: must name the key of c.pem, got nothing"},
		"key without certificate": {credentials.Pair{KeyFile: "k.pem"}, "s.certificate_file: must name the certificate of k.pem, got nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := credentials.Certificates{CertificateFile: c.pair.CertificateFile, KeyFile: c.pair.KeyFile}
			for _, err := range []error{
				func() error { _, err := client.Client("s"); return err }(),
				func() error { _, err := c.pair.Server("s", nil); return err }(),
			} {
				if invalid := c.pair.Validate("s"); invalid != nil { // before a file is read
					err = invalid
				}
				expect(t, err, c.want, "")
			}
		})
	}
}

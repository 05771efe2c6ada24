package httpserver_test

import (
	"crypto/tls"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/credentials/credentialstest"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

func hello(w http.ResponseWriter, _ *http.Request) {
	httpserver.JSON(w, http.StatusOK, "hello")
}

// trusting returns a client that trusts the CA, with a connection for each request.
func trusting(ca *credentialstest.Authority) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca, next := credentialstest.New(t), credentialstest.New(t)
	pair := ca.Issue("127.0.0.1")
	var log servicetest.Console
	address, _ := serveWithin(t, answerTimeout, pair, hello, zerolog.New(&log))
	asks := func(ca *credentialstest.Authority) error {
		resp, err := trusting(ca).Get("https://" + address)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
	if err := asks(ca); err != nil {
		t.Fatal(err)
	}

	key, err := os.ReadFile(pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	next.Write(pair, time.Now().Add(time.Hour), "127.0.0.1")
	renewed, err := os.ReadFile(pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	servicetest.File(t, pair.KeyFile, string(key))
	servicetest.Eventually(t, 20*time.Second, "a certificate without its key is reported, and the last one used", func() bool {
		return asks(ca) == nil && log.Has("tls.certificate_file: use "+pair.CertificateFile+" with key "+pair.KeyFile)
	})
	servicetest.File(t, pair.KeyFile, string(renewed))
	servicetest.Eventually(t, 20*time.Second, "the renewed certificate is used", func() bool { return asks(next) == nil })
}

// The handshake must not use up the time for the answer.
func TestSlowAnswerOverTLS(t *testing.T) {
	t.Parallel()
	ca := credentialstest.New(t)
	address, _ := serveWithin(t, answerTimeout, ca.Issue("127.0.0.1"), func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(answerTimeout + answerTimeout/2)
		hello(w, r)
	}, zerolog.Nop())
	resp, err := trusting(ca).Get("https://" + address)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestPlainTextToTLS(t *testing.T) {
	t.Parallel()
	address, _ := serveWithin(t, answerTimeout, credentialstest.New(t).Issue("127.0.0.1"), hello, zerolog.Nop())
	if status, _ := exchange(t, address, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); status != http.StatusBadRequest {
		t.Errorf("got status %d, want 400", status)
	}
}

func TestListenWithUnusableCertificate(t *testing.T) {
	t.Parallel()
	want := "tls.certificate_file: open absent.pem: no such file"
	if _, err := httpserver.Listen("127.0.0.1:0", credentials.Pair{CertificateFile: "absent.pem", KeyFile: "absent.pem"}, nil, zerolog.Nop()); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	file := servicetest.File(t, "token", "first-Token/1==\n")
	var log servicetest.Console
	address, _ := serve(t, httpserver.WithToken(credentials.NewToken("token_file", file), zerolog.New(&log), hello), zerolog.Nop())
	ask := func(authorization string) *http.Response {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "http://"+address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	for authorization, want := range map[string]int{
		"Bearer first-Token/1==":  http.StatusOK,
		"bearer first-Token/1==":  http.StatusOK,
		"":                        http.StatusUnauthorized,
		"Bearer":                  http.StatusUnauthorized,
		"Bearer first-Token/1=":   http.StatusUnauthorized,
		"Bearer first-Token/1===": http.StatusUnauthorized,
		"Basic first-Token/1==":   http.StatusUnauthorized,
		"first-Token/1==":         http.StatusUnauthorized,
	} {
		resp := ask(authorization)
		if resp.StatusCode != want {
			t.Errorf("%q: got %s, want %d", authorization, resp.Status, want)
		}
		if want == http.StatusUnauthorized && (resp.Header.Get("WWW-Authenticate") != `Bearer realm="tricycle"` || resp.Header.Get("Content-Type") != httpserver.ProblemType) {
			t.Errorf("%q: got %v, want a challenge and a problem", authorization, resp.Header)
		}
	}
	if !log.Has("request without valid token") || strings.Contains(log.String(), "first-Token") {
		t.Errorf("got the log %s", &log)
	}

	servicetest.File(t, file, "second\n")
	servicetest.Eventually(t, 20*time.Second, "the rotated token is wanted", func() bool { return ask("Bearer second").StatusCode == http.StatusOK })
	if got := ask("Bearer first-Token/1==").StatusCode; got != http.StatusUnauthorized {
		t.Errorf("the former token: got %d, want 401", got)
	}
	servicetest.File(t, file, "second\nthird\n")
	servicetest.Eventually(t, 20*time.Second, "a file of two lines admits nobody", func() bool { return ask("Bearer second").StatusCode == http.StatusServiceUnavailable })
	if !log.Has("token_file: must name a file with one line, got " + file + ", which has more") {
		t.Errorf("got the log %s", &log)
	}
	servicetest.File(t, file, "a token")
	servicetest.Eventually(t, 20*time.Second, "the file is named", func() bool {
		ask("")
		return log.Has("token_file: must name a file with letters, digits and -._~+/= only, got " + file)
	})
}

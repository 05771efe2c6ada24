package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCluster runs a session through three brokers, of which one is killed, with
// TLS, passwords and a token on every link.
func TestCluster(t *testing.T) {
	s := newStack(t)
	if os.Getenv("TRICYCLE_TEST_CLUSTER") == "" {
		t.Skip("TRICYCLE_TEST_CLUSTER: must be 1, with 6 GB of memory")
	}
	s.files = []string{"compose.yaml", "compose/cluster.yaml"}
	t.Logf("healthy after %.1f s", s.up().Seconds())

	// printed returns what the service certificates prints for an argument.
	printed := func(what string) string {
		return strings.TrimSpace(s.docker(s.compose("run", "--rm", "-T", "--no-deps", "certificates", what)...))
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(printed("ca"))) {
		t.Fatal("the service certificates prints no certificate")
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	address := "https" + strings.TrimPrefix(s.ms1, "http")
	get := func(path, token string, answer any) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(r)
		if err != nil {
			return 0
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
			return 0
		}
		return resp.StatusCode
	}
	token := printed("token")
	var started struct {
		ID int64 `json:"session_id"`
	}
	if code := get("/start", "another", &started); code != http.StatusUnauthorized {
		t.Errorf("got %d with another token, want 401", code)
	}
	if code := get("/start?interval=90&in_flight=64", token, &started); code != http.StatusAccepted {
		t.Fatalf("got %d, want 202", code)
	}
	var now struct {
		State   string
		Session session
	}
	stored := func(n int) func() bool {
		return func() bool { return get("/status", token, &now) == http.StatusOK && now.Session.Stored >= n }
	}
	s.eventually(30*time.Second, "the session is under load", stored(500))
	s.docker(s.compose("kill", "kafka2")...)
	killed := time.Now()
	s.eventually(60*time.Second, "messages go on with two brokers", stored(now.Session.Stored+500))
	t.Logf("500 messages stored %.1f s after the kill", time.Since(killed).Seconds())
	s.eventually(3*time.Minute, "the session has ended", func() bool { return stored(0)() && now.State == "idle" })
	s.noneLost(started.ID, now.Session)
}

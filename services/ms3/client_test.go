package ms3

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// client returns a client of the MS1 at the URL.
func client(t *testing.T, url string, change ...any) *storeClient {
	t.Helper()
	c := Defaults()
	c.MS1.URL = url + "/store"
	programtest.Change(&c, change)
	s, err := newStoreClient(c)
	servicetest.NoError(t, err)
	t.Cleanup(s.http.CloseIdleConnections)
	return s
}

// A proxy in front of MS1 may have a prefix for all of its paths.
func TestReadyBehindAPrefix(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{"": "/healthz", "/store": "/healthz", "/store/": "/healthz", "/a/b/store": "/a/b/healthz", "/a%2Fb/store": "/a%2Fb/healthz"} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.RequestURI != want {
				w.WriteHeader(http.StatusNotFound)
			}
		}))
		defer server.Close()
		s := client(t, "", func(c *Config) { c.MS1.URL = server.URL + path })
		if err := s.ready(t.Context()); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// MS1 under a name that it does not show itself under takes messages all the
// same; a stranger that answers 421 does not.
func TestReadyUnderAnyName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		ready  bool
	}{
		"MS1": {func(w http.ResponseWriter, _ *http.Request) {
			httpserver.Problem{Status: http.StatusMisdirectedRequest}.Write(w)
		}, true},
		"a stranger":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMisdirectedRequest) }, false},
		"another server": {http.NotFound, false},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(c.answer)
			defer server.Close()
			if err := client(t, server.URL).ready(t.Context()); (err == nil) != c.ready {
				t.Errorf("got %v, want ready: %t", err, c.ready)
			}
		})
	}
}

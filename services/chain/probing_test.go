package chain

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tricycle-relay/tricycle/docs"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// The settings of Schemathesis.
var probing = map[string]string{
	// Lets it check answers of x-ndjson.
	"hooks.py": `import json, schemathesis

@schemathesis.deserializer("application/x-ndjson")
def lines(ctx, response):
    return [json.loads(line) for line in response.content.splitlines()]
`,
	// For JSON Schema 1.0 is an integer, for a message it is not. An accepted
	// handshake is answered 101.
	"schemathesis.toml": `
[[operations]]
include-path = "/store"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, "5xx"]

[[operations]]
include-path = "/ws"
checks.not_a_server_error.expected-statuses = [101, "4xx"]
checks.positive_data_acceptance.expected-statuses = [101, 403, "5xx"]
`,
}

// A probing derives requests, valid and invalid ones, from the OpenAPI
// descriptions, and finds no answer that they do not allow.
func TestProbing(t *testing.T) {
	program := os.Getenv("TRICYCLE_TEST_SCHEMATHESIS")
	if program == "" {
		t.Skip("TRICYCLE_TEST_SCHEMATHESIS is not set: must be the path of Schemathesis")
	}
	c := newChain(t)
	const secret = "a-token-of-the-test"
	token := filepath.Join(c.dir, "token")
	servicetest.File(t, token, secret+"\n")
	for _, name := range []string{"ms1", "ms2"} {
		c.overlays[name]["token_file"] = token
	}
	c.overlays["ms1"]["ms2"].(settings)["token_file"] = token
	c.overlays["ms3"]["ms1"].(settings)["token_file"] = token
	c.up()
	for name, text := range probing {
		servicetest.File(t, filepath.Join(c.dir, name), text)
	}
	for _, name := range services {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			description, err := docs.Reference.ReadFile("reference/" + name + ".openapi.yaml")
			servicetest.NoError(t, err)
			file := filepath.Join(c.dir, name+".openapi.yaml")
			servicetest.File(t, file, string(description))
			proxy := shortAnswers(c.address[name])
			defer proxy.Close()
			// Without a number of random requests they are the same in each run.
			requests := []string{"--max-examples", "10", "--generation-deterministic"}
			if n := os.Getenv("TRICYCLE_TEST_PROBES"); n != "" {
				requests = []string{"--max-examples", n}
			}
			cmd := exec.Command(program, append([]string{"run", file, "--url", proxy.URL, "--header", "Authorization: Bearer " + secret,
				"--continue-on-failure", "--request-timeout", "10", "--no-color"}, requests...)...)
			cmd.Dir, cmd.Env = c.dir, append(os.Environ(), "SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH="+c.dir)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), " passed\n") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// shortAnswers is a proxy that ends the answers that are endless: those of
// /events after an event, and accepted handshakes. Every answer is the
// program's, no matter how odd the request: without one the connection is
// closed.
func shortAnswers(address string) *httptest.Server {
	transport := &http.Transport{DisableCompression: true}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host, out.Host = "http", address, address
		resp, err := transport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols:
		case r.Method == http.MethodGet && resp.Header.Get("Content-Type") == "text/event-stream":
			for line := bufio.NewScanner(resp.Body); line.Scan() && line.Text() != ""; {
				fmt.Fprintln(w, line.Text())
			}
			fmt.Fprintln(w)
		default:
			_, err = io.Copy(w, resp.Body)
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	return server
}

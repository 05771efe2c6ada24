package chain

import (
	"bufio"
	"cmp"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tricycle-relay/tricycle/docs"
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
	writeFile(t, token, secret+"\n")
	for _, name := range []string{"ms1", "ms2"} {
		c.overlays[name]["token_file"] = token
	}
	c.overlays["ms1"]["ms2"].(settings)["token_file"] = token
	c.overlays["ms3"]["ms1"].(settings)["token_file"] = token
	c.up()
	for name, text := range probing {
		writeFile(t, filepath.Join(c.dir, name), text)
	}
	for _, name := range []string{"ms1", "ms2", "ms3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			description, err := docs.Reference.ReadFile("reference/" + name + ".openapi.yaml")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(c.dir, name+".openapi.yaml")
			writeFile(t, file, string(description))
			proxy := shortAnswers(c.address[name])
			defer proxy.Close()
			cmd := exec.Command(program, "run", file, "--url", proxy.URL, "--header", "Authorization: Bearer "+secret,
				"--max-examples", cmp.Or(os.Getenv("TRICYCLE_TEST_PROBES"), "10"), "--continue-on-failure", "--request-timeout", "10", "--no-color")
			cmd.Dir, cmd.Env = c.dir, append(os.Environ(), "SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH="+c.dir)
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), " passed\n") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// shortAnswers is a proxy that ends the answers that are endless: those of
// /events after an event, and accepted handshakes.
func shortAnswers(address string) *httptest.Server {
	return httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: address}) },
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode == http.StatusSwitchingProtocols {
				resp.Body.Close()
				resp.Body = struct {
					io.ReadCloser
					io.Writer
				}{http.NoBody, io.Discard}
				return nil
			}
			if resp.Request.Method != http.MethodGet || resp.Header.Get("Content-Type") != "text/event-stream" {
				return nil
			}
			defer resp.Body.Close()
			var event strings.Builder
			for r := bufio.NewReader(resp.Body); !strings.HasSuffix(event.String(), "\n\n"); {
				line, err := r.ReadString('\n')
				if err != nil {
					return err
				}
				event.WriteString(line)
			}
			resp.Body = io.NopCloser(strings.NewReader(event.String()))
			return nil
		},
	})
}

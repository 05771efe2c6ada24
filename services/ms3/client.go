package ms3

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/dial"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

const (
	storeTimeout = 5 * time.Second
	maxAnswer    = 256 << 10        // bytes of the header and of the body of an answer that are read
	wrongTime    = 30 * time.Second // for which readiness remembers a wrong answer
)

// storeClient posts messages to MS1's /store over kept-alive connections.
type storeClient struct {
	url       string
	health    string
	tokenFile string
	token     *credentials.Token
	http      *http.Client

	wrong atomic.Pointer[wrongAnswer]
}

func newStoreClient(c Config) (*storeClient, error) {
	u, err := url.Parse(c.MS1.URL)
	if err != nil {
		return nil, fmt.Errorf("ms1.url: %w", err)
	}
	if err := c.MS1.CheckFiles("ms1"); err != nil {
		return nil, err
	}
	d := &dial.Dialer{Handshake: c.MS1.Handshake("ms1", c.MS1.URL)} // dials every address of MS1's name
	health := u.JoinPath("../healthz")                              // a proxy may have a prefix for all paths of MS1
	return &storeClient{url: c.MS1.URL, health: health.String(), tokenFile: c.MS1.TokenFile, token: c.MS1.Token("ms1"), http: &http.Client{
		Timeout: storeTimeout,
		Transport: &http.Transport{
			DialContext:            d.DialContext,
			DialTLSContext:         d.DialContext,
			DisableCompression:     true, // MS1 does not compress
			MaxIdleConnsPerHost:    c.Workers,
			MaxResponseHeaderBytes: maxAnswer,
			IdleConnTimeout:        90 * time.Second,
		},
		// A redirect comes from a stranger, who must not get messages.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// answer is the result of a request to store a message.
type answer struct {
	status  int    // HTTP status
	stored  bool   // 200 with an outcome of MS1
	problem string // problem type (RFC 9457), if the answer had one
	detail  string // of the problem, or of what is wrong with the answer
}

// final reports whether the same request would always get the same answer:
// the message is stored, or MS1 refuses it by one of its own problem types.
func (a answer) final() bool {
	switch a.problem {
	case httpserver.MalformedMessage:
		return a.status == http.StatusBadRequest
	case httpserver.MessageTooLarge:
		return a.status == http.StatusRequestEntityTooLarge
	case httpserver.UnknownMessage:
		return a.status == http.StatusNotFound
	}
	return a.stored
}

// wrong reports whether the answer is not final and shows a wrong
// configuration: another server at ms1.url, or an MS1 that refuses access.
func (a answer) wrong() bool {
	return !a.final() && a.status < 500 && a.status != http.StatusRequestTimeout && a.status != http.StatusTooManyRequests
}

// post sends encoded messages once, in one request, and returns the answer to
// each. An error means that there was no complete answer; the messages may have
// been stored.
func (c *storeClient) post(ctx context.Context, bodies ...[]byte) ([]answer, error) {
	media, body := "application/json", bodies[0]
	if len(bodies) > 1 {
		media, body = httpserver.LinesType, append(bytes.Join(bodies, newline), '\n')
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", media)
	if err := c.token.Set(req.Header); err != nil {
		return nil, err
	}
	telemetry.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	// The connection is reused only if the body is read to its end.
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && resp.StatusCode == http.StatusOK {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	answers := parse(resp.StatusCode, resp.Header.Get("Content-Type"), text, len(bodies))
	for _, a := range answers {
		c.note(a)
	}
	return answers, nil
}

// note remembers for [storeClient.ready] whether an answer was MS1's.
func (c *storeClient) note(a answer) {
	switch {
	case a.wrong():
		c.wrong.Store(&wrongAnswer{time.Now(), a})
	case a.final() && c.wrong.Load() != nil:
		c.wrong.Store(nil)
	}
}

var newline = []byte("\n")

// parse returns the answers to n messages of one request. Where the whole answer
// to several is not MS1's answer to them, none is final.
func parse(status int, contentType string, text []byte, n int) []answer {
	if n == 1 {
		return []answer{parseAnswer(status, contentType, text)}
	}
	answers := make([]answer, n)
	lines := bytes.Split(bytes.TrimSuffix(text, newline), newline)
	if media, _, _ := mime.ParseMediaType(contentType); status == http.StatusOK && media == httpserver.LinesType && len(lines) == n {
		for i, line := range lines {
			if answers[i] = (answer{status: http.StatusOK, stored: true}); string(line) != storedLine {
				answers[i] = parseAnswer(0, contentType, line)
			}
		}
		return answers
	}
	whole := answer{status: status, detail: fmt.Sprintf("expected %d lines of MS1, found %q: %.100q", n, contentType, text)}
	for i := range answers {
		answers[i] = whole
	}
	return answers
}

// storedLine is nearly every line: as MS1 writes it.
const storedLine = `{"status":200,"outcome":"stored"}`

// parseAnswer returns the answer in an object with an outcome or a problem. That of
// a line has status 0 and states its own.
func parseAnswer(status int, contentType string, text []byte) answer {
	media, _, _ := mime.ParseMediaType(contentType)
	var body struct {
		Status                int
		Outcome, Type, Detail string
	}
	err := json.Unmarshal(text, &body)
	a := answer{status: cmp.Or(status, body.Status)}
	switch {
	case err != nil:
	case a.status == http.StatusOK && (status == 0 || media == "application/json"):
		a.stored = body.Outcome == "stored" || body.Outcome == "repeat"
	case a.status != http.StatusOK && (status == 0 || media == httpserver.ProblemType):
		a.problem, a.detail = body.Type, body.Detail
	}
	if a.detail == "" && a.wrong() {
		a.detail = fmt.Sprintf("expected an answer of MS1, found %q: %.100q", contentType, text)
	}
	return a
}

// unauthorized returns the error of a 401.
func (c *storeClient) unauthorized() error {
	return fmt.Errorf("ms1.token_file: must name a file with MS1's token, got %q and status 401 from %s", c.tokenFile, c.url)
}

// wrongAnswer is the last answer that showed a wrong configuration.
type wrongAnswer struct {
	at time.Time
	answer
}

// ready returns nil if MS1 is alive and no recent answer of /store was another
// server's.
func (c *storeClient) ready(ctx context.Context) error {
	if w := c.wrong.Load(); w != nil && time.Since(w.at) < wrongTime {
		if w.status == http.StatusUnauthorized {
			return c.unauthorized()
		}
		return fmt.Errorf("ms1.url: must be the address of MS1's /store, got status %d from %s", w.status, c.url)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.health, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	// MS1 answers 421 unless its name is an allowed host; it takes messages
	// under any name.
	known := resp.StatusCode == http.StatusMisdirectedRequest && resp.Header.Get("Content-Type") == httpserver.ProblemType
	if resp.StatusCode != http.StatusOK && !known {
		return fmt.Errorf("ms1.url: %s must answer 200, got %s: %.100q", c.health, resp.Status, text)
	}
	return nil
}

package ms3

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"go.opentelemetry.io/otel/propagation"

	"github.com/tricycle-relay/tricycle/lib/dial"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

const (
	storeTimeout = 5 * time.Second
	maxAnswer    = 64 << 10 // bytes of an answer that are read
)

// store is MS1's /store, over connections that are kept alive.
type store struct {
	url    string
	health string
	client *http.Client
}

func newStore(c Config) (*store, error) {
	u, err := url.Parse(c.MS1.URL)
	if err != nil {
		return nil, fmt.Errorf("ms1.url: %w", err)
	}
	health := url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/healthz"}
	return &store{url: c.MS1.URL, health: health.String(), client: &http.Client{
		Timeout: storeTimeout,
		Transport: &http.Transport{
			DialContext:         new(dial.Dialer).DialContext, // every address of MS1's name
			MaxIdleConnsPerHost: c.Workers,
			IdleConnTimeout:     90 * time.Second,
		},
		// A redirect is the answer of a stranger, who must not get messages.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// answer is what became of a request to store a message.
type answer struct {
	status  int    // HTTP status
	problem string // problem type (RFC 9457), if the answer had one
	detail  string // of the problem, in words
}

// final says that the same request would always be answered so.
func (a answer) final() bool {
	switch a.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return true
	case http.StatusNotFound: // MS1 never sent it; a stranger's 404 has another type or none
		return a.problem == httpserver.UnknownMessage
	}
	return false
}

// wrong says that whoever answers is not configured to take messages.
func (a answer) wrong() bool { return a.status >= 300 && a.status < 500 }

// post sends an encoded message once. An error means that there was no answer;
// whether the message was stored is unknown then.
func (s *store) post(ctx context.Context, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	telemetry.Propagator.Inject(ctx, propagation.HeaderCarrier(req.Header))
	resp, err := s.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode}
	// Read to its end the connection can be used again. An answer torn after
	// its status still is an answer.
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	var problem struct{ Type, Detail string }
	if a.status != http.StatusOK && json.Unmarshal(text, &problem) == nil {
		a.problem, a.detail = problem.Type, problem.Detail
	}
	return a, nil
}

// ready returns nil if MS1 is alive.
func (s *store) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.health, nil)
	if err != nil {
		return err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("found %s at %s, expected 200", resp.Status, s.health)
	}
	return nil
}

// errorType names an error of the transport for a span.
func errorType(err error) string {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "timeout"
	}
	return "connection"
}

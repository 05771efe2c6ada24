// Package openapitest compares the HTTP exchanges of a test with the service's
// OpenAPI description in docs/reference.
//
// Each answer must be described with its status, headers and body. The service
// must refuse a request that the description does not allow. An unknown path
// must get 404, an unknown method 405 with the allowed methods in Allow. Both
// answers are problem details (RFC 9457). A [Service] asks only for such answers.
package openapitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/tricycle-relay/tricycle/docs"
)

const problemType = "application/problem+json"

// Client returns a client for requests to the service (ms1, ms2 or ms3). It fails
// the test at an exchange that the description does not allow. It keeps no
// connections.
func Client(t testing.TB, service string) *http.Client {
	return &http.Client{Transport: Transport(t, service, &http.Transport{DisableKeepAlives: true})}
}

// Transport returns a transport that sends with next and compares.
func Transport(t testing.TB, service string, next http.RoundTripper) http.RoundTripper {
	t.Helper()
	d, err := describe(service)
	if err != nil {
		t.Fatal(err)
	}
	return transport{t, service, d, next}
}

// Request returns an error if the description of the service does not allow the
// request. It is for tests that replace the service.
func Request(service string, r *http.Request) error {
	d, err := describe(service)
	if err != nil {
		return err
	}
	_, err = d.request(r)
	return err
}

// Schema returns an error if the value, decoded JSON, is not as the schema in the
// description of the service.
func Schema(service, name string, value any) error {
	d, err := describe(service)
	if err != nil {
		return err
	}
	return d.doc.Components.Schemas[name].Value.VisitJSON(value, openapi3.EnableJSONSchema2020())
}

type transport struct {
	t       testing.TB
	service string
	*description
	next http.RoundTripper
}

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	input, refused := t.request(r)
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	return resp, t.answer(r, input, refused, resp)
}

// Exchange checks an exchange of a test that does not use [Client]. It reads the
// body of the answer and restores it.
func Exchange(t testing.TB, service string, r *http.Request, resp *http.Response) {
	t.Helper()
	d, err := describe(service)
	if err != nil {
		t.Fatal(err)
	}
	input, refused := d.request(r)
	if err := (transport{t, service, d, nil}).answer(r, input, refused, resp); err != nil {
		t.Error(err)
	}
}

// answer fails the test if the description does not allow the answer. It returns
// an error if the answer could not be read.
func (t transport) answer(r *http.Request, input *openapi3filter.RequestValidationInput, refused error, resp *http.Response) error {
	var body []byte
	if resp.StatusCode != http.StatusSwitchingProtocols {
		var err error
		body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close() // fully read
		if err != nil {
			return err
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	if err := t.compare(input, refused, resp, body); err != nil {
		t.t.Errorf("%s %s: docs/reference/%[4]s.openapi.yaml does not allow the answer %[3]s: %[5]v", r.Method, r.URL.RequestURI(), resp.Status, t.service, err)
	}
	return nil
}

// Complete returns an exit function for TestMain that takes the exit status of
// the tests. If all tests of a package passed, it fails if a described answer did
// not occur. For HEAD one answer is enough.
func Complete(service string) func(status int) {
	return func(status int) {
		for _, filter := range []string{"test.run", "test.skip", "test.list", "test.fuzz"} {
			if flag.Lookup(filter).Value.String() != "" {
				os.Exit(status)
			}
		}
		if status != 0 {
			os.Exit(status)
		}
		for _, answer := range unanswered(service) {
			fmt.Fprintf(os.Stderr, "docs/reference/%s.openapi.yaml describes %s, which no test has seen\n", service, answer)
			status = 1
		}
		os.Exit(status)
	}
}

// unanswered returns the described answers that have not occurred yet.
func unanswered(service string) (missing []string) {
	d, err := describe(service)
	if err != nil {
		return []string{err.Error()}
	}
	mu.Lock()
	defer mu.Unlock()
	for path, item := range d.doc.Paths.Map() {
		for method, operation := range item.Operations() {
			var answers []string
			for status := range operation.Responses.Map() {
				if answer := method + " " + path + " " + status; !d.seen[answer] {
					answers = append(answers, answer)
				}
			}
			if method != http.MethodHead || len(answers) == operation.Responses.Len() {
				missing = append(missing, answers...)
			}
		}
	}
	slices.Sort(missing)
	return missing
}

// description is the OpenAPI description of a service.
type description struct {
	doc    *openapi3.T
	router routers.Router
	seen   map[string]bool // answers, each as "GET /start 202"
}

var (
	mu    sync.Mutex
	known = map[string]*description{}
)

func describe(service string) (*description, error) {
	mu.Lock()
	defer mu.Unlock()
	if d := known[service]; d != nil {
		return d, nil
	}
	text, err := docs.Reference.ReadFile("reference/" + service + ".openapi.yaml")
	if err != nil {
		return nil, err
	}
	registerLines()
	d := &description{seen: map[string]bool{}}
	if d.doc, err = openapi3.NewLoader().LoadFromData(text); err == nil {
		err = d.doc.Validate(context.Background())
	}
	if err == nil {
		d.router, err = gorillamux.NewRouter(d.doc)
	}
	if err != nil {
		return nil, fmt.Errorf("read the description of %s: %w", service, err)
	}
	known[service] = d
	return d, nil
}

// registerLines lets the descriptions have bodies of x-ndjson, as arrays. A
// line that is not JSON is a string in it. Bodies of other media types are
// strings.
var registerLines = sync.OnceFunc(func() {
	openapi3filter.RegisterBodyDecoder("application/x-ndjson", func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
		text, err := io.ReadAll(body)
		values := []any{}
		for line := range strings.Lines(string(text)) {
			var value any
			if json.Unmarshal([]byte(line), &value) != nil {
				value = line
			}
			values = append(values, value)
		}
		return values, err
	})
	for _, media := range []string{"text/csv", "text/event-stream", "text/html", "text/css", "text/javascript", "image/svg+xml"} {
		openapi3filter.RegisterBodyDecoder(media, openapi3filter.FileBodyDecoder)
	}
})

// request compares a request with the description. It reads the body and restores
// it.
func (d *description) request(r *http.Request) (*openapi3filter.RequestValidationInput, error) {
	route, parameters, err := d.router.FindRoute(r)
	if err != nil {
		return nil, err
	}
	input := &openapi3filter.RequestValidationInput{Request: r, PathParams: parameters, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc}} // a service may have no token
	return input, openapi3filter.ValidateRequest(r.Context(), input)
}

// compare compares the answer to a request with the description. refused is the
// error of a request that the description does not allow.
func (d *description) compare(input *openapi3filter.RequestValidationInput, refused error, resp *http.Response, body []byte) error {
	switch {
	case errors.Is(refused, routers.ErrPathNotFound):
		return d.problem(resp, body, http.StatusNotFound)
	case errors.Is(refused, routers.ErrMethodNotAllowed):
		if want := d.methods(resp.Request); resp.Header.Get("Allow") != want {
			return fmt.Errorf("header Allow must be %s, got %s", want, resp.Header.Get("Allow"))
		}
		return d.problem(resp, body, http.StatusMethodNotAllowed)
	case refused != nil && resp.StatusCode < http.StatusBadRequest:
		return fmt.Errorf("the description does not allow the request: %w", refused)
	}
	return d.response(input, resp, body)
}

// methods returns the described methods for the path of a request.
func (d *description) methods(r *http.Request) string {
	var methods []string
	for _, method := range []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"} {
		other := r.Clone(r.Context())
		other.Method = method
		if _, _, err := d.router.FindRoute(other); err == nil {
			methods = append(methods, method)
		}
	}
	return strings.Join(methods, ", ")
}

func (d *description) response(input *openapi3filter.RequestValidationInput, resp *http.Response, body []byte) error {
	mu.Lock()
	d.seen[fmt.Sprintf("%s %s %d", input.Request.Method, input.Route.Path, resp.StatusCode)] = true
	mu.Unlock()
	// ValidateResponse accepts any answer to HEAD. It finds the operation by the route,
	// so the request may state another method.
	described := *input
	described.Request = input.Request.Clone(context.Background())
	described.Request.Method = http.MethodGet
	output := &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &described, Status: resp.StatusCode, Header: resp.Header,
		Options: &openapi3filter.Options{IncludeResponseStatus: true, ExcludeResponseBody: body == nil || input.Request.Method == http.MethodHead},
	}
	output.SetBodyBytes(body)
	return openapi3filter.ValidateResponse(context.Background(), output)
}

// problem compares an answer that any path may give with the schema of problem
// details.
func (d *description) problem(resp *http.Response, body []byte, status int) error {
	if resp.StatusCode != status {
		return fmt.Errorf("status must be %d, got %d", status, resp.StatusCode)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind != problemType {
		return fmt.Errorf("content type must be %s, got %s", problemType, resp.Header.Get("Content-Type"))
	}
	if resp.Request.Method == http.MethodHead {
		return nil
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return err
	}
	return d.doc.Components.Schemas["Problem"].Value.VisitJSON(value, openapi3.EnableJSONSchema2020())
}

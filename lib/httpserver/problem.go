package httpserver

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
)

// Problem types of MS1's answers to a message that can never be stored. MS3 gives
// up a message only for these: a 400, 404 or 413 without them may come from
// another server.
const (
	UnknownMessage   = "urn:tricycle:problem:unknown-message"   // 404: MS1 never sent it
	MalformedMessage = "urn:tricycle:problem:malformed-message" // 400: it is no valid message
	MessageTooLarge  = "urn:tricycle:problem:message-too-large" // 413
)

const (
	// ProblemType is the media type of problem details.
	ProblemType = "application/problem+json"
	// LinesType is the media type of JSON values that each have a line.
	LinesType = "application/x-ndjson"
)

// Problem is the body of every error answer: problem details for HTTP APIs,
// RFC 9457.
type Problem struct {
	Type       string // URI of the kind of problem; "about:blank" if empty
	Status     int    // HTTP status code
	Detail     string // one line
	Extensions map[string]any
}

// MarshalJSON implements [json.Marshaler].
func (p Problem) MarshalJSON() ([]byte, error) {
	body := map[string]any{"type": cmp.Or(p.Type, "about:blank"), "title": http.StatusText(p.Status), "status": p.Status, "detail": p.Detail}
	maps.Copy(body, p.Extensions)
	return json.Marshal(body)
}

// Write answers a request with the problem.
func (p Problem) Write(w http.ResponseWriter) { answer(w, p.Status, ProblemType, p) }

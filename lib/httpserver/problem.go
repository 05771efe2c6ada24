package httpserver

import (
	"encoding/json"
	"maps"
	"net/http"
)

// UnknownMessage is the problem type of MS1's 404 for a message that it never
// sent. MS3 tells by it that repeating the request is useless; any other 404
// comes from a stranger at the wrong address.
const UnknownMessage = "urn:tricycle:problem:unknown-message"

// ProblemType is the media type of problem details.
const ProblemType = "application/problem+json"

// Problem is the body of every error answer: problem details for HTTP APIs,
// RFC 9457.
type Problem struct {
	Type       string // URI of the kind of problem; "about:blank" if empty
	Status     int    // HTTP status code
	Detail     string // what was found and what was expected, in one line
	Extensions map[string]any
}

// Write answers a request with the problem.
func (p Problem) Write(w http.ResponseWriter) {
	body := map[string]any{"type": "about:blank", "title": http.StatusText(p.Status), "status": p.Status, "detail": p.Detail}
	if p.Type != "" {
		body["type"] = p.Type
	}
	maps.Copy(body, p.Extensions)
	data, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", ProblemType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(data, '\n')) // a client that left needs no answer
}

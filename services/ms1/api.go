package ms1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// handler returns the HTTP API. The routes that act require the token. The checks are
// those of /readyz.
func (s *Service) handler(token *credentials.Token, checks []httpserver.Check) http.Handler {
	guarded := func(route string, next http.HandlerFunc) http.HandlerFunc {
		return httpserver.WithToken(token, s.log, s.traced(route, next))
	}
	routes := httpserver.Health(s.log, s.telemetry.Metrics, checks...)
	maps.Copy(routes, httpserver.Routes{
		"/{$}":         httpserver.ReadOnly(func(w http.ResponseWriter, _ *http.Request) { s.pageFile(w, "index.html") }),
		"/page/{file}": httpserver.ReadOnly(func(w http.ResponseWriter, r *http.Request) { s.pageFile(w, r.PathValue("file")) }),

		"/start":         {http.MethodGet: guarded("/start", s.start)},
		"/stop":          {http.MethodGet: guarded("/stop", s.stop)},
		"/store":         {http.MethodPost: guarded("/store", s.store)},
		"/status":        httpserver.ReadOnly(s.status),
		"/events":        httpserver.ReadOnly(s.events.serve),
		"/sessions":      httpserver.ReadOnly(s.history.sessions),
		"/sessions/{id}": httpserver.ReadOnly(s.history.session),

		"/sessions/{id}/hops":     httpserver.ReadOnly(s.history.hops),
		"/sessions/{id}/messages": httpserver.ReadOnly(s.history.messages),
	})
	return routes.Handler(append([]string{s.config.Listen}, s.config.AllowedHosts...)...)
}

// traced creates a SERVER span for every request, in the trace of its headers or
// a new one.
func (s *Service) traced(route string, next http.HandlerFunc) http.HandlerFunc {
	if route == "/store" && s.telemetry.Off() { // the others are logged with their trace id
		return next
	}
	return func(w http.ResponseWriter, r *http.Request) {
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		ctx := telemetry.Propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := s.telemetry.Tracer.Start(ctx, r.Method+" "+route, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
			semconv.HTTPRequestMethodKey.String(r.Method), semconv.HTTPRoute(route), semconv.URLPath(r.URL.Path), semconv.URLScheme(scheme)))
		defer span.End()
		status := &statusWriter{ResponseWriter: w, code: http.StatusOK}
		next(status, r.WithContext(ctx))
		if !span.IsRecording() {
			return
		}
		span.SetAttributes(semconv.HTTPResponseStatusCode(status.code))
		if status.code >= http.StatusInternalServerError {
			telemetry.Fail(span, strconv.Itoa(status.code), "")
		}
	}
}

// statusWriter records the status code of an answer.
type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// request returns a function that logs the request at every level. It is called
// for a request that begins or ends a session; refused ones, which anybody can
// send at any rate, go to s.refused.
func (s *Service) request(r *http.Request, log zerolog.Logger) func() {
	return func() {
		log.Log().Str("method", r.Method).Str("client", r.RemoteAddr).
			Stringer("trace_id", trace.SpanContextFromContext(r.Context()).TraceID()).
			Msgf("%s %s", r.Method, r.URL.RequestURI())
	}
}

// start answers GET /start, whose query overrides the configuration for one
// session.
func (s *Service) start(w http.ResponseWriter, r *http.Request) {
	c := s.config.Interaction
	if err := query(r, map[string]func(string) error{"interval": whole(&c.IntervalSeconds, MaxIntervalSeconds), "in_flight": whole(&c.InFlight, MaxInFlight)}); err != nil {
		s.request(r, s.refused)()
		badRequest(w, err)
		return
	}
	id, err := s.engine.start(r.Context(), c.IntervalSeconds, c.InFlight, s.request(r, s.log))
	if err != nil {
		s.request(r, s.refused)()
	}
	var busy *busyError
	var notReady *notReadyError
	switch {
	case err == nil:
		httpserver.JSON(w, http.StatusAccepted, map[string]int64{"session_id": id})
	case errors.As(err, &busy):
		p := httpserver.Problem{Status: http.StatusConflict, Detail: err.Error()}
		if busy.sessionID != 0 {
			p.Extensions = map[string]any{"session_id": busy.sessionID}
		}
		p.Write(w)
	case errors.As(err, &notReady):
		s.unstarted.Warn().Err(err).Msg("session not started")
		missing := httpserver.States(notReady.missing)
		httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: "not ready: " + strings.Join(slices.Sorted(maps.Keys(missing)), ", "),
			Extensions: map[string]any{"missing": missing}}.Write(w)
	}
}

func (s *Service) stop(w http.ResponseWriter, r *http.Request) {
	summary, err := s.engine.stop(r.Context(), s.request(r, s.log))
	if err != nil {
		s.request(r, s.refused)()
	}
	switch {
	case err == nil:
		httpserver.JSON(w, http.StatusOK, summary)
	case errors.Is(err, errIdle):
		httpserver.Problem{Status: http.StatusConflict, Detail: err.Error()}.Write(w)
	case summary.ID != 0:
		httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: fmt.Sprintf("session %d: %s", summary.ID, summary.Problem),
			Extensions: map[string]any{"session": summary}}.Write(w)
	default: // the client has left
		httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: err.Error()}.Write(w)
	}
}

// maxLines is the number of messages in a request of x-ndjson.
const maxLines = 64

// store answers POST /store. A request of x-ndjson has a message in each line
// and gets a line for each: the status and the outcome, or the problem.
func (s *Service) store(w http.ResponseWriter, r *http.Request) {
	if coding := strings.Join(r.Header.Values("Content-Encoding"), ", "); coding != "" && !strings.EqualFold(coding, "identity") {
		w.Header().Set("Accept-Encoding", "identity")
		httpserver.Problem{Status: http.StatusUnsupportedMediaType, Detail: fmt.Sprintf("Content-Encoding: must be identity, got %q", coding)}.Write(w)
		return
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	several, limit := media == httpserver.LinesType, int64(message.MaxBytes)
	if several {
		limit = maxLines * (message.MaxBytes + 1)
	}
	body, problem := readBody(w, r, limit)
	if problem != nil {
		if several {
			problem.Type = "" // it is no problem of a message
		}
		s.refuse(r.Context(), problem)
		problem.Write(w)
		return
	}
	if !several {
		answer := s.judge(r.Context(), body)[0]
		if answer.problem == nil {
			httpserver.JSON(w, http.StatusOK, map[string]Outcome{"outcome": answer.outcome})
			return
		}
		if answer.problem.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		answer.problem.Write(w)
		return
	}
	lines := bytes.Split(bytes.TrimSuffix(body, []byte("\n")), []byte("\n"))
	if len(lines) > maxLines {
		problem = &httpserver.Problem{Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("body: must have at most %d lines, got %d", maxLines, len(lines))}
		s.refuse(r.Context(), problem)
		problem.Write(w)
		return
	}
	var text bytes.Buffer
	for _, answer := range s.judge(r.Context(), lines...) {
		if answer.problem == nil {
			text.WriteString(`{"status":200,"outcome":"` + string(answer.outcome) + "\"}\n")
		} else if line, err := answer.problem.MarshalJSON(); err == nil {
			text.Write(append(line, '\n'))
		}
	}
	w.Header().Set("Content-Type", httpserver.LinesType)
	_, _ = text.WriteTo(w) // a client that left needs no answer
}

// storeAnswer is the answer to one message.
type storeAnswer struct {
	arrival
	problem *httpserver.Problem // nil if it is stored
}

// judge stores the encoded messages of one request and returns the answer to
// each, in their order.
func (s *Service) judge(ctx context.Context, bodies ...[]byte) []storeAnswer {
	answers, end := make([]storeAnswer, len(bodies)), message.StampOf(s.engine.now())
	arrivals := make([]*arrival, 0, len(bodies))
	span := trace.SpanFromContext(ctx)
	for i, body := range bodies {
		a := &answers[i]
		if a.message, a.problem = decode(body); a.problem != nil {
			continue
		}
		a.ctx, a.message.End = ctx, end
		if len(bodies) == 1 {
			if span.IsRecording() {
				span.SetAttributes(messageAttributes(a.message)...)
			}
		} else {
			// Its spans hang from its root; the request has a trace of its own.
			a.ctx = s.telemetry.Message(ctx, a.message.Key())
			if root := trace.SpanContextFromContext(a.ctx); root.IsSampled() {
				span.AddLink(trace.Link{SpanContext: root})
			}
		}
		arrivals = append(arrivals, &a.arrival)
	}
	// MS3 may hang up; the commit goes on.
	waiting, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	receive(waiting, s.engine, arrivals...)
	for i := range answers {
		a := &answers[i]
		switch {
		case a.err != nil:
			s.log.Debug().Stringer("trace_id", telemetry.TraceID(trace.SpanFromContext(a.ctx), a.message.Key())).Err(a.err).Stringer("key", a.message.Key()).Msg("message not stored yet")
			a.problem = &httpserver.Problem{Status: http.StatusServiceUnavailable, Detail: "message is not stored yet, try again"}
		case a.outcome == OutcomeUnknown:
			a.problem = &httpserver.Problem{Type: httpserver.UnknownMessage, Status: http.StatusNotFound,
				Detail: fmt.Sprintf("message %s: never sent, session ended with nothing lost, or timestamps out of range", a.message.Key())}
		}
		if a.problem == nil {
			s.engine.meters.answered.Inc()
		} else {
			s.refuse(ctx, a.problem)
		}
	}
	return answers
}

// refuse counts and logs a refused message or request of /store. A message that
// is not stored yet comes again; any other shows a fault of its sender.
func (s *Service) refuse(ctx context.Context, p *httpserver.Problem) {
	s.engine.meters.count(p.Status)
	begin := s.log.Debug
	if p.Status < http.StatusInternalServerError {
		begin = s.rejected.Warn
	}
	event := begin()
	if span := trace.SpanContextFromContext(ctx); span.IsValid() { // none without tracing
		event.Stringer("trace_id", span.TraceID())
	}
	event.Int("status", p.Status).Str("detail", p.Detail).Msg("message refused")
}

// readBody reads a body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *httpserver.Problem) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		// A client that is still sending when the connection is closed may
		// never see the answer; the body's deadline bounds this.
		_, _ = io.Copy(io.Discard, r.Body)
		return nil, tooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &httpserver.Problem{Status: http.StatusRequestTimeout, Detail: fmt.Sprintf("body: must arrive within %s", httpserver.BodyTimeout)}
	case err != nil:
		return nil, &httpserver.Problem{Status: http.StatusBadRequest, Detail: "body: " + err.Error()}
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // that of the body
	return body, nil
}

func tooLarge(limit int64) *httpserver.Problem {
	return &httpserver.Problem{Type: httpserver.MessageTooLarge, Status: http.StatusRequestEntityTooLarge, Detail: fmt.Sprintf("body: must be at most %d bytes, got more", limit)}
}

func decode(body []byte) (message.Message, *httpserver.Problem) {
	if len(body) > message.MaxBytes {
		return message.Message{}, tooLarge(message.MaxBytes)
	}
	m, err := message.Decode(body, message.AtStore)
	if wrong, ok := errors.AsType[*message.Error](err); ok {
		return message.Message{}, &httpserver.Problem{Type: httpserver.MalformedMessage, Status: http.StatusBadRequest, Detail: err.Error(), Extensions: map[string]any{"field": wrong.Field}}
	}
	return m, nil
}

func (s *Service) status(w http.ResponseWriter, r *http.Request) {
	httpserver.JSON(w, http.StatusOK, s.engine.status(r.Context()))
}

// Package httpserver implements the HTTP side that all services share. Its routes
// are strict about methods, and its errors are problem details (RFC 9457). It has
// the health endpoints, and a server with time limits and an orderly shutdown.
package httpserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/lifecycle"
	"github.com/tricycle-relay/tricycle/lib/logging"
)

const (
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10
	stopTimeout   = time.Second
)

// BodyTimeout is how long the body of a request may take to arrive. Without it, a
// body that never ends would hold a connection indefinitely.
const BodyTimeout = 5 * time.Second

// Routes maps a path pattern of [http.ServeMux], without method or host, to
// the handler of each method that the path has.
type Routes map[string]map[string]http.HandlerFunc

// Handler serves the routes. An unknown path is answered 404, another method
// 405 with an Allow header, both as problem details; one slash at the end of a
// path is ignored. HEAD needs its own route, as in [ReadOnly].
//
// Requests that a web page of another site can cause are refused: 421 for a
// Host that is no IP address, localhost, name without dots or one of the
// allowed hosts (each a name or name:port), except for a POST or a WebSocket
// handshake that no browser has sent; 403 for another Origin, for fetch metadata
// of another site and, if the route does more than read, for a prefetch; 415 for
// a POST of another type than application/json.
func (routes Routes) Handler(allowedHosts ...string) http.Handler {
	mux, g := http.NewServeMux(), guard{allowedHosts}
	mux.HandleFunc("/", notFound)
	for pattern, methods := range routes {
		allow := strings.Join(slices.Sorted(maps.Keys(methods)), ", ")
		_, reads := methods[http.MethodHead]
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h, ok := methods[r.Method]
			if !ok {
				w.Header().Set("Allow", allow)
				Problem{Status: http.StatusMethodNotAllowed, Detail: fmt.Sprintf("method: must be %s, got %s", allow, r.Method)}.Write(w)
				return
			}
			if refused := g.check(r, !reads); refused != nil {
				refused.Write(w)
				return
			}
			h(w, r)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 { // no error from a net/http server
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(BodyTimeout))
		}
		if r.Method == http.MethodConnect { // the mux answers in plain text
			w.Header().Set("Allow", "GET, HEAD, POST")
			Problem{Status: http.StatusMethodNotAllowed, Detail: "method: must be GET, HEAD or POST, got CONNECT"}.Write(w)
			return
		}
		if p := r.URL.Path; len(p) > 1 && strings.HasSuffix(p, "/") {
			r.URL.Path, r.URL.RawPath = strings.TrimSuffix(p, "/"), strings.TrimSuffix(r.URL.RawPath, "/")
		}
		if path.Clean("/"+r.URL.Path) != r.URL.Path { // the mux redirects, in HTML
			notFound(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func notFound(w http.ResponseWriter, r *http.Request) {
	Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("path: there is no %q", r.URL.Path)}.Write(w)
}

// ReadOnly returns the methods of a path that only reads.
func ReadOnly(h http.HandlerFunc) map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{http.MethodGet: h, http.MethodHead: h}
}

// JSON answers a request with v, which no cache may store.
func JSON(w http.ResponseWriter, status int, v any) { answer(w, status, "application/json", v) }

func answer(w http.ResponseWriter, status int, media string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		Problem{Status: http.StatusInternalServerError, Detail: err.Error()}.Write(w)
		return
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may have left
}

// Server serves HTTP on a listener.
type Server struct {
	listener net.Listener
	server   *http.Server
	zone     string // of a link-local address
}

// Endpoint is the configuration of a service's listener.
type Endpoint struct {
	Listen       string           `yaml:"listen"`        // host:port of the HTTP server; port 0 for a free one
	AllowedHosts []string         `yaml:"allowed_hosts"` // names with a dot by which clients address the service; IP addresses, localhost and names without a dot need no entry
	TLS          credentials.Pair `yaml:"tls"`
}

// Validate returns an error for each key that is out of range.
func (e Endpoint) Validate() error {
	return errors.Join(config.HostPort("listen", e.Listen, 0), config.HostNames("allowed_hosts", e.AllowedHosts), e.TLS.Validate("tls"))
}

// Listen opens a TCP listener on address ("host:port", port 0 for a free one)
// for a server of the handler, with TLS if the pair names a certificate. Nothing
// is served before [Server.Run]. The server has at most [MaxConnections]
// connections, and at most half as many as the process may open files; at the
// limit it closes the one that has been idle longest. A client that takes longer
// than [AnswerTimeout] to read an answer is cut off.
func Listen(address string, p credentials.Pair, handler http.Handler, logger zerolog.Logger) (*Server, error) {
	unused := logging.Limit(logger)
	secure, err := p.Server("tls", func(err error) { unused.Error().Err(err).Msg("changed certificate not used") })
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(address)
	_, zone, _ := strings.Cut(host, "%")
	limited := newConnections(l, connectionLimit(), logging.Limit(logger))
	protocols := new(http.Protocols) // without HTTP/2, which has no WebSocket handshake
	protocols.SetHTTP1(true)
	return &Server{listener: limited, zone: zone, server: &http.Server{
		TLSConfig:         secure,
		Protocols:         protocols,
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		// OPTIONS * is an unknown path, as any other.
		DisableGeneralOptionsHandler: true,
		ConnState:                    limited.state,
		// Clients can cause these events at any rate.
		ErrorLog: log.New(logging.Limit(logger.With().Str("level", "warn").Logger()), "", 0),
	}}, nil
}

// Address returns the address that the server listens on, with the real port.
func (s *Server) Address() string {
	if a, ok := s.listener.Addr().(*net.TCPAddr); ok && s.zone != "" {
		return (&net.TCPAddr{IP: a.IP, Port: a.Port, Zone: s.zone}).String() // Multipath TCP of Linux loses the zone
	}
	return s.listener.Addr().String()
}

// Run serves until ctx is cancelled, then waits up to a second for the running
// requests before it cuts them off.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() {
		if s.server.TLSConfig != nil {
			failed <- s.server.ServeTLS(s.listener, "", "")
			return
		}
		failed <- s.server.Serve(s.listener)
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := lifecycle.Grace(ctx, stopTimeout)
	defer cancel()
	if err := s.server.Shutdown(grace); err != nil {
		_ = s.server.Close() // cuts off the remaining requests
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

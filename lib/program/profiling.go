package program

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/httpserver"
)

// Profiling is the section 'profiling' of a configuration.
type Profiling struct {
	Enabled bool   `yaml:"enabled"` // serve /debug/pprof
	Listen  string `yaml:"listen"`  // host:port of /debug/pprof, apart from everything else that the program serves
}

// Validate returns an error that names each key out of range.
func (c Profiling) Validate() error { return config.HostPort("profiling.listen", c.Listen, 0) }

// serve serves the profiles of net/http/pprof on an address of their own until
// the returned function is called.
func (c Profiling) serve() (close func(), err error) {
	if !c.Enabled {
		return func() {}, nil
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for profiling.listen: %w", err)
	}
	routes := httpserver.Routes{}
	for path, handler := range map[string]http.HandlerFunc{
		"": pprof.Index, "/{profile}": pprof.Index,
		"/cmdline": pprof.Cmdline, "/profile": pprof.Profile, "/symbol": pprof.Symbol, "/trace": pprof.Trace,
	} {
		routes["/debug/pprof"+path] = httpserver.ReadOnly(handler)
	}
	// Not an httpserver.Server, which would cut off a trace after some seconds.
	server := &http.Server{Handler: routes.Handler(c.Listen), ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(l) }() // until it is closed
	return func() { _ = server.Close() }, nil
}

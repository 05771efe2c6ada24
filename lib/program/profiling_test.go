package program_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/program"
)

type profiled struct {
	program.Profiling `yaml:"profiling"`
}

// profile runs a program that asks for profiles of itself at the paths, and
// returns the statuses; 0 where nobody listens.
func profile(t *testing.T, c program.Profiling, host string, paths ...string) (statuses []int, stderr string) {
	t.Helper()
	var errs strings.Builder
	program.Main(t.Context(), program.Program[profiled]{
		Name: "ms9", Config: profiled{c}, Serves: func(c profiled) program.Served {
			return program.Served{Observability: program.Observability{Profiling: c.Profiling}}
		},
		Run: func(ctx context.Context, _ profiled, _ io.Writer) error {
			for _, path := range paths {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.Listen+path, nil)
				if err != nil {
					return err
				}
				req.Host = host
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					statuses = append(statuses, 0)
					continue
				}
				statuses = append(statuses, resp.StatusCode)
				_, err = io.Copy(io.Discard, resp.Body)
				if err = errors.Join(err, resp.Body.Close()); err != nil {
					return err
				}
			}
			http.DefaultClient.CloseIdleConnections()
			return nil
		},
	}, nil, io.Discard, &errs)
	return statuses, errs.String()
}

func TestProfiling(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := taken.Addr().String()
	if _, stderr := profile(t, program.Profiling{Enabled: true, Listen: address}, ""); !strings.Contains(stderr, "profiling.listen: ") {
		t.Errorf("the address is in use: got %q, want an error that names the key", stderr)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if program.ObservabilityDefaults().Profiling.Enabled {
		t.Error("profiles are served by default")
	}
	if statuses, _ := profile(t, program.Profiling{Listen: address}, "", "/debug/pprof/heap"); len(statuses) != 1 || statuses[0] != 0 {
		t.Errorf("profiling is off: got %v, want nobody to listen", statuses)
	}
	on := program.Profiling{Enabled: true, Listen: address}
	paths := []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/profile?seconds=1", "/debug/pprof/absent", "/metrics"}
	statuses, stderr := profile(t, on, "", paths...)
	for i, want := range []int{200, 200, 200, 200, 404, 404} {
		if i >= len(statuses) || statuses[i] != want {
			t.Fatalf("%v: got %v %s, want %d for %s", paths, statuses, stderr, want, paths[i])
		}
	}
	// A name that somebody has pointed at this machine.
	if statuses, _ := profile(t, on, "evil.example", "/debug/pprof/heap"); len(statuses) != 1 || statuses[0] != http.StatusMisdirectedRequest {
		t.Errorf("for another host: got %v, want 421", statuses)
	}
}

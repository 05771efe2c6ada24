package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// TestMounts: an SELinux host closes a mounted directory to containers unless
// the mount has the option z. The engine creates a source that does not exist,
// as an empty directory.
func TestMounts(t *testing.T) {
	// A path is relative to the file's directory, or that of the first option -f.
	for file, base := range map[string]string{"compose.yaml": "..", "cluster.yaml": "../..", "monitoring.yaml": "../.."} {
		text, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		var project struct {
			Services map[string]struct{ Volumes []string }
		}
		if err := yaml.Unmarshal(text, &project); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		mounts := 0
		for name, service := range project.Services {
			for _, volume := range service.Volumes {
				if !strings.HasPrefix(volume, ".") {
					continue
				}
				mounts++
				source, _, _ := strings.Cut(volume, ":")
				if _, err := os.Stat(filepath.Join(base, source)); err != nil && source != ".." {
					t.Errorf("%s: %s: mount %s: %v", file, name, volume, err)
				}
				if options := volume[strings.LastIndex(volume, ":")+1:]; !slices.Contains(strings.Split(options, ","), "z") {
					t.Errorf("%s: %s: mount %s must have the option z", file, name, volume)
				}
			}
		}
		if mounts == 0 {
			t.Errorf("%s: no mounts", file)
		}
	}
}

// inspected is the part of the output of `docker inspect` that the tests need.
type inspected struct {
	Name   string
	Config struct {
		User        string
		Env         []string
		Healthcheck *struct{ Test []string }
		Labels      map[string]string
	}
	State struct {
		Health *struct{ Status string }
	}
	HostConfig struct {
		ReadonlyRootfs bool
		Privileged     bool
		CapAdd         []string
		CapDrop        []string
		SecurityOpt    []string
		Memory         int64
		NanoCpus       int64
		CPUShares      int64 `json:"CpuShares"`
		PidsLimit      *int64
		NetworkMode    string
		PidMode        string
		IpcMode        string
		UTSMode        string
		UsernsMode     string
		Tmpfs          map[string]string
		RestartPolicy  struct {
			Name              string
			MaximumRetryCount int
		}
		LogConfig struct {
			Type   string
			Config map[string]string
		}
		PortBindings map[string][]struct {
			HostIP   string `json:"HostIp"`
			HostPort string
		}
	}
	Mounts []struct {
		Type, Source, Destination string
		RW                        bool
	}
}

// hardened checks every running container, and that all are there.
func (s *stack) hardened() {
	s.t.Helper()
	ids := strings.Fields(s.docker(s.compose("ps", "-q")...))
	var containers []inspected
	if err := json.Unmarshal([]byte(s.docker(append([]string{"inspect"}, ids...)...)), &containers); err != nil {
		s.t.Fatal(err)
	}
	var services []string
	for _, c := range containers {
		service := c.Config.Labels["com.docker.compose.service"]
		services = append(services, service)
		h := c.HostConfig
		for what, wrong := range map[string]bool{
			"runs as root":                        c.Config.User == "" || strings.HasPrefix(c.Config.User, "0") || strings.HasPrefix(c.Config.User, "root"),
			"can write to its root":               !h.ReadonlyRootfs,
			"is privileged":                       h.Privileged,
			"has capabilities":                    !slices.Equal(h.CapDrop, []string{"ALL"}) || len(h.CapAdd) != 0,
			"may gain privileges":                 !slices.Contains(h.SecurityOpt, "no-new-privileges:true"),
			"has no memory limit":                 h.Memory <= 0,
			"has no CPU limit":                    h.NanoCpus <= 0 || h.CPUShares <= 0,
			"has no limit of processes":           h.PidsLimit == nil || *h.PidsLimit <= 0,
			"shares a namespace with the host":    slices.Contains([]string{h.NetworkMode, h.PidMode, h.IpcMode, h.UTSMode, h.UsernsMode}, "host"),
			"restarts without limit":              h.RestartPolicy.Name != "on-failure" || h.RestartPolicy.MaximumRetryCount != 5,
			"has a log without end":               h.LogConfig.Type != "json-file" || h.LogConfig.Config["max-size"] == "" || h.LogConfig.Config["max-file"] == "",
			"has a tmpfs without a size":          slices.ContainsFunc(slices.Collect(maps.Values(h.Tmpfs)), func(options string) bool { return !strings.Contains(options, "size=") }),
			"has a proxy of the Docker client":    slices.ContainsFunc(c.Config.Env, isProxy),
			"has no health check":                 c.Config.Healthcheck == nil || len(c.Config.Healthcheck.Test) == 0,
			"is not healthy":                      c.State.Health == nil || c.State.Health.Status != "healthy",
			"has a password in its environment":   slices.ContainsFunc(c.Config.Env, isPassword),
			"publishes another port than its own": !slices.Equal(published(c), map[string][]string{"ms1": {"8080"}, "mariadb": {"3306"}, "jaeger": {"16686"}}[service]),
		} {
			if wrong {
				s.t.Errorf("%s %s", service, what)
			}
		}
		for port, bindings := range h.PortBindings {
			for _, b := range bindings {
				if b.HostIP != "127.0.0.1" {
					s.t.Errorf("%s publishes %s on %q, want 127.0.0.1", service, port, b.HostIP)
				}
			}
		}
		for _, m := range c.Mounts {
			if strings.Contains(m.Source, "docker.sock") || m.Type == "bind" && m.RW {
				s.t.Errorf("%s has %s of the host at %s, and may write to it", service, m.Source, m.Destination)
			}
			if m.Type == "volume" && !slices.Contains([]string{"/var/lib/mysql", "/var/lib/kafka/data", "/var/log/tricycle", "/run/secrets"}, m.Destination) {
				s.t.Errorf("%s has a volume without a name at %s", service, m.Destination)
			}
		}
	}
	slices.Sort(services)
	if want := []string{"jaeger", "kafka", "mariadb", "ms1", "ms2", "ms3"}; !slices.Equal(services, want) {
		s.t.Errorf("running: %v, want %v", services, want)
	}
}

// separated checks that a container reaches its own servers and no others, by
// their addresses in any network.
func (s *stack) separated() {
	s.t.Helper()
	own := map[string]string{"ms1": "ms2 ms3 mariadb jaeger", "ms2": "ms1 ms3 kafka jaeger", "ms3": "ms1 ms2 kafka jaeger", "mariadb": "ms1", "kafka": "ms2 ms3", "jaeger": "ms1 ms2 ms3"}
	ports := map[string]string{"ms1": "8080", "ms2": "8081", "ms3": "8082", "mariadb": "3306", "kafka": "9092", "jaeger": "4318"}
	var probe strings.Builder // prints the servers that answer
	for server, port := range ports {
		for _, address := range strings.Fields(s.docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", s.container(server))) {
			fmt.Fprintf(&probe, "(timeout 2 bash -c ': </dev/tcp/%s/%s' 2>/dev/null && echo %s) & ", address, port, server)
		}
	}
	probe.WriteString("wait")
	image := strings.TrimSpace(s.docker("inspect", "-f", "{{.Config.Image}}", s.container("mariadb")))
	for client, servers := range own {
		// A program in the client's network; its image has no shell.
		found := strings.Fields(s.docker("run", "--rm", "--network", "container:"+s.container(client), "--entrypoint", "bash", image, "-c", probe.String()))
		slices.Sort(found)
		want := strings.Fields(servers + " " + client)
		slices.Sort(want)
		if found = slices.Compact(found); !slices.Equal(found, want) {
			s.t.Errorf("%s reaches %v, want %v", client, found, want)
		}
	}
}

func isPassword(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return strings.HasSuffix(name, "PASSWORD")
}

// isProxy reports whether a variable has a value of the client's configuration
// and not one of compose.yaml, which are empty or, for no_proxy, "*".
func isProxy(variable string) bool {
	name, value, _ := strings.Cut(variable, "=")
	return strings.HasSuffix(strings.ToLower(name), "_proxy") && value != "" && value != "*"
}

// published lists the container's ports that are published.
func published(c inspected) (ports []string) {
	for port := range c.HostConfig.PortBindings {
		ports = append(ports, strings.TrimSuffix(port, "/tcp"))
	}
	return ports
}

package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
	"github.com/tricycle-relay/tricycle/services/ms2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shipped = "../../../../compose/config/"

func TestShippedConfiguration(t *testing.T) {
	var named ms2.Config // no defaults: what the file does not name stays zero
	if err := config.Read(&named, shipped+"ms2.yaml"); err != nil {
		t.Fatal(err)
	}
	for _, key := range zero(reflect.ValueOf(named), "") {
		t.Errorf("ms2.yaml does not name %s", key)
	}
	if err := config.Check(&named); err != nil {
		t.Error(err)
	}
	loopback := ms2.Defaults()
	if err := config.Load(&loopback, shipped+"ms2.yaml", shipped+"loopback/ms2.yaml"); err != nil {
		t.Fatal(err)
	}
	if loopback.Listen != "127.0.0.1:8081" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms2.log" {
		t.Errorf("found %+v", loopback)
	}
}

// zero returns the keys of a configuration that have no value.
func zero(v reflect.Value, prefix string) (keys []string) {
	for i := range v.NumField() {
		key := prefix + v.Type().Field(i).Tag.Get("yaml")
		switch f := v.Field(i); {
		case f.Kind() == reflect.Struct:
			keys = append(keys, zero(f, key+".")...)
		case f.IsZero():
			keys = append(keys, key)
		}
	}
	return keys
}

// console is what a program writes, readable while it runs.
type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

func TestCommand(t *testing.T) {
	k := topictest.Config(t)
	collector, _ := topictest.Collector(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "ms2.yaml")
	text := "listen: 127.0.0.1:0\nkafka:\n  brokers: [\"" + k.Brokers[0] + "\"]\n  topic: " + k.Topic + "\n  dead_letter_topic: " + k.DeadLetterTopic +
		"\ntracing:\n  endpoint: " + collector + "\nlogging:\n  file: " + filepath.Join(dir, "log", "ms2.log") + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs console
	done := make(chan int, 1)
	go func() { done <- program.Main(ctx, command(), []string{"-config", file}, &out, &errs) }()

	address := ""
	topictest.Eventually(t, 20*time.Second, "it says where it listens", func() bool {
		if found := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(out.String()); found != nil {
			address = found[1]
		}
		return address != ""
	})
	if !strings.Contains(out.String(), k.Brokers[0]) {
		t.Errorf("found %s, expected the brokers in it", out.String())
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	topictest.Eventually(t, 20*time.Second, "ready", func() bool {
		resp, err := client.Get("http://" + address + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	check := command()
	check.Config.Listen = address
	if status := program.Main(t.Context(), check, []string{"-healthcheck"}, &out, &errs); status != 0 {
		t.Errorf("the health check found %d: %s", status, errs.String())
	}
	// A second one cannot have the same address.
	check.Config.Tracing.Endpoint = collector
	if status := program.Main(t.Context(), check, nil, &out, &errs); status != 1 || !strings.Contains(errs.String(), "listening for MS1") {
		t.Errorf("found %d: %s", status, errs.String())
	}
	cancel()
	if status := <-done; status != 0 {
		t.Errorf("found exit status %d: %s", status, errs.String())
	}
	if log, err := os.ReadFile(filepath.Join(dir, "log", "ms2.log")); err != nil || !bytes.Contains(log, []byte(`"message":"ms2 has stopped"`)) {
		t.Errorf("found log %s, %v", log, err)
	}
}

func TestCommandReportsWhatItCannotUse(t *testing.T) {
	folder := t.TempDir()
	for name, c := range map[string]struct {
		change func(*ms2.Config)
		want   string
	}{
		"log file":      {func(c *ms2.Config) { c.Logging.File = folder }, "logging.file"},
		"configuration": {func(c *ms2.Config) { c.Listen = "x" }, "listen: found"},
	} {
		p := command()
		p.Config.Listen = "127.0.0.1:0"
		c.change(&p.Config)
		var out, errs console
		if status := program.Main(t.Context(), p, nil, &out, &errs); status != 1 || !strings.Contains(errs.String(), c.want) {
			t.Errorf("%s: found %d: %s", name, status, errs.String())
		}
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "zipkin")
	var out, errs console
	if status := program.Main(t.Context(), command(), nil, &out, &errs); status != 1 || !strings.Contains(errs.String(), "OTEL_TRACES_EXPORTER") {
		t.Errorf("found %d: %s", status, errs.String())
	}
}

package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"
	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
	"github.com/tricycle-relay/tricycle/services/ms3"
)

// childVariable makes this binary the program itself, so that a test can kill
// it.
const childVariable = "TRICYCLE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const shipped = "../../../../compose/config/"

func TestShippedConfiguration(t *testing.T) {
	var named ms3.Config // no defaults: what the file does not name stays zero
	if err := config.Read(&named, shipped+"ms3.yaml"); err != nil {
		t.Fatal(err)
	}
	for _, key := range zero(reflect.ValueOf(named), "") {
		t.Errorf("ms3.yaml does not name %s", key)
	}
	if err := config.Check(&named); err != nil {
		t.Error(err)
	}
	loopback := ms3.Defaults()
	if err := config.Load(&loopback, shipped+"ms3.yaml", shipped+"loopback/ms3.yaml"); err != nil {
		t.Fatal(err)
	}
	if loopback.Listen != "127.0.0.1:8082" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms3.log" {
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
	file := filepath.Join(dir, "ms3.yaml")
	text := "listen: 127.0.0.1:0\ngroup_id: group." + k.Topic + "\nkafka:\n  brokers: [\"" + k.Brokers[0] + "\"]\n  topic: " + k.Topic + "\n  dead_letter_topic: " + k.DeadLetterTopic +
		"\ntracing:\n  endpoint: " + collector + "\nlogging:\n  file: " + filepath.Join(dir, "log", "ms3.log") + "\n"
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
		resp, err := client.Get("http://" + address + "/readyz?exclude=ms1")
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
	if status := program.Main(t.Context(), check, nil, &out, &errs); status != 1 || !strings.Contains(errs.String(), "listening for health checks") {
		t.Errorf("found %d: %s", status, errs.String())
	}
	cancel()
	if status := <-done; status != 0 {
		t.Errorf("found exit status %d: %s", status, errs.String())
	}
	if log, err := os.ReadFile(filepath.Join(dir, "log", "ms3.log")); err != nil || !bytes.Contains(log, []byte(`"message":"ms3 has stopped"`)) {
		t.Errorf("found log %s, %v", log, err)
	}
}

func TestCommandReportsWhatItCannotUse(t *testing.T) {
	folder := t.TempDir()
	for name, c := range map[string]struct {
		change func(*ms3.Config)
		want   string
	}{
		"log file":      {func(c *ms3.Config) { c.Logging.File = folder }, "logging.file"},
		"configuration": {func(c *ms3.Config) { c.Listen = "x" }, "listen: found"},
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

// killed -9 after MS1 has stored a message and before its offset is committed,
// MS3 posts it again, and nothing is lost.
func TestKillBetweenPostAndCommit(t *testing.T) {
	k := topictest.Config(t)
	link := topic.NewLink(k, "test", zerolog.Nop())
	topictest.Run(t, link)
	const n = 200
	var records []kafka.Message
	base := message.StampOf(time.Now())
	for i := range n {
		m := message.Message{SessionID: 1, Service1: base + message.Stamp(i), Service2: base + message.Stamp(i)}
		records = append(records, kafka.Message{Key: []byte(m.Key().String()), Value: m.Encode()})
	}
	for p := range 4 {
		if _, err := link.Produce(t.Context(), k.Topic, p, records[p*n/4:(p+1)*n/4]...); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	posted := map[message.Key]int{}
	kill := make(chan struct{})
	ms1 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m, err := message.Decode(body, message.AtStore)
		if err != nil {
			return // torn by the kill
		}
		mu.Lock()
		defer mu.Unlock()
		posted[m.Key()]++
		if len(posted) == n/2 {
			select {
			case <-kill:
			default:
				close(kill)
			}
		}
	}))
	defer ms1.Close()
	file := filepath.Join(t.TempDir(), "ms3.yaml")
	text := "listen: 127.0.0.1:0\nms1:\n  url: " + ms1.URL + "/store\ngroup_id: group." + k.Topic + "\nkafka:\n  brokers: [\"" + k.Brokers[0] + "\"]\n  topic: " + k.Topic +
		"\n  dead_letter_topic: " + k.DeadLetterTopic + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() *exec.Cmd {
		child := exec.Command(os.Args[0], "-config", file)
		child.Env = append(os.Environ(), childVariable+"=1")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		return child
	}
	committed := func() (sum int64) {
		resp, err := link.Client().OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: "group." + k.Topic, Topics: map[string][]int{k.Topic: {0, 1, 2, 3}}})
		if err != nil {
			return -1
		}
		for _, p := range resp.Topics[k.Topic] {
			sum += max(0, p.CommittedOffset)
		}
		return sum
	}
	first := run()
	<-kill
	_ = first.Process.Kill()
	_ = first.Wait()
	mu.Lock()
	before := len(posted)
	mu.Unlock()
	if c := committed(); c > int64(before) {
		t.Errorf("committed %d, but only %d were posted", c, before)
	}
	second := run()
	topictest.Eventually(t, 30*time.Second, "all committed", func() bool { return committed() == n })
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("the second: %v", err)
	}
	repeats := 0
	for _, times := range posted {
		repeats += times - 1
	}
	if len(posted) != n || repeats == 0 {
		t.Errorf("found %d posted, %d again, expected %d and some", len(posted), repeats, n)
	}
}

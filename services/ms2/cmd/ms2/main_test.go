package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/config"
	"github.com/tricycle-relay/tricycle/lib/program"
	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
	"github.com/tricycle-relay/tricycle/services/ms2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shipped = "../../../../compose/config/"

func TestShippedConfiguration(t *testing.T) {
	programtest.NamesEveryKey[ms2.Config](t, shipped+"ms2.yaml")
	loopback := ms2.Defaults()
	if err := config.Load(&loopback, shipped+"ms2.yaml", shipped+"loopback/ms2.yaml"); err != nil {
		t.Fatal(err)
	}
	if loopback.Listen != "127.0.0.1:8081" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms2.log" {
		t.Errorf("found %+v", loopback)
	}
}

func TestCommand(t *testing.T) {
	k := topictest.Config(t)
	p := command()
	p.Config.Listen, p.Config.Kafka = "127.0.0.1:0", k
	p.Config.Tracing.Endpoint, _ = topictest.Collector(t)
	p.Config.Logging.File = filepath.Join(t.TempDir(), "log", "ms2.log")
	c := programtest.Start(t, p)
	address := c.Address()
	topictest.Eventually(t, 20*time.Second, "the log names the brokers", func() bool { return strings.Contains(c.Out.String(), k.Brokers[0]) })
	p.Config.Listen = address
	var out, errs programtest.Console
	topictest.Eventually(t, 20*time.Second, "the health check finds it ready", func() bool {
		return program.Main(t.Context(), p, []string{"-healthcheck"}, &out, &errs) == 0
	})
	http.DefaultClient.CloseIdleConnections()
	second := programtest.Start(t, p)
	if status := second.Wait(); status != 1 || !strings.Contains(second.Err.String(), "listening for MS1") {
		t.Errorf("a second one at the same address: %d: %s", status, second.Err.String())
	}
	if status := c.Stop(); status != 0 {
		t.Errorf("found exit status %d: %s", status, c.Err.String())
	}
	if log, err := os.ReadFile(p.Config.Logging.File); err != nil || !strings.Contains(string(log), `"message":"ms2 has stopped"`) {
		t.Errorf("found log %s, %v", log, err)
	}
}

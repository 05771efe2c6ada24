package ms2

import (
	"testing"

	"github.com/tricycle-relay/tricycle/lib/program/programtest"
	"github.com/tricycle-relay/tricycle/lib/telemetry/telemetrytest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestEveryKeyHasAVariable(t *testing.T) { programtest.Variables(t, Program()) }

func TestShippedConfiguration(t *testing.T) {
	loopback := programtest.Shipped(t, "../../compose/config/", Program())
	if loopback.Listen != "127.0.0.1:8081" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms2.log" {
		t.Errorf("got %+v", loopback)
	}
}

func TestProgram(t *testing.T) {
	t.Parallel()
	p := Program()
	p.Config.Kafka = topictest.Config(t)
	p.Config.Tracing.Endpoint, _ = telemetrytest.Collector(t)
	programtest.Life(t, p, p.Config.Kafka.Brokers[0], "listen for MS1")
}

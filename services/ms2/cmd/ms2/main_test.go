package main

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shipped = "../../../../compose/config/"

func TestEveryKeyHasAVariable(t *testing.T) { servicetest.Variables(t, command()) }

func TestShippedConfiguration(t *testing.T) {
	loopback := servicetest.Shipped(t, shipped, command())
	if loopback.Listen != "127.0.0.1:8081" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms2.log" {
		t.Errorf("got %+v", loopback)
	}
}

func TestCommand(t *testing.T) {
	p := command()
	p.Config.Kafka = topictest.Config(t)
	p.Config.Tracing.Endpoint, _ = servicetest.Collector(t)
	servicetest.Life(t, p, p.Config.Kafka.Brokers[0], "listen for MS1")
}

package ms3

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestEveryKeyHasAVariable(t *testing.T) { servicetest.Variables(t, Program()) }

func TestShippedConfiguration(t *testing.T) {
	loopback := servicetest.Shipped(t, "../../compose/config/", Program())
	if loopback.Listen != "127.0.0.1:8082" || loopback.Kafka.Brokers[0] != "127.0.0.1:9092" || loopback.Logging.File != "./tricycle-data/ms3.log" {
		t.Errorf("got %+v", loopback)
	}
}

func TestProgram(t *testing.T) {
	t.Parallel()
	p := Program()
	p.Config.Kafka = topictest.Config(t)
	p.Config.GroupID = "group." + p.Config.Kafka.Topic
	p.Config.Tracing.Endpoint, _ = servicetest.Collector(t)
	servicetest.Life(t, p, p.Config.Kafka.Brokers[0], "listen for health checks")
}

// killed -9 after MS1 has stored a message and before its offset is committed,
// MS3 posts it again, and nothing is lost.
func TestKillBetweenPostAndCommit(t *testing.T) {
	t.Parallel()
	k := topictest.Config(t)
	cluster := topic.NewCluster(k, "test", zerolog.Nop())
	topictest.Run(t, cluster)
	const n = 200
	var records []kafka.Message
	base := message.StampOf(time.Now())
	for i := range n {
		m := message.Message{SessionID: 1, Service1: base + message.Stamp(i), Service2: base + message.Stamp(i)}
		records = append(records, kafka.Message{Key: []byte(m.Key().String()), Value: m.Encode()})
	}
	for p := range 4 {
		if _, err := cluster.Produce(t.Context(), k.Topic, p, records[p*n/4:(p+1)*n/4]...); err != nil {
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
		httpserver.JSON(w, http.StatusOK, map[string]string{"outcome": "stored"})
	}))
	defer ms1.Close()
	file := filepath.Join(t.TempDir(), "ms3.yaml")
	text := "listen: 127.0.0.1:0\nms1:\n  url: " + ms1.URL + "/store\n  batch_messages: 1\ngroup_id: group." + k.Topic + "\nkafka:\n  brokers: [\"" + k.Brokers[0] + "\"]\n  topic: " + k.Topic +
		"\n  dead_letter_topic: " + k.DeadLetterTopic + "\n"
	servicetest.File(t, file, text)
	run := func() *exec.Cmd {
		child := exec.Command(os.Args[0], "-config", file)
		child.Env = append(os.Environ(), childVariable+"=1")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		return child
	}
	committed := func() (sum int64) {
		resp, err := cluster.Client().OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: "group." + k.Topic, Topics: map[string][]int{k.Topic: {0, 1, 2, 3}}})
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
	topictest.RemoveMembers(t, cluster, "group."+k.Topic) // else the group waits until the session of the killed one times out
	second := run()
	servicetest.Eventually(t, 30*time.Second, "all committed", func() bool { return committed() == n })
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
		t.Errorf("got %d posted, %d again, want %d and some", len(posted), repeats, n)
	}
}

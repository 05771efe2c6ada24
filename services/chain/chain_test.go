package chain

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tricycle-relay/tricycle/lib/servertest"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/topic/topictest"
)

func TestRounds(t *testing.T) {
	c := newChain(t)
	c.up()
	for _, inFlight := range []int{1, 64} {
		if s := c.round(3, inFlight); s.EndReason != "interval elapsed" {
			t.Errorf("in flight %d: ended because %q", inFlight, s.EndReason)
		}
	}

	c.load(600, 64)
	c.get("/start", http.StatusConflict, nil)
	if s := c.stop(); s.EndReason != "stopped" {
		t.Errorf("ended because %q", s.EndReason)
	}
	if lines := servicetest.Text(t, c.dir+"/ms1.log"); !strings.Contains(lines, `"message":"GET /start?interval=600&in_flight=64"`) {
		t.Error("the request to /start is not in the log file")
	}
}

func TestMS2KilledAndRestarted(t *testing.T) {
	c := newChain(t)
	c.patient()
	c.up()
	var outage time.Duration
	pause := c.survives(32, func() {
		began := time.Now()
		c.running["ms2"].Signal(syscall.SIGKILL)
		time.Sleep(2 * time.Second)
		c.start("ms2")
		c.ready("ms2")
		outage = time.Since(began)
	})
	atMost(t, pause, outage, 15*time.Second)
}

// MS3 dies when MS1 has committed and before it can know, so its offset is not
// committed and the record comes again.
func TestMS3KilledBetweenPostAndCommit(t *testing.T) {
	c := newChain(t)
	killed := make(chan struct{})
	var stored atomic.Int64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: c.address["ms1"]})
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.Request.Method == http.MethodPost && resp.StatusCode == http.StatusOK && stored.Add(1) == 100 {
				c.running["ms3"].Signal(syscall.SIGKILL)
				close(killed)
			}
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0), // of requests that the kill cut off
	}
	server := httptest.NewServer(proxy)
	defer server.Close()
	c.overlays["ms3"]["ms1"] = settings{"url": server.URL + "/store"}
	c.up()
	c.load(5, 16)
	<-killed
	time.AfterFunc(2*time.Second, func() { c.start("ms3") })
	s := c.end()
	c.noneLost(s)
	if s.Duplicates == 0 {
		t.Errorf("%+v: want the records that were posted and not committed to come again", s)
	}
}

func TestMS1KilledAndRestarted(t *testing.T) {
	c := newChain(t)
	c.up()
	id := c.load(600, 64)
	c.running["ms1"].Signal(syscall.SIGKILL)
	c.start("ms1")
	c.ready("ms1")
	var s session
	servicetest.Eventually(t, 20*time.Second, "the session is closed as interrupted", func() bool {
		s = c.status().Session
		return s.ID == id && s.EndReason == "interrupted"
	})

	// The records in the topic were sent, and return late.
	sent := map[string]bool{}
	for _, record := range topictest.Read(t, c.kafka, c.kafka.Topic, c.records(c.kafka.Topic)) {
		sent[string(record.Key)] = true
	}
	var rows int64
	servicetest.Eventually(t, 30*time.Second, "every record of the topic has a row", func() bool {
		rows = c.number("SELECT COUNT(*) FROM messages")
		return rows >= int64(len(sent))
	})
	if rows != int64(len(sent)) {
		t.Errorf("%d rows of %d messages sent", rows, len(sent))
	}
	if stored := c.number("SELECT stored FROM sessions WHERE id = ? AND generated IS NULL", id); stored != rows {
		t.Errorf("the session has %d stored, want its %d rows", stored, rows)
	}

	c.round(2, 1)
}

// records returns how many records a topic holds.
func (c *chain) records(topic string) (n int) {
	c.t.Helper()
	var requests []kafka.OffsetRequest
	for p := range c.kafka.Partitions {
		requests = append(requests, kafka.LastOffsetOf(p))
	}
	offsets, err := c.admin().ListOffsets(c.t.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: requests}})
	servicetest.NoError(c.t, err)
	for _, p := range offsets.Topics[topic] {
		n += int(p.LastOffset)
	}
	return n
}

func TestTermInTheMiddle(t *testing.T) {
	for _, name := range services {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			c.up()
			id := c.load(5, 64)
			p := c.running[name]
			began := time.Now()
			p.Signal(syscall.SIGTERM)
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("stopping took %s", took)
			}
			if code := p.Status(); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			if name == "ms1" {
				var s session
				err := c.db.DB.QueryRow("SELECT id, generated, stored, resent, duplicates, lost, end_reason FROM sessions WHERE id = ?", id).
					Scan(&s.ID, &s.Generated, &s.Stored, &s.Resent, &s.Duplicates, &s.Lost, &s.EndReason)
				servicetest.NoError(t, err)
				c.check(s)
				c.noneLost(s)
				if s.EndReason != "shutdown" {
					t.Errorf("ended because %q", s.EndReason)
				}
				return
			}
			c.start(name)
			c.noneLost(c.end())
		})
	}
}

func TestOneMS1PerDatabase(t *testing.T) {
	c := newChain(t)
	c.up()
	first := c.running["ms1"]
	c.overlays["ms1"]["listen"] = "127.0.0.1:0"
	second := c.start("ms1")
	code := second.Status()
	c.running["ms1"] = first
	if code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
	if out := second.Out.String(); strings.Count(out, "\nms1: ") != 1 || !strings.Contains(out, c.db.Name) {
		t.Errorf("want one line that names the database:\n%s", out)
	}
	c.round(2, 1)
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	c := newChain(t)
	nobody := servertest.FreeAddress(t)
	wrong := c.dir + "/wrong"
	servicetest.File(t, wrong, "not the password\n")
	c.overlays["ms1"]["database"].(settings)["password_file"] = wrong
	c.overlays["ms2"]["kafka"] = settings{"brokers": []string{nobody}}
	c.overlays["ms3"]["kafka"] = settings{"brokers": []string{nobody}}
	for _, name := range services {
		c.start(name)
	}
	for name, want := range map[string]string{"ms1": "Access denied", "ms2": nobody, "ms3": nobody} {
		servicetest.Eventually(t, 20*time.Second, name+" is not ready and logs why", func() bool {
			code, body := c.at(name).Get("/readyz")
			if strings.Contains(body, want) {
				t.Fatalf("/readyz of %s shows everybody the cause: %s", name, body)
			}
			return code == http.StatusServiceUnavailable && strings.Contains(body, "not ready") && c.running[name].Out.Has(want)
		})
	}
	var problem struct {
		Missing map[string]string `json:"missing"`
	}
	c.get("/start", http.StatusServiceUnavailable, &problem)
	if problem.Missing["database"] != "not ready" || problem.Missing["ms2"] != "not ready" {
		t.Errorf("missing %v", problem.Missing)
	}
}

package chain

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1/mariadb/mariadbtest"
)

// jaeger is the query API of a Jaeger: TRICYCLE_TEST_JAEGER is its base URL,
// TRICYCLE_TEST_OTLP that of its OTLP/HTTP receiver.
type jaeger struct{ query, otlp string }

func newJaeger(t *testing.T) jaeger {
	t.Helper()
	j := jaeger{os.Getenv("TRICYCLE_TEST_JAEGER"), os.Getenv("TRICYCLE_TEST_OTLP")}
	if j.query == "" || j.otlp == "" {
		t.Skip("TRICYCLE_TEST_JAEGER and TRICYCLE_TEST_OTLP are not set: needs a Jaeger")
	}
	return j
}

// span is a span in an answer of the query API.
type span struct {
	ID         string `json:"spanID"`
	Name       string `json:"operationName"`
	References []struct {
		Type    string `json:"refType"`
		TraceID string `json:"traceID"`
		ID      string `json:"spanID"`
	} `json:"references"`
	Process string `json:"processID"`
	Tags    []struct {
		Key   string `json:"key"`
		Value any    `json:"value"`
	} `json:"tags"`
	service string
}

func (s span) tag(key string) string {
	for _, t := range s.Tags {
		if t.Key == key {
			return fmt.Sprint(t.Value)
		}
	}
	return ""
}

func (s span) parent() string {
	if len(s.References) == 0 {
		return ""
	}
	return s.References[0].ID
}

// trace returns the spans of a trace, none if Jaeger does not know it.
func (j jaeger) trace(id string) ([]span, error) {
	resp, err := http.Get(j.query + "/api/traces/" + id)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, nil
	}
	var answer struct {
		Data []struct {
			Spans     []span `json:"spans"`
			Processes map[string]struct {
				ServiceName string `json:"serviceName"`
			} `json:"processes"`
		} `json:"data"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if len(answer.Data) != 1 {
		return nil, fmt.Errorf("%d traces have the id %s", len(answer.Data), id)
	}
	spans := answer.Data[0].Spans
	for i := range spans {
		spans[i].service = answer.Data[0].Processes[spans[i].Process].ServiceName
	}
	return spans, nil
}

// spansOf adds up a counter of spans over the three services.
func (c *chain) spansOf(counter string) (n int) {
	c.t.Helper()
	for name := range c.address {
		n += int(c.at(name).Metric(counter))
	}
	return n
}

func TestTraces(t *testing.T) {
	j := newJaeger(t)
	c := newChain(t)
	for _, o := range c.overlays {
		o["tracing"] = settings{"endpoint": j.otlp}
	}
	// The spans of requests with several messages are in traces of their own.
	c.overlays["ms3"]["ms1"].(settings)["batch_messages"] = 1
	c.up()

	t.Run("each row of a lock-step session has one trace of five spans", func(t *testing.T) {
		defer func(outer *testing.T) { c.t = outer }(c.t)
		c.t = t
		s := c.round(10, 1)
		c.settled(1, s)
		rows, err := c.db.DB.Query(`SELECT session_id, DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ'),
			LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/', DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 48)
			FROM messages WHERE session_id = ? ORDER BY RAND() LIMIT 100`, s.ID)
		servicetest.NoError(t, err)
		defer rows.Close()
		checked := 0
		for ; rows.Next(); checked++ {
			var key message.Key
			var stamp, ids string
			servicetest.NoError(t, rows.Scan(&key.SessionID, &stamp, &ids))
			at, err := time.Parse(message.Layout, stamp)
			servicetest.NoError(t, err)
			key.Service1 = message.StampOf(at)
			checkRound(t, key, ids[32:], j.whole(t, ids[:32])) // of the root span and the trace
		}
		servicetest.NoError(t, rows.Err())
		if checked != 100 {
			t.Errorf("%d rows were checked, want 100", checked)
		}
	})

	t.Run("with 64 in flight every span is found or counted as dropped", func(t *testing.T) {
		defer func(outer *testing.T) { c.t = outer }(c.t)
		c.t = t
		exported, dropped := c.spansOf("tricycle_spans_exported_total"), c.spansOf("tricycle_spans_dropped_total")
		s := c.round(10, 64)
		c.settled(2, s)
		exported, dropped = c.spansOf("tricycle_spans_exported_total")-exported, c.spansOf("tricycle_spans_dropped_total")-dropped
		ids := append(mariadbtest.Column(t, c.db.DB, `SELECT LEFT(SHA2(CONCAT('tricycle/1/', session_id, '/', DATE_FORMAT(service1_timestamp, '%Y-%m-%dT%H:%i:%s.%fZ')), 256), 32)
			FROM messages WHERE session_id = ?`, s.ID), c.startTrace(s.ID))
		found := 0
		for deadline := time.Now().Add(30 * time.Second); found < exported && time.Now().Before(deadline); {
			found = j.count(t, ids) // Jaeger takes spans before it can find them
		}
		t.Logf("%d messages, %d spans ended: %d found in Jaeger, %d counted as dropped", s.Generated, exported+dropped, found, dropped)
		if found != exported {
			t.Errorf("got %d spans in Jaeger, want %d, the exported ones", found, exported)
		}
	})
}

// whole returns the spans of a trace that should have five. Jaeger takes spans
// before it can find them, so it is asked for some time.
func (j jaeger) whole(t *testing.T, id string) (spans []span) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var err error
		if spans, err = j.trace(id); err != nil {
			t.Fatal(err)
		}
		if len(spans) >= 5 || time.Now().After(deadline) {
			return spans
		}
	}
}

// count returns how many spans the traces have together.
func (j jaeger) count(t *testing.T, ids []string) (n int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan string)
	for range 4 {
		wg.Go(func() {
			for id := range next {
				spans, err := j.trace(id)
				mu.Lock()
				n += len(spans)
				if err != nil {
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		next <- id
	}
	close(next)
	wg.Wait()
	return n
}

// settled waits until every span of the sessions so far has been exported or
// dropped: five for each message, one for each /start, and what a resend adds.
func (c *chain) settled(sessions int, last session) {
	c.t.Helper()
	if last.Resent != 0 || last.Duplicates != 0 {
		c.t.Fatalf("%+v: the number of spans is only known without resends", last)
	}
	messages := c.number("SELECT SUM(generated) FROM sessions")
	servicetest.Eventually(c.t, 30*time.Second, "every span was exported or dropped", func() bool {
		return c.spansOf("tricycle_spans_exported_total")+c.spansOf("tricycle_spans_dropped_total") == 5*int(messages)+sessions
	})
}

// startTrace returns the trace id of the request that began the session, as
// the log file has it.
func (c *chain) startTrace(id int64) string {
	c.t.Helper()
	lines := bufio.NewScanner(strings.NewReader(servicetest.Text(c.t, c.dir+"/ms1.log")))
	last := ""
	for lines.Scan() {
		var line struct {
			Message   string `json:"message"`
			TraceID   string `json:"trace_id"`
			SessionID int64  `json:"session_id"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			c.t.Fatalf("a line of the log is no JSON: %v: %s", err, lines.Text())
		}
		if strings.HasPrefix(line.Message, "GET /start") {
			last = line.TraceID
		}
		if line.SessionID == id {
			return last
		}
	}
	c.t.Fatalf("session %d is not in the log", id)
	return ""
}

// checkRound checks the five spans of a message: who made them, and that each
// is the child of the one before it.
func checkRound(t *testing.T, key message.Key, root string, spans []span) {
	t.Helper()
	byID := map[string]span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	// Ordered by depth, which is the order of the round.
	depth := func(s span) (n int) {
		for ; s.parent() != "" && n < 10; n++ {
			s = byID[s.parent()]
		}
		return n
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(depth(a), depth(b)) })
	var round []string
	for i, s := range spans {
		round = append(round, s.service+" "+s.Name+" "+s.tag("span.kind"))
		if i > 0 && s.parent() != spans[i-1].ID {
			t.Errorf("%s: the parent of %q is %q, want %q", key, s.Name, s.parent(), spans[i-1].ID)
		}
	}
	want := []string{"ms1 round producer", "ms2 receive consumer", "ms3 process consumer", "ms1 POST /store server", "ms1 INSERT messages client"}
	if len(spans) != 5 || !roundMatches(round, want) || spans[0].ID != root || spans[0].parent() != "" {
		t.Errorf("%s: spans\n%s\nwant, from the root %s\n%s", key, strings.Join(round, "\n"), root, strings.Join(want, "\n"))
	}
}

// roundMatches compares service and kind, and the name as far as it does not
// hold the name of the test's own topic.
func roundMatches(got, want []string) bool {
	return slices.EqualFunc(got, want, func(g, w string) bool {
		gs, ws := strings.Fields(g), strings.Fields(w)
		return gs[0] == ws[0] && gs[1] == ws[1] && gs[len(gs)-1] == ws[len(ws)-1]
	})
}

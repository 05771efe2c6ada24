package ms1

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/docs/openapitest"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// past adds a session of another process with n messages, each slower than the
// one before.
func (a *api) past(n int) (id int64, all []message.Message) {
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	id = int64(len(a.store.sessions) + 1)
	const start = message.Stamp(1_795_601_730_123_456)
	stored, lost, reason := int64(n), int64(0), IntervalElapsed
	a.store.sessions = append(a.store.sessions, Session{ID: id, StartedAt: start, EndedAt: start + 1e6, IntervalSeconds: 1, InFlight: 1,
		Generated: &stored, Stored: &stored, Resent: &lost, Duplicates: &lost, Lost: &lost, EndReason: &reason})
	for i := range n {
		s := start + message.Stamp(i)
		m := message.Message{SessionID: id, Service1: s, Service2: s + 100, Service3: s + 90, End: s + 1100 + message.Stamp(i)}
		a.store.rows[m.Key()] = m
		all = append(all, m)
	}
	return id, all
}

func TestSessionsInPages(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/sessions", ""), 200, `{"sessions":[],"next":null}`)
	for range 3 {
		a.past(0)
	}
	a.want(a.do("GET", "/start", ""), 202, `"session_id":4`)
	a.sent(1)
	a.want(a.do("GET", "/sessions?limit=2", ""), 200, `"id":4`, `"generated":1`, `"id":3`, `"next":3`) // of the running one as well
	last := a.do("GET", "/sessions?before=3&limit=2", "")
	a.want(last, 200, `"id":2`, `"id":1`, `"next":null`)
	for _, query := range []string{"limit=0", "limit=101", "limit=2&limit=2", "before=0", "before=x", "page=1", "limit=%zz"} {
		a.want(a.do("GET", "/sessions?"+query, ""), 400)
		a.want(a.do("HEAD", "/sessions?"+query, ""), 400)
	}
	a.store.fail(errors.New("connection refused"))
	a.want(a.do("GET", "/sessions", ""), 503, "database: not ready")
	a.want(a.do("HEAD", "/sessions", ""), 503)
	a.store.fail(nil)
}

func TestMessagesInEachFormat(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id, all := a.past(2*pageRows + 5)
	path := fmt.Sprintf("/sessions/%d/messages", id)
	for _, c := range []struct {
		query, accept string
		media         string
		want          []message.Message
	}{
		{"", "", "application/json", all[:someMessages]},
		{"", "text/html, */*", "application/json", all[:someMessages]},
		{"?limit=3", "", "application/json", all[:3]},
		{"?after=" + all[2].Service1.String(), "", "application/json", all[3 : 3+someMessages]},
		{"?order=slowest&limit=2", "", "application/json", []message.Message{all[len(all)-1], all[len(all)-2]}},
		{"?format=ndjson", "", "application/x-ndjson", all},
		{"?format=csv", "application/json", "text/csv", all},
		{"", "text/html, text/csv;q=0.9", "text/csv", all},
		{"", "application/x-ndjson", "application/x-ndjson", all},
		{"?limit=7&format=ndjson", "", "application/x-ndjson", all[:7]},
		{"?order=slowest&format=csv&limit=1", "", "text/csv", all[len(all)-1:]},
		{"?format=csv&after=" + all[len(all)-1].Service1.String(), "", "text/csv", nil},
		{"?format=ndjson&after=" + all[pageRows-1].Service1.String(), "", "application/x-ndjson", all[pageRows:]},
	} {
		t.Run(c.query+" "+c.accept, func(t *testing.T) {
			got := a.do("GET", path+c.query, "", "Accept", c.accept)
			a.want(got, 200)
			if media := got.Header.Get("Content-Type"); media != c.media {
				t.Fatalf("got %s, want %s", media, c.media)
			}
			text, _, _ := strings.Cut(got.text, `,"next":`) // which JSON alone has
			if want := written(c.media, c.want); text != want {
				t.Errorf("got %d bytes, want %d:\n%.1000s\nwant\n%.1000s", len(text), len(want), text, want)
			}
		})
	}
	a.want(a.do("HEAD", path+"?format=csv", ""), 200)
	a.want(a.do("GET", path+"?limit=1", ""), 200, `"next":"`+all[0].Service1.String())
	a.want(a.do("GET", path+"?limit=1000&after="+all[len(all)-1].Service1.String(), ""), 200, `{"messages":[],"next":null}`)
	for _, query := range []string{"order=last", "format=xml", "limit=1001", "after=now", "after=2026-11-23T10:15:30,123456Z"} {
		a.want(a.do("GET", path+"?"+query, ""), 400)
		a.want(a.do("HEAD", path+"?"+query, ""), 400)
	}
	a.want(a.do("GET", "/sessions/99/messages", ""), 404)
	a.want(a.do("GET", "/sessions/x/messages", ""), 404)
	a.store.fail(errors.New("connection refused"))
	a.want(a.do("GET", path, ""), 503, "database: not ready")
}

func TestAccepted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, accept, want string
	}{
		{"none", "", asJSON},
		{"unknown", "text/html, image/*;q=0.8", asJSON},
		{"exact", "text/csv", asCSV},
		{"upper case", "Text/CSV", asCSV},
		{"any", "*/*", asJSON},
		{"any of a kind", "text/*", asCSV},
		{"any of a kind with two formats", "application/*", asJSON},
		{"the higher quality, later", "application/json;q=0.5, text/csv;q=0.9", asCSV},
		{"the higher quality, first", "text/csv;q=0.9, application/json;q=0.5", asCSV},
		{"quality 1 without a parameter", "text/csv;q=0.9, application/x-ndjson", asLines},
		{"the first of equal ones", "application/x-ndjson, application/json", asLines},
		{"the more specific of equal ones", "*/*, text/csv", asCSV},
		{"any has the higher quality", "text/csv;q=0.5, */*", asJSON},
		{"refused", "text/csv;q=0", asJSON},
		{"refused, any other", "application/json;q=0, */*", asCSV},
		{"refused with all of its kind", "text/*, text/csv;q=0.0, application/x-ndjson;q=0.1", asLines},
		{"a kind refused, one of it not", "application/*;q=0, application/x-ndjson;q=0.2, text/csv;q=0.1", asLines},
		{"all refused", "*/*;q=0", asJSON},
		{"a quality beyond 1", "text/csv;q=2, application/x-ndjson;q=0.1", asLines},
		{"a quality that is no number", "text/csv;q=NaN, application/x-ndjson;q=0.1", asLines},
		{"an invalid range", ";;, text/csv;q, application/x-ndjson;q=0.1", asLines},
		{"another parameter", "text/csv;header=present;q=0.5, application/json;q=0.4", asCSV},
		{"several headers", "application/json;q=0.5\ntext/csv;q=0.9", asCSV},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &http.Request{Header: http.Header{"Accept": strings.Split(c.accept, "\n")}}
			if got := accepted(r); got != c.want {
				t.Errorf("Accept %q: got %s, want %s", c.accept, got, c.want)
			}
		})
	}
}

// written returns messages as an answer of a media type has them.
func written(media string, all []message.Message) string {
	format := `{"session_id":%d,"service1_timestamp":"%s","service2_timestamp":"%s","service3_timestamp":"%s","end_timestamp":"%s","trace_id":"%s"}`
	begin, separator, end := `{"messages":[`, ",", "]"
	switch media {
	case "text/csv":
		format = "%d,%s,%s,%s,%s,%s\n"
		begin, separator, end = "session_id,service1_timestamp,service2_timestamp,service3_timestamp,end_timestamp,trace_id\n", "", ""
	case "application/x-ndjson":
		format += "\n"
		begin, separator, end = "", "", ""
	}
	var texts []string
	for _, m := range all {
		trace, _ := telemetry.IDs(m.Key())
		texts = append(texts, fmt.Sprintf(format, m.SessionID, m.Service1, m.Service2, m.Service3, m.End, trace))
	}
	return begin + strings.Join(texts, separator) + end
}

// An answer that breaks off must not look complete.
func TestADatabaseThatFailsDuringADownload(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id, _ := a.past(3 * pageRows)
	// That of HTTP/1.0, as some proxies ask for it, ends with the connection alone.
	for _, protocol := range []string{"HTTP/1.1", "HTTP/1.0"} {
		a.store.mu.Lock()
		a.store.pagesLeft = 2
		a.store.mu.Unlock()
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
		servicetest.NoError(t, err)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		fmt.Fprintf(conn, "GET /sessions/%d/messages?format=csv %s\r\nHost: ms1\r\n\r\n", id, protocol)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		servicetest.NoError(t, err)
		defer resp.Body.Close()
		if text, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || err == nil || len(text) == 0 {
			t.Errorf("%s: got %s, %d bytes and error %v, want 200, some and an error", protocol, resp.Status, len(text), err)
		}
	}
}

func TestHops(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	id, _ := a.past(10)
	empty, _ := a.past(0)
	path := fmt.Sprintf("/sessions/%d/hops", id)
	got := a.do("GET", path, "")
	a.want(got, 200, `"negative":10`)
	var answer struct{ Hops Distributions }
	servicetest.NoError(t, json.Unmarshal([]byte(got.text), &answer))
	round := answer.Hops.Round
	if len(round.Buckets) != 1 || round.Buckets[0].Count != 10 || round.Buckets[0].From > 0.0011 || round.Buckets[0].To < 0.001109 {
		t.Errorf("got the buckets %+v, want ten messages from 1,100 to 1,109 µs", round.Buckets)
	}
	if b := answer.Hops.ToMS3.Buckets; len(b) != 0 {
		t.Errorf("got the buckets %+v of negative times, want none", b)
	}
	a.want(a.do("GET", fmt.Sprintf("/sessions/%d/hops", empty), ""), 200, `"hops":null`)
	a.want(a.do("GET", "/sessions/99/hops", ""), 404)
	a.want(a.do("HEAD", "/sessions/99/hops", ""), 404)

	a.want(a.do("GET", "/start", ""), 202)
	a.want(a.do("GET", "/sessions/3/hops", ""), 200, `"hops":null`)
	a.want(a.do("POST", "/store", back(a.sent(1))), 200)
	a.want(a.do("GET", "/sessions/3/hops", ""), 200, `"count":1`, `"commit":{"p50_seconds":`)
	a.want(a.do("GET", path, ""), 200, `"commit":null`)

	a.store.fail(errors.New("connection refused"))
	a.want(a.do("GET", path, ""), 503)
	a.store.fail(nil)
}

func TestBuckets(t *testing.T) {
	for _, c := range []struct {
		seconds  float64
		from, to float64
	}{
		{0, 0, 1e-6}, {1.1e-6, 1e-6, 1.259e-6}, {0.0011, 0.001, 0.001258925}, {2.1, 1.995262315, 2.511886432},
	} {
		m := newHopMeter()
		m.round.add(c.seconds)
		b := m.round.distribution().Buckets
		if len(b) != 1 || b[0].Count != 1 || b[0].From != c.from || fmt.Sprintf("%.5g", b[0].To) != fmt.Sprintf("%.5g", c.to) {
			t.Errorf("%v s: got %+v, want one from %v to %v", c.seconds, b, c.from, c.to)
		}
	}
}

func TestHopsSince(t *testing.T) {
	m := newHopMeter()
	add := func(n int, micros int) {
		for range n {
			s := message.Stamp(1_795_601_730_123_456)
			m.add(message.Message{SessionID: 1, Service1: s, Service2: s - 1, Service3: s, End: s + message.Stamp(micros)}.Hops())
		}
	}
	add(1000, 100)
	earlier := m.copy()
	if got := m.since(earlier); got != nil {
		t.Errorf("got %+v, want nothing", got)
	}
	add(98, 2_000)
	add(2, 50_000)
	got := m.since(earlier).Round
	near := func(got, want float64) bool { return got > 0.98*want && got < 1.02*want }
	if !near(got.P50, 0.002) || !near(got.P95, 0.002) || !near(got.P99, 0.05) || !near(got.Max, 0.05) || got.Negative != 0 {
		t.Errorf("got %+v, want p50 2 ms, p99 50 ms", got)
	}
	if hop := m.since(earlier).ToMS2; hop.Negative != 100 || hop.P50 >= 0 {
		t.Errorf("got %+v, want 100 negative", hop)
	}
}

// listener reads /events.
type listener struct {
	t    *testing.T
	resp *http.Response
	text *bufio.Reader
}

func (a *api) listen(lastID string) *listener {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), "GET", a.url+"/events", nil)
	servicetest.NoError(a.t, err)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	servicetest.NoError(a.t, err)
	a.t.Cleanup(func() { resp.Body.Close() })
	return &listener{a.t, resp, bufio.NewReader(resp.Body)}
}

// next returns the next event and its id, and compares it with the description.
func (l *listener) next() (id string, e map[string]any) {
	l.t.Helper()
	var text string
	for !strings.HasSuffix(text, "\n\n") {
		line, err := l.text.ReadString('\n')
		if err != nil {
			l.t.Fatalf("%q: %v", text, err)
		}
		text += line
	}
	body := l.resp.Body
	l.resp.Body = io.NopCloser(strings.NewReader(text))
	openapitest.Exchange(l.t, "ms1", l.resp.Request, l.resp)
	l.resp.Body = body
	head, data, _ := strings.Cut(text, "\ndata: ")
	servicetest.NoError(l.t, json.Unmarshal([]byte(data), &e))
	if err := openapitest.Schema("ms1", "Event", e); err != nil {
		l.t.Errorf("%s: %v", data, err)
	}
	return strings.TrimPrefix(head, "id: "), e
}

func TestEvents(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(c *Config) { c.Interaction.DrainSeconds = 60 })
	l := a.listen("")
	for name, want := range map[string]string{"X-Accel-Buffering": "no", "Content-Encoding": "identity"} { // proxies must not keep events back
		if got := l.resp.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	first, e := l.next()
	if e["state"] != "idle" || e["session"] != nil || e["recent"] != nil || fmt.Sprint(e["checks"]) != "map[database:ok ms2:ok]" {
		t.Errorf("got %v, want an idle MS1", e)
	}
	a.want(a.do("GET", "/start?in_flight=2", ""), 202)
	a.want(a.do("POST", "/store", back(a.sent(2))), 200)
	for e["state"] != "running" || e["recent"] == nil {
		_, e = l.next()
	}
	if e["messages_in_flight"] != 2.0 {
		t.Errorf("got %v, want two messages in flight", e)
	}
	id, _ := l.next()

	// One that comes back misses nothing.
	l.resp.Body.Close()
	again := a.listen(first)
	missed, _ := again.next()
	for missed != id {
		if missed <= first {
			t.Fatalf("got event %s after %s", missed, first)
		}
		missed, _ = again.next()
	}
	if newest, _ := a.listen("").next(); newest < id {
		t.Errorf("got event %s, want the newest, after %s", newest, id)
	}

	for _, id := range []string{"x", "-1", "+1", "01", "9223372036854775808"} {
		a.want(a.do("GET", "/events", "", "Last-Event-ID", id), 400)
	}
	a.want(a.do("HEAD", "/events", "", "Last-Event-ID", "x"), 400)
	a.want(a.do("HEAD", "/events", ""), 200)

	// Listeners see the drain and delay no shutdown.
	stopped := make(chan error, 1)
	go func() { stopped <- a.stop() }()
	for e["state"] != "draining" {
		_, e = again.next()
	}
	for _, n := range []int{1, 3} { // in flight
		a.want(a.do("POST", "/store", back(a.sent(n))), 200)
	}
	if _, err := io.Copy(io.Discard, again.text); err != nil {
		t.Errorf("got error %v, want the end of the events", err)
	}
	servicetest.NoError(t, <-stopped)
}

func TestTooManyListeners(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var all []*listener
	for range maxListeners {
		l := a.listen("")
		l.next()
		all = append(all, l)
	}
	got := a.do("GET", "/events", "")
	a.want(got, 503, "at most 64")
	for _, l := range all {
		l.resp.Body.Close()
	}
	servicetest.Eventually(t, 10*time.Second, "a listener is accepted after the others have left", func() bool {
		return a.listen("").resp.StatusCode == http.StatusOK
	})
}

// A listener that does not read is disconnected, and the others are not delayed.
func TestASlowListenerIsDisconnected(t *testing.T) {
	e := newEvents(nil, nil)
	_, slow, _ := e.listen(-1)
	_, quick, _ := e.listen(-1)
	for i := range maxBehind + 1 {
		e.publish(Event{})
		if _, ok := <-quick; !ok {
			t.Fatalf("the quick one is disconnected after %d events", i)
		}
	}
	for range maxBehind {
		if _, ok := <-slow; !ok {
			t.Fatal("an event that was sent in time is missing")
		}
	}
	if _, ok := <-slow; ok {
		t.Error("the slow one is still connected")
	}
	e.leave(slow)
	missed, _, _ := e.listen(0)
	if len(missed) != maxBehind+1 {
		t.Errorf("got %d kept events, want %d", len(missed), maxBehind+1)
	}
	for i := 1; i < len(missed); i++ {
		if missed[i].id <= missed[i-1].id {
			t.Errorf("got id %d after %d", missed[i].id, missed[i-1].id)
		}
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	a := newAPI(t, func(c *Config) {
		c.Interaction.IntervalSeconds, c.Interaction.InFlight, c.Tracing.UIURL = 7, 65, `http://jaeger.example/"ui"`
	})
	a.want(a.do("GET", "/", ""), 200, "<!doctype html>", `<meta name="traces" content="http://jaeger.example/&#34;ui&#34;">`, `value="7"`, `value="65"`)
	a.want(a.do("HEAD", "/", ""), 200)
	files, err := pageFiles.ReadDir("page")
	servicetest.NoError(t, err)
	size, lines := 0, 0
	for _, f := range files {
		got := a.do("GET", "/page/"+f.Name(), "")
		a.want(got, 200)
		size += len(got.text)
		lines += strings.Count(got.text, "\n")
	}
	if size > 60<<10 || lines > 1200 {
		t.Errorf("got %d bytes in %d lines, want at most 60 KiB in 1,200", size, lines)
	}
	for _, path := range []string{"/page/other.js", "/page/..%2fapi.go"} {
		a.want(a.do("GET", path, ""), 404)
		a.want(a.do("HEAD", path, ""), 404)
	}
}

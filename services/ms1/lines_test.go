package ms1

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
)

// A line of x-ndjson is answered as the same message would be alone.
func TestEachWayToStore(t *testing.T) {
	t.Parallel()
	const never = message.Stamp(1)
	// Of the session's messages the first is stored before.
	bodies := func(ms []message.Message) (names []string, all map[string]string) {
		whole := back(ms[1])
		all = map[string]string{
			"new":             back(ms[1]),
			"another":         back(ms[2]),
			"stored before":   back(ms[0]),
			"padded":          back(ms[3]) + strings.Repeat(" ", message.MaxBytes-len(back(ms[3]))),
			"never sent":      back(message.Message{SessionID: ms[0].SessionID, Service1: never}),
			"unknown session": back(message.Message{SessionID: 999, Service1: ms[0].Service1}),
			"not JSON":        "hello",
			"a sixth field":   strings.Replace(whole, "{", `{"x":1,`, 1),
			"two stamps":      string(ms[1].Encode()),
			"empty":           "",
			"too large":       whole + strings.Repeat(" ", message.MaxBytes),
		}
		return []string{"new", "not JSON", "another", "empty", "stored before", "too large", "padded", "never sent", "unknown session", "a sixth field", "two stamps"}, all
	}
	type outcome struct {
		Status                       int
		Outcome, Type, Detail, Field string
	}
	parse := func(text string) (o outcome) {
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			t.Errorf("answer %q: %v", text, err)
		}
		_, o.Detail, _ = strings.Cut(o.Detail, ": ") // the key differs
		return o
	}
	begin := func(t *testing.T) (*api, []message.Message) {
		a := newAPI(t)
		a.want(a.do("GET", "/start?in_flight=4", ""), 202)
		ms := []message.Message{a.sent(1), a.sent(2), a.sent(3), a.sent(4)}
		a.want(a.do("POST", "/store", back(ms[0])), 200, "stored")
		return a, ms
	}
	for name, c := range map[string]struct {
		fault error // of the database
		want  map[string]outcome
	}{
		"database ready": {nil, map[string]outcome{
			"new": {200, "stored", "", "", ""}, "another": {200, "stored", "", "", ""}, "padded": {200, "stored", "", "", ""}}},
		"database unavailable": {errors.New("connection refused"), map[string]outcome{
			"new": {503, "", "about:blank", "", ""}, "another": {503, "", "about:blank", "", ""},
			"padded": {503, "", "about:blank", "", ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			single, ms := begin(t)
			names, all := bodies(ms)
			single.store.fail(c.fault)
			defer single.store.fail(nil)
			alone := map[string]outcome{}
			for _, name := range names {
				got := single.do("POST", "/store", all[name])
				o := parse(got.text)
				o.Status = got.StatusCode
				alone[name] = o
			}
			for name, want := range c.want {
				if alone[name] != want {
					t.Errorf("%s, alone: got %+v, want %+v", name, alone[name], want)
				}
			}
			for name, status := range map[string]int{"stored before": 200, "never sent": 404, "unknown session": 404, "not JSON": 400, "a sixth field": 400, "two stamps": 400, "empty": 400, "too large": 413} {
				if alone[name].Status != status {
					t.Errorf("%s, alone: got %+v, want status %d", name, alone[name], status)
				}
			}

			grouped, ms := begin(t)
			names, all = bodies(ms)
			grouped.store.fail(c.fault)
			defer grouped.store.fail(nil)
			var lines []string
			for _, name := range names {
				lines = append(lines, all[name])
			}
			got := grouped.do("POST", "/store", strings.Join(lines, "\n")+"\n", "Content-Type", httpserver.LinesType)
			grouped.want(got, 200)
			answers := strings.Split(strings.TrimSuffix(got.text, "\n"), "\n")
			if len(answers) != len(names) || got.Header.Get("Content-Type") != httpserver.LinesType {
				t.Fatalf("got %d lines of %s, want %d", len(answers), got.Header.Get("Content-Type"), len(names))
			}
			for i, name := range names {
				if o := parse(answers[i]); o != alone[name] {
					t.Errorf("%s: got %+v in a line, %+v alone", name, o, alone[name])
				}
			}
		})
	}
}

func TestRowsOfARequestShareAStatement(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start?in_flight=64", ""), 202)
	var lines []string
	for i := range 64 {
		lines = append(lines, back(a.sent(i+1)))
	}
	lines = append(lines[:63], lines[62]) // the same message twice
	got := a.do("POST", "/store", strings.Join(lines, "\n"), "Content-Type", httpserver.LinesType)
	a.want(got, 200)
	if n := strings.Count(got.text, `{"status":200,"outcome":"stored"}`); n != 63 || !strings.HasSuffix(got.text, `{"status":200,"outcome":"repeat"}`+"\n") {
		t.Errorf("got %d stored, want 63 and a repeat:\n%s", n, got.text)
	}
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	if !slices.Equal(a.store.batches, []int{63}) {
		t.Errorf("got statements of %v rows, want one of 63", a.store.batches)
	}
}

func TestRequestsOfLinesAreBounded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	lines := []string{"Content-Type", httpserver.LinesType}
	a.want(a.do("POST", "/store", strings.Repeat("x\n", 64), lines...), 200)
	for name, body := range map[string]string{"lines": strings.Repeat("x\n", 65), "bytes": strings.Repeat("x", 64*4097+1)} {
		got := a.do("POST", "/store", body, lines...)
		if a.want(got, 413); got.member("type") != "about:blank" {
			t.Errorf("too many %s: got type %v, which is that of a message", name, got.member("type"))
		}
	}
	a.want(a.do("POST", "/store", "{}", "Content-Type", "application/x-ndjsonx"), 415)
	a.want(a.do("GET", "/metrics", ""), 200, "tricycle_store_requests_total{code=\"400\"} 64\n", "tricycle_store_requests_total{code=\"413\"} 2\n")
}

// Each line waits for its own commit, and one that cannot be committed in time
// holds up the answer only.
func TestALineThatWaitsDelaysOnlyTheAnswer(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.want(a.do("GET", "/start?in_flight=2", ""), 202)
	first, second := a.sent(1), a.sent(2)
	release := a.store.block()
	begin := time.Now()
	got := a.do("POST", "/store", back(first)+"\n"+back(second)+"\nx\n", "Content-Type", httpserver.LinesType)
	a.want(got, 200, `"status":503`, `"status":400`)
	if took := time.Since(begin); took < commitTimeout/2 {
		t.Errorf("answered after %s, before the commit had its time", took)
	}
	release()
	for _, m := range []message.Message{first, second} {
		a.want(a.do("POST", "/store", back(m)), http.StatusOK)
	}
}

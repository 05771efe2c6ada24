package allinone

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/browsertest"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/servicetest"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

// past writes a session with the number of messages, and a lost one if that is
// not 0. Each second stamp is before the first one, as if the clock of MS2 was slow.
func past(t *testing.T, directory string, stored int) (id int64) {
	t.Helper()
	servicetest.NoError(t, os.MkdirAll(directory, 0o700))
	store, err := sqlite.Open(filepath.Join(directory, "tricycle.db"), zerolog.Nop())
	servicetest.NoError(t, err)
	stop := storetest.Start(t, store)
	defer stop()
	start := message.StampOf(time.Now().Add(-time.Hour))
	if id, err = store.Begin(t.Context(), ms1.Opening{StartedAt: start, IntervalSeconds: 1, InFlight: 1}); err != nil {
		t.Fatal(err)
	}
	var rows []message.Message
	for i := range message.Stamp(stored) {
		s := start + 1000*i
		rows = append(rows, message.Message{SessionID: id, Service1: s, Service2: s - 2500, Service3: s + 300, End: s + 900 + 10*i})
	}
	var lost []ms1.LostMessage
	if stored > 0 {
		servicetest.NoError(t, store.Insert(t.Context(), id, rows))
		lost = []ms1.LostMessage{{Service1: start + 60_000, Reason: "not returned in time"}}
	}
	closing := ms1.Closing{EndedAt: start + 1e6, Generated: int64(stored + len(lost)), Reason: ms1.IntervalElapsed, Lost: lost}
	if _, err := store.End(t.Context(), id, closing); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPage uses the page as a person does, in a real browser.
func TestPage(t *testing.T) {
	browser := browsertest.Browser(t)
	c := usual(t)
	c.Tracing.UIURL = "http://127.0.0.1:16686/"
	id := past(t, c.Data, 50)
	address, stop := serve(t, c)
	b := browsertest.Open(t, browser, address+"/")
	c.Listen = strings.TrimPrefix(address, "http://")

	step := func(name string, f func(t *testing.T)) {
		b.TB = t
		if !t.Run(name, func(t *testing.T) { b.TB = t; f(t) }) {
			t.FailNow() // the next one goes on from here
		}
	}
	step("from start to summary", func(t *testing.T) {
		b.Shows("#state", "idle")
		b.Shows("#hops", "−2.5 ms") // of the session before
		b.Looks("start")
		b.Begin("600", "64")
		b.Shows("#state", "running")
		b.Until(browsertest.Figure("Stored") + " > 100")
		for _, text := range []string{"/s", "p50", "p99", "ready", "not checked"} {
			b.Until(fmt.Sprintf("document.querySelector('#round svg').textContent.includes(%q)", text))
		}
		b.Until("document.querySelectorAll('#over-time path').length === 2 && document.querySelectorAll('#histogram rect').length > 3")
		least := 1
		if os.Getenv("TRICYCLE_TEST_PICTURES") != "" {
			least = 20 // for a chart with some seconds
		}
		b.Until(fmt.Sprintf("document.querySelector('#progress').value > %d", least))
		b.Shows("#progress-text", "left")
		b.Looks("live")

		// An element that is drawn again is costly; so is a drawing that nobody sees.
		browsertest.Evaluate[chromedp.Void](b, "globalThis.kept = document.querySelectorAll('#round svg, #figures dd, #over-time svg')")
		visible := func(is bool) {
			browsertest.Evaluate[chromedp.Void](b, fmt.Sprintf("Object.defineProperty(document, 'hidden', { value: %t, configurable: true }); document.dispatchEvent(new Event('visibilitychange'))", !is))
		}
		stored := browsertest.Evaluate[int](b, browsertest.Figure("Stored"))
		b.Until(fmt.Sprintf("%s > %d && [...kept].every((element) => element.isConnected)", browsertest.Figure("Stored"), stored))
		visible(false)
		title, shown := browsertest.Evaluate[string](b, "document.title"), b.Text("#progress-text")
		b.Until(fmt.Sprintf("document.title.includes('/s') && document.title !== %q", title))
		if now := b.Text("#progress-text"); now != shown {
			t.Errorf("got %q while hidden, want still %q", now, shown)
		}
		visible(true)
		b.Until(fmt.Sprintf("document.title === 'tricycle' && document.querySelector('#progress-text').textContent !== %q", shown))
		b.Do(chromedp.Click(chromedp.CSS("#stop")))
		b.Shows("#progress-text", "ended: stopped after")
		b.Until(browsertest.Figure("Lost") + " === 0 && " + browsertest.Figure("In flight") + " === 0 && " + browsertest.Figure("Stored") + " === " + browsertest.Figure("Generated"))
		b.Looks("stopped")
	})

	step("the sessions, a message, its waterfall", func(t *testing.T) {
		b.Do(chromedp.Click(chromedp.CSS("nav a:nth-child(2)")))
		b.Shows("#session-list", "stopped")
		b.Looks("sessions")
		b.Do(chromedp.Click(chromedp.CSS("#session-list a")))
		b.Until("document.querySelectorAll('#session button.plain').length === 10")
		b.Do(chromedp.Click(chromedp.CSS("#session button.plain")))
		b.Until("document.querySelector('#session tr.open + tr svg').getAttribute('aria-label').startsWith('Waterfall: MS1 to MS2')")
		b.Until("/^http:..127.0.0.1:16686.trace.[0-9a-f]{32}$/.test(document.querySelector('#session tr.open a').href)")
		b.Looks("session")
		b.Expect("404")
		b.Visit("session/9007199254740993") // not a number of JavaScript
		b.Shows("#session .problem", `no session "9007199254740993"`)
		b.Looks("unknown-session")
		for _, view := range []string{"session", "session/01", "session/x", "session/..", "session/1/hops", "other"} {
			b.Visit(view)
			b.Until("location.hash === '#live'")
		}
	})

	step("lost messages and negative hops", func(t *testing.T) {
		b.Visit(fmt.Sprintf("session/%d", id))
		b.Shows("#session", "50 (clocks differ)")
		b.Shows("#session", "not returned in time")
		b.Until("document.querySelectorAll('#session button.plain').length === 10")
		b.Do(chromedp.Click(chromedp.CSS("#session button.plain")), chromedp.SetValue(chromedp.CSS("#session select"), "ms1_to_ms2"))
		b.Shows("#session tr.open + tr", "the clocks of two machines differ")
		// The second stamp is 2.5 ms before the first: the bar ends where the next one begins.
		b.Until(`(([first, second]) => first.matches(".negative") && !second.matches(".negative") &&
			first.x.baseVal.value === second.x.baseVal.value && second.width.baseVal.value > first.width.baseVal.value)(document.querySelectorAll("#session tr.open + tr rect"))`)
		b.Looks("session-skewed")
	})

	step("two tabs, 4,096 in flight", func(t *testing.T) {
		other := browsertest.Open(t, browser, address+"/")
		other.Shows("#state", "idle")
		b.Visit("live")
		b.Begin("3", "4096")
		other.Shows("#state", "running")
		other.Until(browsertest.Figure("Stored") + " > 0")
		for _, tab := range []*browsertest.Tab{b, other} {
			tab.Shows("#progress-text", "ended: interval elapsed")
			tab.Until(browsertest.Figure("Lost") + " === 0 && " + browsertest.Figure("Generated") + " > 4096")
		}
		if one, two := b.Text("#figures"), other.Text("#figures"); one != two {
			t.Errorf("the tabs differ: %q and %q", one, two)
		}
	})

	step("a refusal is shown", func(t *testing.T) {
		b.Expect("409")
		b.Begin("600", "1")
		b.Shows("#state", "running")
		// Another person has pressed Start before this tab shows it.
		browsertest.Evaluate[chromedp.Void](b, "document.querySelector('#start').disabled = false; document.querySelector('#start').click()")
		b.Shows("#problem", "is running")
		b.Looks("refused")
		b.Visit("session/" + browsertest.Evaluate[string](b, `document.querySelector("#progress-text").textContent.match(/\d+/)[0]`))
		b.Shows("#session", "still open")
		b.Until("Number.isNaN(" + browsertest.Figure("Lost") + ")") // as long as messages are in flight
		expect(t, 200, address+"/stop")
		b.Shows("#session", ": stopped")
		b.Until(browsertest.Figure("Lost") + " === 0")
		b.Visit("live")
		b.Shows("#progress-text", "ended: stopped")
		b.Until("document.querySelector('#problem').textContent === ''")
	})

	step("the connection is lost and comes back", func(t *testing.T) {
		b.Expect("net::ERR_")
		servicetest.NoError(t, stop())
		b.Shows("#state", "offline")
		b.Until("!document.querySelector('#offline').hidden && document.querySelector('#start').disabled")
		b.Looks("offline")
		b.Visit("sessions")
		b.Shows("#session-list", "MS1 does not answer.")
		if again, _ := serve(t, c); again != address {
			t.Fatalf("got address %s, want %s", again, address)
		}
		b.Shows("#state", "idle")
		b.Until("document.querySelector('#offline').hidden")
		b.Shows("#session-list", "interval elapsed")
		b.Visit("live")
		b.Begin("1", "8")
		b.Shows("#progress-text", "ended: interval elapsed")
	})
}

// TestPageBehindAProxy uses the page under a prefix, and while the proxy answers
// in place of MS1.
func TestPageBehindAProxy(t *testing.T) {
	browser := browsertest.Browser(t)
	address, _ := serve(t, usual(t))
	target, err := url.Parse(address)
	servicetest.NoError(t, err)
	var status, replaced atomic.Int64 // the status that the proxy answers by itself, and how often it did to /events
	pass := http.StripPrefix("/tricycle", &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // otherwise the page is of another site
	}})
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := int(status.Load())
		if code == 0 {
			pass.ServeHTTP(w, r)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/events") {
			replaced.Add(1)
		}
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, "<html>\n<head>\n\n<title>Maintenance</title>\n\n</html>\n")
	}))
	t.Cleanup(proxy.Close)
	t.Cleanup(proxy.CloseClientConnections)
	b := browsertest.Open(t, browser, proxy.URL+"/tricycle/")
	b.Begin("1", "8")
	b.Shows("#progress-text", "Session 1 ended: interval elapsed")
	b.Expect("502")
	b.Expect("net::ERR_")
	for _, code := range []int{http.StatusBadGateway, http.StatusOK} {
		replaced.Store(0)
		status.Store(int64(code))
		b.Do(chromedp.Click(chromedp.CSS("#start")))
		b.Shows("#problem", fmt.Sprintf("Status %d of another server than MS1.", code))
		proxy.CloseClientConnections()
		b.Shows("#state", "offline")
		b.Visit("sessions")
		b.Shows("#session-list", fmt.Sprintf("Status %d of another server than MS1.", code))
		servicetest.Eventually(t, time.Minute, "a request for events", func() bool { return replaced.Load() > 0 })
		status.Store(0)
		b.Shows("#state", "idle")
		b.Shows("#session-list", "interval elapsed")
		b.Visit("live")
	}
}

// TestPageByKeyboard performs every action of the page with keys alone.
func TestPageByKeyboard(t *testing.T) {
	browser := browsertest.Browser(t)
	c := usual(t)
	c.TokenFile = servicetest.File(t, "token", "secret\n")
	for range 21 {
		past(t, c.Data, 50)
	}
	address, _ := serve(t, c)
	b := browsertest.Open(t, browser, address+"/")
	b.Expect("401")
	b.Shows("#state", "idle")

	shows := func(selector, text string) string {
		return fmt.Sprintf("document.querySelector(%q).innerText.includes(%q)", selector, text)
	}
	for _, step := range []struct{ focus, keys, then string }{
		{".skip", kb.Enter, "document.activeElement.id === 'main'"},
		{"#interval", "600", "document.activeElement.value === '600'"},
		{"#in-flight", "8" + kb.Enter, "document.activeElement.id === 'token'"},
		{"", kb.Escape, "!document.querySelector('#ask').open && document.querySelector('#problem').textContent"},
		{"#start", " ", "document.activeElement.id === 'token'"},
		{"", "secret" + kb.Enter, shows("#state", "running") + " && " + shows("#progress-text", "of 10:00")},
		{"#hop", kb.ArrowUp, "document.querySelector('#hop').value !== 'round' && document.querySelector('#over-time svg')"},
		{"#hops", "", "document.activeElement.id === 'hops'"},
		{"#stop", kb.Enter, shows("#progress-text", "ended: stopped")},
		{"nav a:nth-child(2)", kb.Enter, "document.activeElement.id === 'sessions-title' && !document.querySelector('#older').disabled"},
		{"#older", kb.Enter, "document.querySelectorAll('#session-list tbody tr').length === 2"},
		{"#newer", " ", "document.querySelectorAll('#session-list tbody tr').length === 20"},
		{"#session-list a", kb.Enter, "document.activeElement.textContent.startsWith('Session ')"},
		{"#session a.button[download$=ndjson]", "", "document.activeElement.download"},
		{"#session select", kb.ArrowUp, "document.querySelector('#session select').value !== 'round'"},
		{"#session button.plain", " ", "document.activeElement.getAttribute('aria-expanded') === 'true' && document.querySelector('#session tr.open + tr svg').checkVisibility()"},
		{"", kb.Enter, "document.activeElement.getAttribute('aria-expanded') === 'false'"},
		{"nav a", kb.Enter, "document.activeElement.id === 'round-title'"},
	} {
		if step.focus != "" {
			b.TabTo(step.focus)
		}
		b.Press(step.keys)
		b.Until(step.then)
	}
}

// TestPagesOfSessions pages through the list.
func TestPagesOfSessions(t *testing.T) {
	browser := browsertest.Browser(t)
	c := usual(t)
	for range 25 {
		past(t, c.Data, 50)
	}
	address, _ := serve(t, c)
	b := browsertest.Open(t, browser, address+"/#sessions")
	listed := func(from, to int) {
		t.Helper()
		b.Until(fmt.Sprintf(`[...document.querySelectorAll("#session-list tbody tr")].map((row) => Number(row.cells[0].innerText)).join() ===
			Array.from({ length: %d }, (_, i) => %d - i).join()`, from-to+1, from))
	}
	listed(25, 6)
	b.Do(chromedp.Click(chromedp.CSS("#older")))
	listed(5, 1)
	b.Until("document.querySelector('#older').disabled")
	b.Do(chromedp.Click(chromedp.CSS("#newer")))
	listed(25, 6)
	// A double click is one.
	click := func(button string, times int) {
		browsertest.Evaluate[chromedp.Void](b, fmt.Sprintf("for (let i = 0; i < %d; i++) document.querySelector(%q).click()", times, button))
	}
	for _, times := range [][2]int{{2, 1}, {1, 2}} {
		click("#older", times[0])
		listed(5, 1)
		click("#newer", times[1])
		listed(25, 6)
	}
	b.Until("document.querySelector('#newer').disabled")
	expect(t, 202, address+"/start?interval=600")
	b.Shows("#session-list", "open")
	expect(t, 200, address+"/stop")
	b.Shows("#session-list", "stopped")
}

// TestPageAsksForTheToken starts a session when MS1 has a token, which reading does
// not need.
func TestPageAsksForTheToken(t *testing.T) {
	browser := browsertest.Browser(t)
	c := usual(t)
	c.TokenFile = servicetest.File(t, "token", "0123456789abcdef0123456789abcdef\n")
	id := past(t, c.Data, 50)
	address, _ := serve(t, c)
	b := browsertest.Open(t, browser, address+"/")
	downloads(t, b, id)
	b.Until("!document.querySelector('#ask').open")
	b.Visit("live")
	b.Expect("401")
	answer := func(token string) {
		t.Helper()
		b.Until("document.querySelector('#ask').open")
		b.Do(chromedp.SetValue(chromedp.CSS("#token"), token), chromedp.Click(chromedp.CSS("#ask button")))
	}
	if got := browsertest.Evaluate[string](b, "document.querySelector('#interval').value + ' ' + document.querySelector('#in-flight').value"); got != "1 8" {
		t.Errorf("got %q as interval and in flight, want those of the configuration", got)
	}
	b.Begin("1", "8")
	b.Until("document.querySelector('#ask').open")
	b.Do(chromedp.Click(chromedp.CSS("#ask button:last-child")))
	b.Shows("#problem", "token")
	b.Begin("1", "8")
	b.Until("document.querySelector('#ask').open")
	b.Looks("token")
	answer("ключ") // no header can have it
	b.Until("document.querySelector('#token:invalid')")
	answer("wrong")
	b.Until("document.querySelector('#token').value === ''")
	answer("0123456789abcdef0123456789abcdef")
	b.Shows("#progress-text", "ended: interval elapsed")
	if kept := browsertest.Evaluate[int](b, "indexedDB.databases().then((all) => all.length + localStorage.length + sessionStorage.length + document.cookie.length)"); kept != 0 {
		t.Error("the token is kept outside of memory")
	}
	b.Do(chromedp.Reload())
	b.Shows("#state", "idle")
	b.Begin("1", "8")
	b.Until("document.querySelector('#ask').open") // a reload forgets it
}

// TestPageWithoutMessages opens a session with no rows.
func TestPageWithoutMessages(t *testing.T) {
	browser := browsertest.Browser(t)
	c := usual(t)
	id := past(t, c.Data, 0)
	address, _ := serve(t, c)
	b := browsertest.Open(t, browser, address+"/")
	b.Shows("#progress-text", fmt.Sprintf("Session %d ended: interval elapsed", id))
	for _, box := range []string{"#hops", "#histogram"} {
		b.Shows(box, "No message is stored yet.")
	}
	b.Visit(fmt.Sprintf("session/%d", id))
	b.Until("document.querySelector('#session').innerText.match(/Latency\\s+No message is stored\\.\\s+Slowest messages\\s+No message is stored\\.\\s+Lost messages\\s+None\\.$/)")
	b.Until(browsertest.Figure("Generated") + " === 0 && " + browsertest.Figure("Stored") + " === 0 && " + browsertest.Figure("Lost") + " === 0")
	b.Looks("session-without-messages")
	if got, want := b.Download("#session a[download$=csv]"), "session_id,service1_timestamp,service2_timestamp,service3_timestamp,end_timestamp,trace_id\n"; got != want {
		t.Errorf("got the CSV %q, want the header %q", got, want)
	}
}

// downloads downloads the messages of a session that has 50.
func downloads(t *testing.T, b *browsertest.Tab, id int64) {
	b.Visit(fmt.Sprintf("session/%d", id))
	b.Until("document.querySelectorAll('#session a.button').length === 2")
	for format, lines := range map[string]int{"csv": 51, "ndjson": 50} { // CSV has a header
		text := b.Download(fmt.Sprintf("#session a[download='session-%d.%s']", id, format))
		first, last := fmt.Sprintf("%d,", id), ""
		if format == "ndjson" {
			first, last = fmt.Sprintf(`{"session_id":%d,`, id), "}"
		}
		all := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if end := all[len(all)-1]; len(all) != lines || !strings.HasPrefix(end, first) || !strings.HasSuffix(end, last) {
			t.Errorf("%s: got %d lines, the last one %s, want %d", format, len(all), end, lines)
		}
	}
}

// TestPageLinksTraces follows the forms that the address of Jaeger can have.
func TestPageLinksTraces(t *testing.T) {
	browser := browsertest.Browser(t)
	data := usual(t).Data
	id := past(t, data, 1)
	for _, test := range []struct{ name, url, want string }{
		{"host alone", "http://127.0.0.1:16686", "http://127.0.0.1:16686/trace/ID"},
		{"trailing slash", "http://127.0.0.1:16686/", "http://127.0.0.1:16686/trace/ID"},
		{"path", "https://traces.example/jaeger", "https://traces.example/jaeger/trace/ID"},
		{"path with trailing slashes", "https://traces.example/jaeger//", "https://traces.example/jaeger/trace/ID"},
		{"query", "http://127.0.0.1:16686?a=1&b=%22", "http://127.0.0.1:16686/trace/ID?a=1&b=%22"},
		{"path, slash and query", "http://127.0.0.1:16686/jaeger/ui/?lt=1&amp;=2", "http://127.0.0.1:16686/jaeger/ui/trace/ID?lt=1&amp;=2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := usual(t)
			c.Data, c.Tracing.UIURL = data, test.url
			address, stop := serve(t, c)
			b := browsertest.Open(t, browser, fmt.Sprintf("%s/#session/%d", address, id))
			b.Until("document.querySelector('#session td a')")
			got := browsertest.Evaluate[string](b, "document.querySelector('#session td a').href.replace(/[0-9a-f]{32}/, 'ID')")
			if got != test.want {
				t.Errorf("got the link %s, want %s", got, test.want)
			}
			b.Expect("net::ERR_") // of the events
			servicetest.NoError(t, stop())
		})
	}
}

// The program opens the page only when it is asked to.
func TestOpen(t *testing.T) {
	directory := t.TempDir()
	opened := filepath.Join(directory, "opened")
	script := "#!/bin/sh\necho \"$@\" >" + quote(opened) + "\n"
	for _, name := range []string{"xdg-open", "open"} {
		servicetest.NoError(t, os.WriteFile(filepath.Join(directory, name), []byte(script), 0o700))
	}
	t.Setenv("PATH", directory+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, open := range []bool{false, true} {
		c := usual(t)
		c.Open = open
		said, stop := start(t, c)
		shown := said.Find(t, `The page: (http://\S+/)`)[1]
		said.Find(t, "The rows")
		if open {
			servicetest.Eventually(t, 10*time.Second, "the page is opened", func() bool {
				text, _ := os.ReadFile(opened)
				return len(text) > 0
			})
		}
		servicetest.NoError(t, stop())
		text, err := os.ReadFile(opened)
		if open && strings.TrimSpace(string(text)) != shown {
			t.Errorf("got %q opened, want %q", text, shown)
		}
		if !open && err == nil {
			t.Errorf("got %q opened, want nothing", text)
		}
	}
	c := usual(t)
	c.Open = true
	t.Setenv("PATH", t.TempDir())
	said, _ := start(t, c)
	said.Find(t, "The page was not opened: ")
}

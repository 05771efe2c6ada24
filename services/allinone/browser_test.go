package allinone

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/services/ms1"
	"github.com/tricycle-relay/tricycle/services/ms1/sqlite"
	"github.com/tricycle-relay/tricycle/services/ms1/storetest"
)

// pageTimeout bounds what a tab waits for.
const pageTimeout = 60 * time.Second

// browser starts a headless browser for the test. TRICYCLE_TEST_BROWSER has the
// path of Chromium; without it the test is skipped.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := os.Getenv("TRICYCLE_TEST_BROWSER")
	if path == "" {
		t.Skip("TRICYCLE_TEST_BROWSER is not set: needs Chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 1000), chromedp.WSURLReadTimeout(pageTimeout))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// tab is a page in the browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	errors   []string // of the console, and requests to other hosts
	expected []string // texts of errors that the test provokes
}

// newTab opens the page in another tab. At the end of the test, it must have
// reported no error and sent no request to another host.
func newTab(t *testing.T, browser context.Context, address string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	b := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, e := range b.errors {
			t.Errorf("the page: %s", e)
		}
	})
	host, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	err = chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.report("exception: %s", e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			b.report("console: %s", e.Type)
		case *log.EventEntryAdded:
			b.report("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err != nil || u.Host != host.Host && u.Scheme != "blob" {
				b.report("request to %s", e.Request.URL)
			}
		}
	})
	if err == nil {
		_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	}
	if err != nil {
		t.Fatal(err)
	}
	b.run(chromedp.Navigate(address))
	return b
}

func (b *tab) report(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	report := fmt.Sprintf(format, args...)
	if !slices.ContainsFunc(b.expected, func(text string) bool { return strings.Contains(report, text) }) {
		b.errors = append(b.errors, report)
	}
}

// expect allows reports with the text from now on. The browser may deliver one
// late.
func (b *tab) expect(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = append(b.expected, text)
}

func (b *tab) run(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.t.Fatalf("%v\nthe page shows:\n%s", err, b.text("body"))
	}
}

// evaluate returns the value of an expression of JavaScript.
func evaluate[T any](b *tab, script string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, pageTimeout)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%s: %v", script[:min(len(script), 200)], err)
	}
	return value
}

// text returns the visible text of an element.
func (b *tab) text(selector string) string {
	return evaluate[string](b, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector))
}

// until waits until the expression of JavaScript is true. It does not use
// chromedp's Poll, which the page's policy refuses.
func (b *tab) until(script string) {
	b.t.Helper()
	for deadline := time.Now().Add(pageTimeout); !evaluate[bool](b, "Boolean("+script+")"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited %s for %s\nthe page shows:\n%s", pageTimeout, script, b.text("body"))
		}
	}
}

// shows waits until an element has the text.
func (b *tab) shows(selector, text string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text))
}

// begin enters the parameters and presses Start.
func (b *tab) begin(interval, inFlight string) {
	b.t.Helper()
	b.until("!document.querySelector('#start').disabled")
	b.run(chromedp.SetValue(chromedp.CSS("#interval"), interval), chromedp.SetValue(chromedp.CSS("#in-flight"), inFlight),
		chromedp.Click(chromedp.CSS("#start")))
}

// figure returns the script for a figure of the session as a number.
func figure(name string) string {
	return fmt.Sprintf("Number([...document.querySelectorAll('#figures div')].find((d) => d.firstChild.textContent === %q)?.lastChild.textContent.replaceAll(',', ''))", name)
}

// picture writes the page as it looks to a file in the directory
// TRICYCLE_TEST_PICTURES, if that is set.
func (b *tab) picture(name string) {
	b.t.Helper()
	directory := os.Getenv("TRICYCLE_TEST_PICTURES")
	if directory == "" {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, pageTimeout)
	defer cancel()
	quality, whole := int64(85), true
	picture, err := chromedp.Call(ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{
		Format: page.CaptureScreenshotFormatWebp, Quality: &quality, CaptureBeyondViewport: &whole})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, name+".webp"), picture.Data, 0o600); err != nil {
		b.t.Error(err)
	}
}

// looks sets the theme and the width of the window.
func (b *tab) looks(theme string, width int64) {
	b.t.Helper()
	_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 1000, DeviceScaleFactor: 1})
	if err == nil {
		_, err = chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}})
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// accessible fails the test if axe-core has a serious finding. It needs the
// library's file in TRICYCLE_TEST_AXE.
func (b *tab) accessible(name string) {
	b.t.Helper()
	library, err := os.ReadFile(os.Getenv("TRICYCLE_TEST_AXE"))
	if err != nil {
		b.t.Fatalf("TRICYCLE_TEST_AXE: %v", err)
	}
	evaluate[int](b, string(library)+"; 0")
	findings := evaluate[[]string](b, `axe.run().then((result) => result.violations
		.filter(({ impact }) => impact === "serious" || impact === "critical")
		.map(({ id, help, nodes }) => id + ": " + help + ": " + nodes.map(({ html, failureSummary }) => html + " " + failureSummary).join("; ")))`)
	for _, f := range findings {
		b.t.Errorf("%s: %s", name, f)
	}
}

// skewed writes a session whose second stamp is before the first one, as if the
// clock of MS2 was slow.
func skewed(t *testing.T, directory string) (id int64) {
	t.Helper()
	if err := os.MkdirAll(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	store, err := sqlite.Open(filepath.Join(directory, "tricycle.db"), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop := storetest.Start(t, store)
	defer stop()
	start := message.StampOf(time.Now().Add(-time.Hour))
	if id, err = store.Begin(t.Context(), ms1.Opening{StartedAt: start, IntervalSeconds: 1, InFlight: 1}); err != nil {
		t.Fatal(err)
	}
	var rows []message.Message
	for i := range message.Stamp(50) {
		s := start + 1000*i
		rows = append(rows, message.Message{SessionID: id, Service1: s, Service2: s - 2500, Service3: s + 300, End: s + 900 + 10*i})
	}
	if err := store.Insert(t.Context(), id, rows); err != nil {
		t.Fatal(err)
	}
	lost := []ms1.LostMessage{{Service1: start + 60_000, Reason: "not returned in time"}}
	if _, err := store.End(t.Context(), id, ms1.Closing{EndedAt: start + 1e6, Generated: 51, Reason: ms1.IntervalElapsed, Lost: lost}); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestPage uses the page as a person does, in a real browser.
func TestPage(t *testing.T) {
	browser := browser(t)
	c := usual(t)
	c.Tracing.UIURL = "http://127.0.0.1:16686"
	id := skewed(t, c.Data)
	address, stop := serve(t, c)
	b := newTab(t, browser, address+"/")
	c.Listen = strings.TrimPrefix(address, "http://")

	step := func(name string, f func(t *testing.T)) {
		b.t = t
		if !t.Run(name, func(t *testing.T) { b.t = t; f(t) }) {
			t.FailNow() // the next one goes on from here
		}
	}
	step("from start to summary", func(t *testing.T) {
		b.shows("#state", "idle")
		b.begin("600", "64")
		b.shows("#state", "running")
		b.until(figure("Stored") + " > 100")
		for _, text := range []string{"/s", "p50", "p99", "ready", "not checked"} {
			b.until(fmt.Sprintf("document.querySelector('#round svg').textContent.includes(%q)", text))
		}
		b.until("document.querySelectorAll('#over-time path').length === 2 && document.querySelectorAll('#histogram rect').length > 3")
		least := 1
		if os.Getenv("TRICYCLE_TEST_PICTURES") != "" {
			least = 20 // for a chart with some seconds
		}
		b.until(fmt.Sprintf("document.querySelector('#progress').value > %d", least))
		b.shows("#progress-text", "left")
		b.looks("light", 1280)
		b.picture("live-light")
		b.accessible("live, light")
		b.looks("dark", 1280)
		b.picture("live-dark")
		b.accessible("live, dark")
		b.looks("light", 390)
		b.until("document.documentElement.scrollWidth <= 390")
		b.picture("live-phone")
		b.looks("light", 1280)
		b.run(chromedp.Click(chromedp.CSS("#stop")))
		b.shows("#progress-text", "ended: stopped after")
		b.until(figure("Lost") + " === 0 && " + figure("In flight") + " === 0 && " + figure("Stored") + " === " + figure("Generated"))
	})

	step("by keyboard: the sessions, a message, its waterfall", func(t *testing.T) {
		b.run(chromedp.Focus(chromedp.CSS("nav a:nth-child(2)")), chromedp.KeyEvent(kb.Enter))
		b.shows("#session-list", "stopped")
		b.picture("sessions-light")
		b.accessible("sessions")
		b.run(chromedp.Focus(chromedp.CSS("#session-list a")), chromedp.KeyEvent(kb.Enter))
		b.shows("#session", "Slowest messages")
		b.until("document.activeElement.textContent.startsWith('Session ')")
		b.until("document.querySelectorAll('#session button.plain').length === 10")
		b.run(chromedp.Focus(chromedp.CSS("#session button.plain")), chromedp.KeyEvent(kb.Enter))
		b.until("document.querySelector('#session tr.open + tr svg').getAttribute('aria-label').startsWith('Waterfall: MS1 to MS2')")
		b.until("/^http:..127.0.0.1:16686.trace.[0-9a-f]{32}$/.test(document.querySelector('#session tr.open a').href)")
		b.looks("light", 1280)
		b.picture("session-light")
		b.accessible("session, light")
		b.looks("dark", 1280)
		b.picture("session-dark")
		b.accessible("session, dark")
		b.looks("light", 390)
		b.until("document.documentElement.scrollWidth <= 390")
		b.picture("session-phone")
		b.looks("light", 1280)
	})

	step("a clock skew makes hops negative", func(t *testing.T) {
		evaluate[chromedp.Void](b, fmt.Sprintf("location.hash = '#session/%d'", id))
		b.shows("#session", "50 (clocks differ)")
		b.shows("#session", "not returned in time")
		b.until("document.querySelectorAll('#session button.plain').length === 10")
		b.run(chromedp.Click(chromedp.CSS("#session button.plain")), chromedp.SetValue(chromedp.CSS("#session select"), "ms1_to_ms2"))
		b.until("document.querySelectorAll('#session tr.open + tr rect.negative').length === 1")
		b.shows("#session tr.open + tr", "the clocks of two machines differ")
		b.picture("session-skewed")
		b.accessible("session, skewed")
	})

	step("two tabs, 4,096 in flight", func(t *testing.T) {
		other := newTab(t, browser, address+"/")
		other.shows("#state", "idle")
		evaluate[chromedp.Void](b, "location.hash = '#live'")
		b.begin("3", "4096")
		other.shows("#state", "running")
		other.until(figure("Stored") + " > 0")
		for _, tab := range []*tab{b, other} {
			tab.shows("#progress-text", "ended: interval elapsed")
			tab.until(figure("Lost") + " === 0 && " + figure("Generated") + " > 4096")
		}
		if one, two := b.text("#figures"), other.text("#figures"); one != two {
			t.Errorf("the tabs differ: %q and %q", one, two)
		}
	})

	step("a refusal is shown", func(t *testing.T) {
		b.expect("409")
		b.begin("1", "1")
		evaluate[chromedp.Void](b, "document.querySelector('#start').disabled = false; document.querySelector('#start').click()")
		b.shows("#problem", "session")
		b.shows("#progress-text", "ended")
	})

	step("the connection is lost and comes back", func(t *testing.T) {
		b.expect("net::ERR_")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		b.shows("#state", "offline")
		b.until("!document.querySelector('#offline').hidden && document.querySelector('#start').disabled")
		b.accessible("offline")
		if again, _ := serve(t, c); again != address {
			t.Fatalf("got address %s, want %s", again, address)
		}
		b.shows("#state", "idle")
		b.until("document.querySelector('#offline').hidden")
		b.begin("1", "8")
		b.shows("#progress-text", "ended: interval elapsed")
	})
}

// TestPagesOfSessions pages through the list.
func TestPagesOfSessions(t *testing.T) {
	browser := browser(t)
	c := usual(t)
	for range 25 {
		skewed(t, c.Data)
	}
	address, _ := serve(t, c)
	b := newTab(t, browser, address+"/#sessions")
	b.shows("#session-list", "25")
	b.until("document.querySelectorAll('#session-list tbody tr').length === 20")
	b.run(chromedp.Click(chromedp.CSS("#older")))
	b.until("document.querySelectorAll('#session-list tbody tr').length === 5")
	b.until("document.querySelector('#older').disabled")
	b.run(chromedp.Click(chromedp.CSS("#newer")))
	b.until("document.querySelectorAll('#session-list tbody tr').length === 20")
	b.run(chromedp.Click(chromedp.CSS("#session-list a")))
	b.until("document.querySelector('#session a.button')")
	hrefs := evaluate[[]string](b, "[...document.querySelectorAll('#session a.button')].map((a) => a.getAttribute('href'))")
	if want := []string{"sessions/25/messages?format=csv", "sessions/25/messages?format=ndjson"}; !slices.Equal(hrefs, want) {
		t.Errorf("got the downloads %v, want %v", hrefs, want)
	}
}

// TestPageAsksForTheToken starts a session when MS1 has a token.
func TestPageAsksForTheToken(t *testing.T) {
	browser := browser(t)
	c := usual(t)
	c.TokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(c.TokenFile, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, c)
	b := newTab(t, browser, address+"/")
	b.expect("401")
	answer := func(token string) {
		t.Helper()
		b.until("document.querySelector('#ask').open")
		b.run(chromedp.SetValue(chromedp.CSS("#token"), token), chromedp.Click(chromedp.CSS("#ask button")))
	}
	b.begin("1", "8")
	answer("wrong")
	b.until("document.querySelector('#token').value === ''")
	answer("0123456789abcdef0123456789abcdef")
	b.shows("#progress-text", "ended: interval elapsed")
	if kept := evaluate[int](b, "localStorage.length + sessionStorage.length + document.cookie.length"); kept != 0 {
		t.Error("the token is kept outside of memory")
	}
}

// The program opens the page only when it is asked to.
func TestOpen(t *testing.T) {
	directory := t.TempDir()
	opened := filepath.Join(directory, "opened")
	script := "#!/bin/sh\necho \"$@\" >" + quote(opened) + "\n"
	for _, name := range []string{"xdg-open", "open"} {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", directory+string(os.PathListSeparator)+os.Getenv("PATH"))
	for _, open := range []bool{false, true} {
		c := usual(t)
		c.Open = open
		said, stop := start(t, c)
		shown := said.Find(t, `The page: (http://\S+/)`)[1]
		said.Find(t, "The rows")
		var text []byte
		for deadline := time.Now().Add(10 * time.Second); open && len(text) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			text, _ = os.ReadFile(opened)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
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

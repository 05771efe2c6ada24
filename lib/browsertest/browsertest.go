// Package browsertest tests the page of MS1 in a real browser. It uses the
// headless Chromium at the path TRICYCLE_TEST_BROWSER, and skips the test if the
// variable is not set.
package browsertest

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

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/tricycle-relay/tricycle/lib/servicetest"
)

// timeout bounds what a tab waits for.
const timeout = 60 * time.Second

// Browser starts a browser that ends with the test.
func Browser(t testing.TB) context.Context {
	t.Helper()
	path := os.Getenv("TRICYCLE_TEST_BROWSER")
	if path == "" {
		t.Skip("TRICYCLE_TEST_BROWSER is not set: needs Chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(1280, 1000), chromedp.WSURLReadTimeout(timeout))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// Tab is a tab of a browser with the page.
type Tab struct {
	testing.TB // that fails; a subtest may replace it
	ctx        context.Context

	mu       sync.Mutex
	errors   []string // of the console, and requests to other hosts
	expected []string // texts of errors that the test provokes
}

// Open opens the page in another tab. At the end of the test, it must have
// reported no error and sent no request to another host.
func Open(t testing.TB, browser context.Context, address string) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	b := &Tab{TB: t, ctx: ctx}
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
			if u, err := url.Parse(e.Request.URL); err != nil || u.Host != host.Host {
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
	b.Do(chromedp.Navigate(address))
	return b
}

func (b *Tab) report(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	report := fmt.Sprintf(format, args...)
	if !slices.ContainsFunc(b.expected, func(text string) bool { return strings.Contains(report, text) }) {
		b.errors = append(b.errors, report)
	}
}

// Expect allows reports with the text from now on. The browser may deliver one
// late.
func (b *Tab) Expect(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.expected = append(b.expected, text)
}

// Do performs the steps of a person. The test fails if one is impossible.
func (b *Tab) Do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		b.Fatalf("%v\nthe page shows:\n%s", err, b.Text("body"))
	}
}

// Evaluate returns the value of an expression of JavaScript, of a promise its
// result.
func Evaluate[T any](b *Tab, script string) T {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, timeout)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.Fatalf("%s: %v", script[:min(len(script), 200)], err)
	}
	return value
}

// Text returns the visible text of an element.
func (b *Tab) Text(selector string) string {
	b.Helper()
	return Evaluate[string](b, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector))
}

// Until waits until the expression of JavaScript is true. It does not use
// chromedp's Poll, which the page's policy refuses.
func (b *Tab) Until(script string) {
	b.Helper()
	for deadline := time.Now().Add(timeout); !Evaluate[bool](b, "Boolean("+script+")"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("waited %s for %s\nthe page shows:\n%s", timeout, script, b.Text("body"))
		}
	}
}

// Shows waits until an element has the text.
func (b *Tab) Shows(selector, text string) {
	b.Helper()
	b.Until(fmt.Sprintf("document.querySelector(%q)?.innerText.includes(%q)", selector, text))
}

// Visit goes to a view, such as "session/7".
func (b *Tab) Visit(view string) {
	b.Helper()
	Evaluate[chromedp.Void](b, fmt.Sprintf("location.hash = %q", view))
}

// Begin enters the parameters of a session and presses Start.
func (b *Tab) Begin(interval, inFlight string) {
	b.Helper()
	b.Until("!document.querySelector('#start').disabled")
	b.Do(chromedp.SetValue(chromedp.CSS("#interval"), interval), chromedp.SetValue(chromedp.CSS("#in-flight"), inFlight),
		chromedp.Click(chromedp.CSS("#start")))
}

// Press types keys at what has the focus.
func (b *Tab) Press(keys string) {
	b.Helper()
	b.Do(chromedp.KeyEvent(keys))
}

// TabTo presses Tab until the element has the focus.
func (b *Tab) TabTo(selector string) {
	b.Helper()
	b.Until(fmt.Sprintf("document.querySelector(%q)", selector))
	for range 60 {
		b.Press(kb.Tab)
		if Evaluate[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
	}
	b.Fatalf("%s is not reached by keyboard\nthe page shows:\n%s", selector, b.Text("body"))
}

// Download clicks a link with a name for its file, and returns the text that the
// browser has stored. It must not be empty.
func (b *Tab) Download(selector string) string {
	b.Helper()
	directory := b.TempDir()
	if _, err := chromedp.CallBrowser(b.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: directory}); err != nil {
		b.Fatal(err)
	}
	name := Evaluate[string](b, fmt.Sprintf("document.querySelector(%q).download", selector))
	b.Do(chromedp.Click(chromedp.CSS(selector)))
	var text []byte
	servicetest.Eventually(b, timeout, "the file "+name+", which has its name when it is complete", func() bool {
		text, _ = os.ReadFile(filepath.Join(directory, name))
		return len(text) > 0
	})
	return string(text)
}

// Figure returns a script for a figure of the shown session, such as Stored, as
// a number.
func Figure(name string) string {
	return fmt.Sprintf("Number([...document.querySelectorAll('.figures div')].find((d) => d.checkVisibility() && d.firstChild.textContent === %q)?.lastChild.textContent.replaceAll(',', ''))", name)
}

// looks are the themes and widths, in CSS pixels, in which people see the page.
var looks = []struct {
	name, theme string
	width       int64
}{{"phone", "dark", 390}, {"dark", "dark", 1280}, {"light", "light", 1280}}

// Looks fails the test if the view is wider than the window, or axe-core has a
// serious finding, in either theme. TRICYCLE_TEST_AXE is the path of that
// library. It writes pictures of the view to the directory
// TRICYCLE_TEST_PICTURES, if that is set.
func (b *Tab) Looks(view string) {
	b.Helper()
	for _, l := range looks {
		_, err := chromedp.Call(b.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: l.width, Height: 1000, DeviceScaleFactor: 1})
		if err == nil {
			_, err = chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.theme}}})
		}
		if err != nil {
			b.Fatal(err)
		}
		b.Until(fmt.Sprintf("document.documentElement.scrollWidth <= %d", l.width))
		// Drawings are made for the width, so that their text has the size of the other text.
		b.Until("[...document.querySelectorAll('svg')].every((s) => !s.checkVisibility() || s.clientWidth / s.viewBox.baseVal.width > 0.8)")
		b.picture(view + "-" + l.name)
		if l.name != "phone" {
			b.accessible(view + ", " + l.name)
		}
	}
}

func (b *Tab) picture(name string) {
	b.Helper()
	directory := os.Getenv("TRICYCLE_TEST_PICTURES")
	if directory == "" {
		return
	}
	quality, whole := int64(85), true
	picture, err := chromedp.Call(b.ctx, page.CaptureScreenshot, page.CaptureScreenshotParams{
		Format: page.CaptureScreenshotFormatWebp, Quality: &quality, CaptureBeyondViewport: &whole})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, name+".webp"), picture.Data, 0o600); err != nil {
		b.Error(err)
	}
}

func (b *Tab) accessible(look string) {
	b.Helper()
	if Evaluate[bool](b, "!window.axe") {
		library, err := os.ReadFile(os.Getenv("TRICYCLE_TEST_AXE"))
		if err != nil {
			b.Fatalf("TRICYCLE_TEST_AXE: %v", err)
		}
		Evaluate[int](b, string(library)+"; 0")
	}
	findings := Evaluate[[]string](b, `axe.run().then((result) => result.violations
		.filter(({ impact }) => impact === "serious" || impact === "critical")
		.map(({ id, help, nodes }) => id + ": " + help + ": " + nodes.map(({ html, failureSummary }) => html + " " + failureSummary).join("; ")))`)
	for _, f := range findings {
		b.Errorf("%s: %s", look, f)
	}
}

package chain

import (
	"bytes"
	"io"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/tricycle-relay/tricycle/lib/browsertest"
	"github.com/tricycle-relay/tricycle/lib/message"
)

// slowClock is a proxy before MS1 that makes the second stamps of messages a
// second earlier, as if the clock of MS2 was slow.
func slowClock(address string) *httptest.Server {
	second := regexp.MustCompile(`("service2_timestamp":")([^"]+)`)
	return httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: address})
		body, err := io.ReadAll(r.In.Body)
		if err != nil {
			return // MS3 has hung up and posts it again
		}
		body = second.ReplaceAllFunc(body, func(found []byte) []byte {
			parts := second.FindSubmatch(found)
			at, _ := time.Parse(message.Layout, string(parts[2])) // MS2 wrote it
			return append(parts[1], at.Add(-time.Second).Format(message.Layout)...)
		})
		r.Out.Body, r.Out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Out.Header.Set("Content-Length", strconv.Itoa(len(body)))
	}})
}

// The page of the delivered programs, with a clock that is slow, and MS1 killed
// while it is open.
func TestPage(t *testing.T) {
	browser := browsertest.Browser(t)
	c := newChain(t)
	proxy := slowClock(c.address["ms1"])
	t.Cleanup(proxy.Close)
	c.overlays["ms3"]["ms1"].(settings)["url"] = proxy.URL + "/store"
	c.up()
	b := browsertest.Open(t, browser, "http://"+c.address["ms1"]+"/")
	b.Begin("600", "8")
	b.Shows("#state", "running")
	b.Shows("#hops tbody tr", "clocks differ")
	b.Do(chromedp.SetValue(chromedp.CSS("#hop"), "ms1_to_ms2"))
	b.Shows("#over-time", "All times are negative, because clocks differ.")
	b.Shows("#histogram", "messages have a negative time, because clocks differ.")
	b.Looks("live-skewed")

	b.Visit("session/1")
	b.Until("document.querySelectorAll('#session button.plain').length === 10")
	b.Do(chromedp.Click(chromedp.CSS("#session button.plain")))
	b.Until("document.querySelectorAll('#session tr.open + tr rect.negative').length === 1")
	b.Shows("#session", "still open")

	b.Visit("live")
	b.Expect("net::ERR_")
	c.running["ms1"].Signal(syscall.SIGKILL)
	b.Shows("#state", "offline")
	c.start("ms1")
	b.Shows("#state", "idle")
	b.Until("document.querySelector('#offline').hidden")
	b.Shows("#progress-text", "ended: interrupted")
	b.Looks("interrupted")
	b.Visit("session/1")
	b.Shows("#session", "Unknown: the session was interrupted.")
	b.Until(browsertest.Figure("Stored") + " > 0")
	b.Visit("live")
	b.Begin("1", "8")
	b.Shows("#progress-text", "Session 2 ended: interval elapsed")
}

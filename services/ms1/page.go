package ms1

import (
	"embed"
	"fmt"
	"html"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
)

//go:embed page
var pageFiles embed.FS

// pagePolicy is the Content-Security-Policy of the page: its own files, no
// inline script or style, no frame around it.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// pageFile answers with a file of the page. The page itself gets what it needs
// of the configuration.
func (s *Service) pageFile(w http.ResponseWriter, name string) {
	text, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		httpserver.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("no file %q", name)}.Write(w)
		return
	}
	if name == "index.html" {
		c := s.config.Interaction
		text = []byte(strings.NewReplacer("{traces}", html.EscapeString(s.config.Tracing.UIURL),
			"{interval}", strconv.Itoa(c.IntervalSeconds), "{in_flight}", strconv.Itoa(c.InFlight)).Replace(string(text)))
	}
	h := w.Header()
	h.Set("Content-Type", pageTypes[path.Ext(name)])
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(text) // the client may have left
}

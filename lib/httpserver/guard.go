package httpserver

import (
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// guard refuses requests that a web page can make a browser send: under a name
// that its owner points at this machine (DNS rebinding), from another site, as a
// prefetch, from a form. Of the headers that it checks, other programs send only
// Host and Content-Type.
type guard struct{ hosts []string }

var early = regexp.MustCompile("(?i)prefetch|prerender|preview")

// check returns nil if the route may serve the request. acting reports whether
// the route does more than read.
func (g guard) check(r *http.Request, acting bool) *Problem {
	if !g.allows(r.Host) && !fromProgram(r) {
		return &Problem{Status: http.StatusMisdirectedRequest,
			Detail: fmt.Sprintf("Host: must be an IP address, localhost, a name without dots or one of allowed_hosts, got %q", r.Host)}
	}
	if origin := r.Header.Values("Origin"); len(origin) > 1 || len(origin) == 1 && !sameHost(origin[0], r.Host) {
		return forbidden("Origin", origin)
	}
	site := r.Header.Values("Sec-Fetch-Site")
	for _, s := range site {
		// A link on another site may lead to a page that only reads.
		if !slices.Contains([]string{"", "none", "same-origin"}, strings.ToLower(s)) && (acting || !strings.EqualFold(r.Header.Get("Sec-Fetch-Mode"), "navigate")) {
			return forbidden("Sec-Fetch-Site", site)
		}
	}
	if !acting {
		return nil
	}
	if referer := r.Header.Values("Referer"); len(site) == 0 && len(r.Header["Origin"]) == 0 &&
		slices.ContainsFunc(referer, func(s string) bool { return !sameHost(s, r.Host) }) {
		return forbidden("Referer", referer)
	}
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		if purpose := r.Header.Values(name); early.MatchString(strings.Join(purpose, ", ")) {
			return forbidden(name, purpose)
		}
	}
	if r.Method != http.MethodPost {
		return nil
	}
	// A form or script of another site can send other types without a preflight.
	if types := r.Header.Values("Content-Type"); len(types) > 0 {
		if media, _, err := mime.ParseMediaType(types[0]); len(types) > 1 || err != nil || media != "application/json" && media != LinesType {
			return &Problem{Status: http.StatusUnsupportedMediaType,
				Detail: fmt.Sprintf("Content-Type: must be application/json or %s, got %q", LinesType, strings.Join(types, ", "))}
		}
	}
	return nil
}

// fromProgram reports whether no browser can have sent the request: browsers
// send Origin with every POST and WebSocket handshake (Fetch standard, 3.2; RFC
// 6455, 4.1). So MS1 and MS3 may reach each other under any name.
func fromProgram(r *http.Request) bool {
	for _, name := range []string{"Origin", "Sec-Fetch-Site", "Referer"} {
		if len(r.Header.Values(name)) > 0 {
			return false
		}
	}
	return r.Method == http.MethodPost || strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

func forbidden(header string, values []string) *Problem {
	return &Problem{Status: http.StatusForbidden, Detail: fmt.Sprintf("%s: must be of this site, got %q", header, strings.Join(values, ", "))}
}

// allows reports whether host, the value of a Host header, may address the
// service. Only for a name with a dot can somebody else control the DNS. HTTP/1.0
// has no Host.
func (g guard) allows(host string) bool {
	name := hostname(host)
	if _, err := netip.ParseAddr(name); host == "" || err == nil {
		return true
	}
	plain := name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
	return plain || strings.HasSuffix(name, ".localhost") || slices.ContainsFunc(g.hosts, func(h string) bool { return hostname(h) == name })
}

// hostname returns the name or address of host[:port] in lower case, without
// brackets, zone or a final dot.
func hostname(host string) string {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"), "."))
}

// sameHost reports whether the URL leads to the host of the request.
func sameHost(rawURL, host string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") &&
		strings.EqualFold(withoutPort(u.Host), withoutPort(host))
}

// withoutPort removes the default port of http or https, as browsers do.
func withoutPort(host string) string {
	return strings.TrimSuffix(strings.TrimSuffix(host, ":80"), ":443")
}

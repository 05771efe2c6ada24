package httpserver

import (
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// guard decides which requests reach a handler. It stops what a web page can
// make a browser send: a request under a name that the page's owner has pointed
// at this machine (DNS rebinding), a request from another site, a page that is
// fetched before anybody asked for it, a form. Programs that are no browsers
// send none of the headers that it looks at, except Host and Content-Type.
type guard struct{ hosts []string }

// check returns nil if the handler of the route may serve the request. acting
// means that the route does more than read.
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
		switch strings.ToLower(s) {
		case "", "none", "same-origin":
		default:
			// A link on another site may lead to what can be read.
			if acting || !strings.EqualFold(r.Header.Get("Sec-Fetch-Mode"), "navigate") {
				return forbidden("Sec-Fetch-Site", site)
			}
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
		for _, purpose := range r.Header.Values(name) {
			for _, word := range []string{"prefetch", "prerender", "preview"} {
				if strings.Contains(strings.ToLower(purpose), word) {
					return forbidden(name, []string{purpose})
				}
			}
		}
	}
	if r.Method != http.MethodPost {
		return nil
	}
	// A form or a script of another site can send other types without asking.
	if types := r.Header.Values("Content-Type"); len(types) > 0 {
		if media, _, err := mime.ParseMediaType(types[0]); len(types) > 1 || err != nil || media != "application/json" {
			return &Problem{Status: http.StatusUnsupportedMediaType,
				Detail: fmt.Sprintf("Content-Type: must be application/json, got %q", strings.Join(types, ", "))}
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
	return &Problem{Status: http.StatusForbidden, Detail: fmt.Sprintf("%s: requests from other sites are refused, got %q", header, strings.Join(values, ", "))}
}

// allows reports whether the service may be addressed as host, the value of a
// Host header. Only a name with a dot can be one that somebody else has pointed
// here. HTTP/1.0 has no Host.
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

// withoutPort removes a port that is the default of http or https: browsers
// leave it out.
func withoutPort(host string) string {
	return strings.TrimSuffix(strings.TrimSuffix(host, ":80"), ":443")
}

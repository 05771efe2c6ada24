package httpserver

import (
	"net/http"

	"github.com/rs/zerolog"

	"github.com/tricycle-relay/tricycle/lib/credentials"
	"github.com/tricycle-relay/tricycle/lib/logging"
)

// WithToken serves requests that carry the bearer token and answers others 401
// (RFC 6750), or 503 while its file cannot be used. A nil token admits all.
func WithToken(token *credentials.Token, log zerolog.Logger, next http.HandlerFunc) http.HandlerFunc {
	if token == nil {
		return next
	}
	refused, unreadable := logging.Limit(log), logging.Limit(log) // refused requests must not suppress the other
	return func(w http.ResponseWriter, r *http.Request) {
		admitted, err := token.Admits(r)
		switch {
		case err != nil:
			unreadable.Error().Err(err).Msg("token not read")
			w.Header().Set("Retry-After", "1")
			Problem{Status: http.StatusServiceUnavailable, Detail: "token_file: not ready"}.Write(w)
		case !admitted:
			refused.Warn().Str("client", r.RemoteAddr).Str("path", r.URL.Path).Msg("request without valid token")
			w.Header().Set("WWW-Authenticate", `Bearer realm="tricycle"`)
			Problem{Status: http.StatusUnauthorized, Detail: "Authorization: must be Bearer and the token of this service"}.Write(w)
		default:
			next(w, r)
		}
	}
}

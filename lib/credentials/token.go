package credentials

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/tricycle-relay/tricycle/lib/config"
)

// reread is how long the content of a file is used before it is read again.
const reread = time.Second

// Access names the files by which a client trusts another service and identifies
// itself to it.
type Access struct {
	CAFile    string `yaml:"ca_file"`    // PEM file of the CAs that the certificate at an https or wss URL is verified with; empty: those of the system
	TokenFile string `yaml:"token_file"` // holds the bearer token for the service on one line, read again when it changes; empty: none
}

// CheckFiles reads the files and returns an error for one that cannot be used.
// The section is the path of the keys in the configuration.
func (a Access) CheckFiles(section string) error {
	_, certificates := a.certificates().Client(section)
	_, token := a.Token(section).Value()
	return errors.Join(certificates, token)
}

func (a Access) certificates() Certificates { return Certificates{CAFile: a.CAFile} }

// Token returns the token for the service, nil for none.
func (a Access) Token(section string) *Token { return NewToken(section+".token_file", a.TokenFile) }

// Token is a bearer token (RFC 6750) in a file, which is read again after a
// second. Its methods accept nil, which is no token.
type Token struct {
	key, file string

	mu    sync.Mutex
	read  time.Time
	value string
	err   error
}

// NewToken returns the token in the file that a key names, nil if it names none.
func NewToken(key, file string) *Token {
	if file == "" {
		return nil
	}
	return &Token{key: key, file: file}
}

var legal = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`) // RFC 6750, 2.1

// Value returns the token.
func (t *Token) Value() (string, error) {
	if t == nil {
		return "", nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); now.Sub(t.read) > reread {
		t.read = now
		t.value, t.err = config.Secret(t.key, t.file)
		if t.err == nil && !legal.MatchString(t.value) {
			t.err = fmt.Errorf("%s: must name a file with letters, digits and -._~+/= only, got %s", t.key, t.file)
		}
	}
	return t.value, t.err
}

// Set adds the token to the headers of a request.
func (t *Token) Set(h http.Header) error {
	value, err := t.Value()
	if err == nil && value != "" {
		h.Set("Authorization", "Bearer "+value)
	}
	return err
}

// Admits reports whether a request carries the token. The error is that of the
// file.
func (t *Token) Admits(r *http.Request) (bool, error) {
	want, err := t.Value()
	if err != nil || want == "" {
		return err == nil, err
	}
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	// Of hashes, so that not even the length can be measured.
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(a[:], b[:]) == 1, nil
}

package ms1

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
)

// query reads the query of a request with a function for each parameter that
// it may have. Its error names the parameter.
func query(r *http.Request, parameters map[string]func(value string) error) error {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	for name, value := range values {
		parse, ok := parameters[name]
		if !ok {
			return fmt.Errorf("query: unknown parameter %q, expected one of %s", name, strings.Join(slices.Sorted(maps.Keys(parameters)), ", "))
		}
		if len(value) > 1 {
			return fmt.Errorf("%s: must be given once, got %q", name, value)
		}
		if err := parse(value[0]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// whole returns a parser of whole numbers from 1 to most.
func whole[T int | int64](to *T, most T) func(string) error {
	return func(value string) error {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 1 || n > int64(most) || strconv.FormatInt(n, 10) != value {
			return fmt.Errorf("must be a whole number from 1 to %d, got %q", most, value)
		}
		*to = T(n)
		return nil
	}
}

// oneOf returns a parser of the words.
func oneOf(to *string, words ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(words, value) {
			return fmt.Errorf("must be %s, got %q", strings.Join(words, " or "), value)
		}
		*to = value
		return nil
	}
}

func badRequest(w http.ResponseWriter, err error) {
	httpserver.Problem{Status: http.StatusBadRequest, Detail: err.Error()}.Write(w)
}

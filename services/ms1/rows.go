package ms1

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tricycle-relay/tricycle/lib/httpserver"
	"github.com/tricycle-relay/tricycle/lib/message"
	"github.com/tricycle-relay/tricycle/lib/telemetry"
)

// The formats of messages in an answer, and their media types.
const (
	asJSON  = "json"
	asCSV   = "csv"
	asLines = "ndjson"
)

var mediaTypes = map[string]string{asJSON: "application/json", asCSV: "text/csv", asLines: httpserver.LinesType}

// accepted returns the format that the header Accept prefers: the one with the
// highest quality, then with the most specific range, then the first. Without an
// acceptable one it is JSON (RFC 9110, section 12.5.1).
func accepted(r *http.Request) string {
	type offer struct {
		format          string
		quality         float64
		specific, place int
	}
	offers := []offer{{format: asJSON}, {format: asCSV}, {format: asLines}}
	for place, part := range strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",") {
		media, parameters, err := mime.ParseMediaType(part)
		quality := 1.0
		if text, ok := parameters["q"]; ok && err == nil {
			quality, err = strconv.ParseFloat(text, 64)
		}
		if err != nil || !(quality >= 0 && quality <= 1) { // an invalid range is unknown
			continue
		}
		for i, o := range offers {
			kind, _, _ := strings.Cut(mediaTypes[o.format], "/")
			specific := 1 + slices.Index([]string{"*/*", kind + "/*", mediaTypes[o.format]}, media)
			if specific > o.specific {
				offers[i] = offer{o.format, quality, specific, place}
			}
		}
	}
	best := slices.MinFunc(offers, func(a, b offer) int {
		return cmp.Or(cmp.Compare(b.quality, a.quality), cmp.Compare(b.specific, a.specific), cmp.Compare(a.place, b.place))
	})
	if best.quality == 0 {
		return asJSON
	}
	return best.format
}

// line appends a message as JSON, with its trace id.
func line(b []byte, m message.Message) []byte {
	id, _ := telemetry.IDs(m.Key())
	b = m.Append(b)
	return append(append(append(b[:len(b)-1], `,"trace_id":"`...), id.String()...), `"}`...)
}

// columns is the header of CSV.
var columns = []string{"session_id", "service1_timestamp", "service2_timestamp", "service3_timestamp", "end_timestamp", "trace_id"}

func record(m message.Message) []string {
	id, _ := telemetry.IDs(m.Key())
	return []string{strconv.FormatInt(m.SessionID, 10), m.Service1.String(), m.Service2.String(), m.Service3.String(), m.End.String(), id.String()}
}

// writePage writes messages as JSON, with the value of after for the next page.
func writePage(w http.ResponseWriter, page []message.Message, which Selection) {
	messages := make([]json.RawMessage, len(page))
	for i, m := range page {
		messages[i] = line(nil, m)
	}
	var next *message.Stamp
	if !which.Slowest && len(page) == which.Limit {
		next = &page[len(page)-1].Service1
	}
	httpserver.JSON(w, http.StatusOK, map[string]any{"messages": messages, "next": next})
}

// rows writes messages. A client has [httpserver.AnswerTimeout] for each flush.
type rows struct {
	write func(message.Message)
	flush func() error
}

func rowWriter(w http.ResponseWriter, format string) rows {
	var text bytes.Buffer
	deadline := http.NewResponseController(w)
	flush := func() error {
		_ = deadline.SetWriteDeadline(time.Now().Add(httpserver.AnswerTimeout)) // an error comes back from the write
		_, err := text.WriteTo(w)
		return err
	}
	if format == asLines {
		return rows{func(m message.Message) { text.Write(append(line(text.AvailableBuffer(), m), '\n')) }, flush}
	}
	table := csv.NewWriter(&text)
	put := func(record []string) { _ = table.Write(record) } // a buffer never fails
	put(columns)
	return rows{func(m message.Message) { put(record(m)) }, func() error { table.Flush(); return flush() }}
}

package logging

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxString is the longest string of an event, in bytes of its JSON.
const maxString = 256

// cleaner writes the JSON lines of events with their strings cut and escaped.
type cleaner struct{ io.Writer }

func (c cleaner) Write(line []byte) (int, error) {
	if _, err := c.Writer.Write(clean(make([]byte, 0, len(line)), line)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// clean appends a line of JSON to dst. It cuts strings after [maxString] bytes
// and escapes control and invisible characters: C1 controls, bidirectional and
// other format characters.
func clean(dst, line []byte) []byte {
	quoted, cut, room := false, false, 0
	for len(line) > 0 {
		r, size := utf8.DecodeRune(line)
		var escaped []byte
		switch {
		case r == '"':
			quoted, cut, room = !quoted, false, maxString+1 // for the quotation mark
		case quoted && r == '\\' && len(line) > 5 && line[1] == 'u':
			size = 6
		case quoted && r == '\\' && len(line) > 1:
			size = 2
		case r >= 0x7f && !strconv.IsPrint(r):
			for _, unit := range utf16.AppendRune(nil, r) {
				escaped = fmt.Appendf(escaped, `\u%04x`, unit)
			}
		}
		if escaped == nil {
			escaped = line[:size]
		}
		line = line[size:]
		switch room -= len(escaped); {
		case !quoted || room >= 0 && !cut:
			dst = append(dst, escaped...)
		case !cut:
			dst, cut = append(dst, "…"...), true
		}
	}
	return dst
}

// Visible returns text with control and invisible characters escaped, including
// line feeds.
func Visible(text string) string { return escape(text, "") }

// escape is [Visible], except for the characters of plain.
func escape(text, plain string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], string(r)):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case strconv.IsPrint(r) || strings.ContainsRune(plain, r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

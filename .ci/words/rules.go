package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A kind is the place of a text. Rules select the kinds that they apply to.
type kind string

const (
	comment kind = "comment" // in any language
	text    kind = "text"    // string literals of Go, lines of other files
	page    kind = "page"    // a paragraph, heading, list item or table cell of Markdown
	logged  kind = "log"     // the message of a log event
	failure kind = "error"   // the text of an error
	subject kind = "subject" // the first line of a commit message
)

var (
	prose = []kind{comment, text, page}
	all   = []kind{comment, text, page, logged, failure, subject}
)

// A rule reports the places in a text that break it, as byte ranges.
type rule struct {
	id     string
	kinds  []kind
	find   func(text string) [][]int
	advice string
}

var rules = []rule{
	words("anew", `anew`, "again, or recreate"),
	words("away", `(is|are|was|were|be|been|being|while|goes|went|stays?) away`, "unavailable"),
	words("by-name", `by name`, "explicitly, or name the thing"),
	words("folder", `folders?`, "directory"),
	words("for-ever", `for ever|forever`, "indefinitely"),
	words("found-expected", `found\b[^.!?\n]*\bexpected`, "a parser: expected X, found Y; a value: must be X, got Y; a test: got X, want Y"),
	words("in-words", `in words`, "as text"),
	words("made-message", `(makes?|made) (no )?messages?|messages? (is |are |were |was )?made`, "generate"),
	words("mend", `mend(s|ed|ing)?`, "fix"),
	words("round", `hand(s|ed|ing)?( \w+)? a?round`, "pass"),
	words("say", `says?|said|saying`, "report, log, print, state, document"),
	words("sees", `one sees`, "name the thing that is visible"),
	words("told", `(is|are|was|were|be|been|being) told( nothing)?`, "configured; default configuration"),
	words("under-way", `under way|underway`, "in flight, running, in progress"),
	words("whoever", `whoever`, "name the actor"),

	{"start", prose, pattern(`(?:\A\s*|[.!?]["')]*\s+)((?i:what|whoever)|So that)\b`), "begin with the actor, not with What, Whoever or So that"},
	{"long", []kind{page}, longSentences(25), "at most 25 words in a sentence"},
	{"log-length", []kind{logged}, longSentences(6), "at most six words; data go into fields"},
	{"log-format", []kind{logged}, pattern(`(%[+#.\d]*[a-z])`), "a static message; data go into fields"},
	{"error-capital", []kind{failure}, pattern(`\A([A-Z][a-z]+)\b`, "Kafka", "Jaeger", "Docker", "Bazel", "Go"), "begin with a lower-case letter"},
	{"error-sentence", []kind{failure}, pattern(`([.!?;] [a-zA-Z]|\Athere (?:is|are|was|were)\b)`), "operation: cause, without sentences"},
	{"error-end", []kind{failure}, pattern(`([.!\n])\z`), "no punctuation at the end"},
	{"subject-length", []kind{subject}, func(text string) [][]int {
		if len([]rune(text)) <= 60 {
			return nil
		}
		return [][]int{{0, len(text)}}
	}, "at most 60 characters; the reason goes into the body"},
}

// words returns the rule against a term. A space in the pattern also matches a
// line break.
func words(id, term, instead string) rule {
	return rule{id, all, pattern(`(?i)\b(` + strings.ReplaceAll(term, " ", `\s+`) + `)\b`), instead}
}

// pattern finds the first group of an expression, unless it is one of the
// words to ignore.
func pattern(expression string, ignore ...string) func(string) [][]int {
	re := regexp.MustCompile(expression)
	return func(text string) (found [][]int) {
		for _, at := range re.FindAllStringSubmatchIndex(text, -1) {
			if !slices.Contains(ignore, text[at[2]:at[3]]) {
				found = append(found, at[2:4])
			}
		}
		return found
	}
}

var (
	sentenceEnd = regexp.MustCompile(`[.!?…]["')»*]*(\s+|$)`)
	word        = regexp.MustCompile(`[\pL\pN]\S*`)
)

// longSentences finds sentences of more words than the limit.
func longSentences(limit int) func(string) [][]int {
	return func(text string) (found [][]int) {
		from := 0
		for _, end := range append(sentenceEnd.FindAllStringIndex(text, -1), []int{len(text), len(text)}) {
			if n := len(word.FindAllString(text[from:end[0]], -1)); n > limit {
				found = append(found, []int{from, end[0]})
			}
			from = end[1]
		}
		return found
	}
}

// A finding is one place that breaks a rule.
type finding struct {
	file string
	line int
	rule rule
	text string
}

func (f finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %q: %s", f.file, f.line, f.rule.id, f.text, f.rule.advice)
}

// A piece is a text with its place in the tree.
type piece struct {
	file string
	line int // of its first byte
	kind kind
	text string
}

// check applies the rules to a piece.
func check(p piece) (found []finding) {
	for _, r := range rules {
		if !slices.Contains(r.kinds, p.kind) {
			continue
		}
		for _, at := range r.find(p.text) {
			quote := strings.Join(strings.Fields(p.text[at[0]:at[1]]), " ")
			if runes := []rune(quote); len(runes) > 60 {
				quote = string(runes[:60]) + "…"
			}
			found = append(found, finding{p.file, p.line + strings.Count(p.text[:at[0]], "\n"), r, quote})
		}
	}
	return found
}

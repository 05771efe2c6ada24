package main

import (
	"slices"
	"strings"
	"testing"
)

// Every rule reports its bad sample and accepts its good one.
func TestRules(t *testing.T) {
	samples := map[string]struct {
		kind      kind
		bad, good string
	}{
		"anew":           {comment, "It starts anew.", "It starts again."},
		"away":           {page, "The database is\naway.", "The database is unavailable, go right away."},
		"by-name":        {comment, "asked for by name", "asked for by the name of the host"},
		"error-capital":  {failure, "Connection refused", "Kafka of MS2: %w"},
		"error-end":      {failure, "connection refused.", "connect to ms2: %w"},
		"error-sentence": {failure, "not ready; try again", "%w; %w"},
		"folder":         {text, "in this folder", "in this directory"},
		"for-ever":       {comment, "It tries for ever.", "It retries indefinitely."},
		"found-expected": {text, "found %d, expected %d", "expected %d, found %d"},
		"in-words":       {comment, "the limits in words", "the limits as text"},
		"log-format":     {logged, "session %d ended", "session ended"},
		"log-length":     {logged, "a dead letter could not be written", "dead letter not written; will retry"},
		"long":           {page, strings.Repeat("word ", 26) + "end.", strings.Repeat("word ", 24) + "end. " + strings.Repeat("word ", 24)},
		"made-message":   {comment, "MS1 makes messages", "MS1 generates messages"},
		"mend":           {text, "mend it with bazel", "fix it with bazel; recommended; an amendment"},
		"round":          {comment, "a proxy hands it round", "a round of the session"},
		"say":            {comment, "It says which file.", "It reports the file; essay."},
		"sees":           {page, "what one sees", "what the user sees"},
		"start":          {comment, "It is full. What is dropped is counted.", "Nobody reports what is dropped. It waits so that it ends."},
		"subject-length": {subject, strings.Repeat("x", 61), strings.Repeat("ж", 60)},
		"told":           {comment, "a program that is told nothing", "the default configuration"},
		"under-way":      {comment, "messages under way", "messages in flight"},
		"whoever":        {page, "Whoever starts it", "The operator who starts it"},
	}
	for _, r := range rules {
		t.Run(r.id, func(t *testing.T) {
			s, ok := samples[r.id]
			if !ok {
				t.Fatal("got no sample")
			}
			if !slices.Contains(reported(piece{kind: s.kind, text: s.bad}), r.id) {
				t.Errorf("%q is accepted", s.bad)
			}
			if got := reported(piece{kind: s.kind, text: s.good}); slices.Contains(got, r.id) {
				t.Errorf("%q is reported", s.good)
			}
		})
	}
	if len(samples) != len(rules) {
		t.Errorf("got %d samples, want one for each of %d rules", len(samples), len(rules))
	}
}

func reported(p piece) (ids []string) {
	for _, f := range check(p) {
		ids = append(ids, f.rule.id)
	}
	return ids
}

// Texts are found with their lines and kinds; code and links are not text.
func TestPieces(t *testing.T) {
	for name, test := range map[string]struct {
		content string
		want    []string
	}{
		"x.go": {"package x\n\n// It begins\n// anew.\nvar a = `b\nanew`\n\nvar anew = errors.New(\"Bad\")\nvar c = l.Msg(\"a\" + b)\n\n//go:embed anew\n",
			[]string{"4 anew", "6 anew", "8 error-capital", "9 log-format"}},
		"x.md": {"# Anew\n\n`anew` [a](anew.md) is\nanew\n\n```sh\nanew\n```\n\n| what | `anew` | anew |\n- one\n- anew\n",
			[]string{"1 anew", "4 anew", "10 start", "10 anew", "12 anew"}},
		"x.yaml":                 {"# begin\n# anew\na: b # anew\ndescription: anew\n", []string{"2 anew", "3 anew", "4 anew"}},
		"x.sql":                  {"-- anew\nSELECT 'anew'\n", []string{"1 anew", "2 anew"}},
		"run":                    {"#!/usr/bin/env bash\n# What it does.\necho 'found a, expected b'\n", []string{"2 start", "3 found-expected"}},
		"LICENSE":                {"anew", nil},
		"docs/reference/http.md": {"anew", nil},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := pieces(name, test.content)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range all {
				for _, f := range check(p) {
					got = append(got, strings.TrimPrefix(strings.Join(strings.Split(f.String(), ": ")[:2], " "), name+":"))
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestExceptions(t *testing.T) {
	if n := strings.Count(exceptions, "\n"); n > 10 || n != len(parse(exceptions)) {
		t.Errorf("got %d lines of exceptions, want at most ten, each with files, rule and reason", n)
	}
	if _, ok := excepted(finding{file: ".ci/words/rules.go", rule: rules[0]}); !ok {
		t.Error("the rules are checked themselves")
	}
	if _, ok := excepted(finding{file: ".ci/run", rule: rules[0]}); ok {
		t.Error("the gate is not checked")
	}
}

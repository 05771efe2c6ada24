// Command words checks the language of comments, strings, pages and commit
// subjects: `go run ./.ci/words` in the root of the clone, or with the files
// to check. It prints a line for each finding and then exits 1.
//
// The file exceptions has a line for each rule that does not apply to a file,
// with the reason.
package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
)

//go:embed exceptions
var exceptions string

func main() {
	found, err := tree(os.Args[1:])
	for _, f := range found {
		fmt.Println(f)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "words:", err)
	}
	if err != nil || len(found) > 0 {
		os.Exit(1)
	}
}

// tree checks files, by default all that git tracks and the last ten commit
// subjects.
func tree(files []string) (found []finding, err error) {
	unused := map[exception]bool{}
	if len(files) == 0 {
		for _, e := range parse(exceptions) {
			unused[e] = true
		}
		if files, err = git("ls-files"); err != nil {
			return nil, err
		}
		subjects, err := git("log", "-10", "--no-merges", "--format=%s")
		if err != nil {
			return nil, err
		}
		for _, s := range subjects {
			found = append(found, check(piece{"commit", 1, subject, s})...)
		}
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted and not yet committed
		}
		if err != nil {
			return nil, err
		}
		all, err := pieces(file, string(content))
		if err != nil {
			return nil, err
		}
		for _, p := range all {
			for _, f := range check(p) {
				if e, ok := excepted(f); ok {
					delete(unused, e)
				} else {
					found = append(found, f)
				}
			}
		}
	}
	for e := range unused {
		err = errors.Join(err, fmt.Errorf("exceptions: no finding matches %s %s", e.files, e.rule))
	}
	return found, err
}

// git returns the lines that git prints.
func git(args ...string) ([]string, error) {
	out, err := exec.Command("git", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n"), nil
}

// An exception is a pattern of files, as path.Match takes it, and the rule
// that does not apply to them, or *.
type exception struct{ files, rule string }

func parse(lines string) (parsed []exception) {
	for line := range strings.Lines(lines) {
		if fields := strings.Fields(line); len(fields) > 1 {
			parsed = append(parsed, exception{fields[0], fields[1]})
		}
	}
	return parsed
}

func excepted(f finding) (exception, bool) {
	for _, e := range parse(exceptions) {
		if ok, _ := path.Match(e.files, f.file); ok && (e.rule == "*" || e.rule == f.rule.id) {
			return e, true
		}
	}
	return exception{}, false
}

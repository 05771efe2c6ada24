package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tricycle-relay/tricycle/lib/config"
)

func TestEnvironmentTakes(t *testing.T) {
	for name, c := range map[string]struct {
		environment []string
		want        func(*settings)
	}{
		"nothing":                      {nil, func(*settings) {}},
		"variables of others":          {[]string{"HOME=/root", "COUNT=7", "tricycle_count=7", "TRICYCLE=7", "=C:=C:\\"}, func(*settings) {}},
		"variables of the tests":       {[]string{"TRICYCLE_TEST_KAFKA=x"}, func(*settings) {}},
		"variables of compose":         {[]string{"TRICYCLE_VERSION=1.2.3", "TRICYCLE_MS1_PORT=18080"}, func(*settings) {}},
		"variables of a script":        {[]string{"TRICYCLE_BIN=bin", "TRICYCLE_REPO=."}, func(*settings) {}},
		"a whole number":               {[]string{"TRICYCLE_COUNT=7"}, func(s *settings) { s.Count = 7 }},
		"a key of an embedded struct":  {[]string{"TRICYCLE_NAME=x"}, func(s *settings) { s.Name = "x" }},
		"a key of a section":           {[]string{"TRICYCLE_SECTION_RATIO=0.25"}, func(s *settings) { s.Section.Ratio = 0.25 }},
		"a whole number as ratio":      {[]string{"TRICYCLE_SECTION_RATIO=1"}, func(s *settings) { s.Section.Ratio = 1 }},
		"a boolean":                    {[]string{"TRICYCLE_SECTION_ON=false"}, func(s *settings) { s.Section.On = false }},
		"a string as it is":            {[]string{`TRICYCLE_NAME= "5": #=é `}, func(s *settings) { s.Name = ` "5": #=é ` }},
		"a string that looks a number": {[]string{"TRICYCLE_NAME=5"}, func(s *settings) { s.Name = "5" }},
		"an empty string":              {[]string{"TRICYCLE_NAME="}, func(s *settings) { s.Name = "" }},
		"a list of one":                {[]string{"TRICYCLE_LIST=a:1"}, func(s *settings) { s.List = []string{"a:1"} }},
		"a list with commas":           {[]string{"TRICYCLE_LIST=a:1,b:2 , 3"}, func(s *settings) { s.List = []string{"a:1", "b:2", "3"} }},
		"an empty item, to be refused": {[]string{"TRICYCLE_LIST=a,"}, func(s *settings) { s.List = []string{"a", ""} }},
		"an empty list":                {[]string{"TRICYCLE_LIST="}, func(s *settings) { s.List = []string{} }},
		"the last of two":              {[]string{"TRICYCLE_COUNT=7", "TRICYCLE_COUNT=8"}, func(s *settings) { s.Count = 8 }},
	} {
		t.Run(name, func(t *testing.T) {
			got, want := defaults(), defaults()
			if _, err := config.Read(&got, c.environment, file(t, "")); err != nil {
				t.Fatal(err)
			}
			c.want(&want)
			same(t, got, want)
		})
	}
}

func TestEnvironmentRefuses(t *testing.T) {
	for assignment, want := range map[string]string{
		"TRICYCLE_CUONT=1":           "unknown variable TRICYCLE_CUONT, the nearest is TRICYCLE_COUNT",
		"TRICYCLE_RATIO=1":           "unknown variable TRICYCLE_RATIO",
		"TRICYCLE_SECTION_RATIOS=1":  "unknown variable TRICYCLE_SECTION_RATIOS, the nearest is TRICYCLE_SECTION_RATIO",
		"TRICYCLE_SECTION=1":         "unknown variable TRICYCLE_SECTION, the nearest is TRICYCLE_SECTION_ON",
		"TRICYCLE_Count=1":           "unknown variable TRICYCLE_Count, the nearest is TRICYCLE_COUNT",
		"TRICYCLE_=1":                "unknown variable TRICYCLE_",
		"TRICYCLE_COUNT=":            "TRICYCLE_COUNT: expected a whole number, found nothing",
		"TRICYCLE_COUNT=5s":          `TRICYCLE_COUNT: expected a whole number, found "5s"`,
		"TRICYCLE_COUNT=010":         "TRICYCLE_COUNT: expected a whole number without leading zeros, found 010",
		"TRICYCLE_COUNT=1.5":         "TRICYCLE_COUNT: expected a whole number, found 1.5",
		"TRICYCLE_COUNT=a\nb":        `TRICYCLE_COUNT: expected a whole number, found "a\nb"`,
		"TRICYCLE_COUNT=null":        "TRICYCLE_COUNT: expected a whole number, found nothing",
		"TRICYCLE_SECTION_ON=yes":    `TRICYCLE_SECTION_ON: expected true or false, found "yes"`,
		"TRICYCLE_SECTION_ON=1":      "TRICYCLE_SECTION_ON: expected true or false, found 1",
		"TRICYCLE_SECTION_RATIO=50%": `TRICYCLE_SECTION_RATIO: expected a number, found "50%"`,
		"TRICYCLE_NAME=\xff":         `TRICYCLE_NAME: expected UTF-8, found "\xff"`,
	} {
		s := defaults()
		_, err := config.Read(&s, []string{assignment})
		expect(t, err, "read configuration: "+want)
	}
	t.Run("each of several", func(t *testing.T) {
		s := defaults()
		_, err := config.Read(&s, []string{"TRICYCLE_CUONT=1", "TRICYCLE_BIG=x"})
		expect(t, err, "read configuration: unknown variable TRICYCLE_CUONT, the nearest is TRICYCLE_COUNT\nTRICYCLE_BIG: expected a whole number, found \"x\"")
	})
}

// TestPrint prints a configuration whose values come from everywhere, and reads
// what it has printed.
func TestPrint(t *testing.T) {
	s := defaults()
	path := file(t, "count: 7\nbig: 8\nsection: {ratio: 0.25}\nlist: []")
	sources, err := config.Read(&s, []string{"TRICYCLE_BIG=9", "TRICYCLE_OTHER_ON=true", "TRICYCLE_NAME=a # b"}, path)
	if err != nil {
		t.Fatal(err)
	}
	sources["listen"] = "flag -listen"
	var out strings.Builder
	if err := sources.Print(&out, &s); err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll(`listen: "" # flag -listen
name: 'a # b' # variable TRICYCLE_NAME
count: 7 # file PATH
big: 9 # variable TRICYCLE_BIG
list: [] # file PATH
section:
  ratio: 0.25 # file PATH
  on: true # default
other:
  ratio: 0 # default
  on: true # variable TRICYCLE_OTHER_ON
`, "PATH", path)
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	var again settings
	if err := read(&again, file(t, out.String())); err != nil {
		t.Error(err)
	}
	same(t, again, s)
}

// TestVariablesOfCompose: the variables of the Compose files may be set in the
// shell in which a program is started.
func TestVariablesOfCompose(t *testing.T) {
	var found []string
	files, err := filepath.Glob("../../compose/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`\$\{(TRICYCLE_\w+)`).FindAllStringSubmatch(string(text), -1) {
			found = append(found, match[1])
		}
	}
	if len(found) == 0 {
		t.Fatal("got no variable of Compose, want some")
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(found))) {
		s := defaults()
		if _, err := config.Read(&s, []string{name + "=x"}); err != nil {
			t.Error(err)
		}
	}
}

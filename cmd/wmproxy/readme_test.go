package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// readmeRow is one row of README.md's tables of flags.
type readmeRow struct{ names, defaults, text string }

var flagName = regexp.MustCompile(`--([a-z][a-z-]*)`)

// readmeRows returns the rows of the table of flags of a command.
func readmeRows(t *testing.T, command string) (rows []readmeRow) {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n### wmproxy "+command+"\n")
	section, _, _ = strings.Cut(section, "\n### ")
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "--") || strings.Contains(cells[1], "---") {
			continue
		}
		rows = append(rows, readmeRow{cells[1], cells[2], cells[3]})
	}
	return rows
}

func TestReadmeListsEveryFlag(t *testing.T) {
	p, _, _ := testProgram(nil)
	for _, command := range []*cli.Command{p.server(), p.client()} {
		var want, got []string
		defaults := make(map[string]string)
		for _, flag := range command.Flags {
			name := flag.Names()[0]
			want = append(want, name)
			switch f := flag.(type) {
			case *cli.DurationFlag:
				if f.Value > 0 {
					defaults[name] = strings.Replace(f.Value.String(), "m0s", "m", 1)
				}
			case *cli.StringFlag:
				defaults[name] = f.Value
			}
		}
		for _, row := range readmeRows(t, command.Name) {
			for _, match := range flagName.FindAllStringSubmatch(row.names, -1) {
				name := match[1]
				got = append(got, name)
				if d := defaults[name]; d != "" && !strings.Contains(row.defaults, "`"+d+"`") && !strings.Contains(row.text, "as above") {
					t.Errorf("wmproxy %s: the default of --%s is %s, and README.md says %q", command.Name, name, d, row.defaults)
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the flags of wmproxy %s (-) and their table in README.md (+): %s", command.Name, diff)
		}
	}
}

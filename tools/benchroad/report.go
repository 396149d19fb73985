//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"wmproxy/tools/stage"
)

// resultsDir is where the results and charts of a page are: docs/road for docs/ROAD.md.
func resultsDir(page string) string {
	name := strings.TrimSuffix(filepath.Base(page), filepath.Ext(page))
	return filepath.Join(filepath.Dir(page), strings.ToLower(name))
}

// save keeps the results beside the page, in the place of the path's earlier ones.
func (r *results) save(page string) error {
	dir := resultsDir(page)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Path+".json"), append(b, '\n'), 0o644)
}

// writePage writes the page and its charts from all results beside it.
func writePage(page string) error {
	dir := resultsDir(page)
	var b strings.Builder
	var all []*results
	for _, p := range paths {
		text, err := os.ReadFile(filepath.Join(dir, p.name+".json"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		r := new(results)
		if err := json.Unmarshal(text, r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		all = append(all, r)
	}
	b.WriteString(head)
	writeChecks(&b, all)
	for _, r := range all {
		p := pathOf(r.Path)
		chart := drawChart(p, r)
		if err := os.WriteFile(filepath.Join(dir, p.name+".svg"), []byte(chart), 0o644); err != nil {
			return err
		}
		r.write(&b, p, filepath.Base(dir)+"/"+p.name+".svg")
	}
	if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
		return err
	}
	say("written to %s", page)
	return nil
}

func pathOf(name string) path {
	return paths[slices.IndexFunc(paths, func(p path) bool { return p.name == name })]
}

const head = `# Over the road

Written by ` + "`make bench-road`" + `, which makes paths of network namespaces on one machine and runs
the same loads through each system in turn. Each path has a delay, a rate, a queue (100 ms of
its rate where nothing else is said), and losses that follow from a seed, so that all systems
meet the same ones. Rates count IP packets. Each system is started anew for each round, and
idle for a second before it. Figures are medians, the rounds in parentheses.

A call is 50 datagrams of 160 bytes a second, there and back. *In time* is within the path's
round trip and 250 ms. *Of the possible* is the share of those that can come back: what fits
into the rate, less the loss of both ways. Streams are measured after three seconds, datagrams
after two, calls alone after five. The bytes on the wire are those of both directions for each
byte of payload that was delivered. *cubic* and *bbr* are the kernel's congestion control at both ends of the
tunnel and at the target; what does not use TCP on the path is measured once.

†: do not trust it, the machine was busy: of the packets more than one in a hundred left the
path over 1 ms late, or more than one datagram in fifty could not be sent when it was due.
`

// writeChecks writes what the paths did by themselves.
func writeChecks(b *strings.Builder, all []*results) {
	b.WriteString("\n## The paths by themselves\n\n" +
		"What bare flows without any tunnel got, beside what was asked. *Late* is how much later than\n" +
		"due 99 of 100 packets left the path, at most, *CPU* the share of a processor that passing them\n" +
		"on took; †: here also that the path did not do what was asked.\n\n" +
		"| path | | asked | got | late | CPU | load average |\n| --- | --- | ---: | ---: | ---: | ---: | --- |\n")
	for _, r := range all {
		for _, c := range r.Checks {
			mark := ""
			if !c.passed() {
				mark = " †"
			}
			fmt.Fprintf(b, "| %s | %s | %s %s | %s%s | %v | %s %% | %s |\n",
				r.Path, c.Title, digits(c.Asked, 1), c.Unit, digits(c.Got, 1), mark, c.Late.Round(10*time.Microsecond), digits(100*c.Busy, 1), c.LoadAverage)
		}
	}
}

// write writes a path's chart and tables.
func (r *results) write(b *strings.Builder, p path, chart string) {
	fmt.Fprintf(b, "\n## %s: %s\n\n![%s](%s)\n\n", p.name, p.title, p.title, chart)
	fmt.Fprintf(b, "%s, %s of measuring, %d rounds of %v: `%s`.\n", r.Began.UTC().Format("2006-01-02 15:04 MST"), r.Took.Round(time.Second), r.Rounds, r.Duration, r.Command)
	for _, f := range r.Facts {
		fmt.Fprintf(b, "%s: %s.\n", f[0], f[1])
	}
	var notes []string
	for _, l := range loads {
		var cells []*cell
		for _, c := range r.Cells {
			if c.Load == l.name {
				cells = append(cells, c)
			}
		}
		if len(cells) > 0 {
			notes = append(notes, writeTable(b, l, cells)...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Absent)) {
		notes = append(notes, fmt.Sprintf("%s was not measured: %s", name, r.Absent[name]))
	}
	if len(notes) > 0 {
		b.WriteString("\n")
	}
	for _, note := range notes {
		fmt.Fprintf(b, "- %s\n", note)
	}
}

// writeTable writes the figures of a load and returns notes on them.
func writeTable(b *strings.Builder, l load, cells []*cell) (notes []string) {
	fmt.Fprintf(b, "\n| %s |", l.title)
	rule := "\n| --- |"
	for _, f := range l.figures {
		fmt.Fprintf(b, " %s |", strings.TrimSpace(f.title+" "+f.unit))
		rule += " ---: |"
	}
	b.WriteString(rule + "\n")
	for _, c := range sorted(cells) {
		mark := ""
		if c.spoiled() {
			mark = " †"
		}
		fmt.Fprintf(b, "| %s%s |", c.title(), mark)
		for i, f := range l.figures {
			fmt.Fprintf(b, " %s |", c.text(i, f))
		}
		b.WriteString("\n")
		if c.Failed != "" {
			notes = append(notes, fmt.Sprintf("%s, %s: after %d rounds %s", l.title, c.title(), len(c.Rounds), stage.OneLine(c.Failed)))
		}
	}
	return notes
}

// spoiled reports whether the machine was too busy for the rounds to count.
func (c *cell) spoiled() bool { return c.Late > trusted || c.Held > maxHeld }

// maxHeld is the share of the datagrams that a load may leave out because the machine held it up.
const maxHeld = 0.02

// sorted returns cells in the order of the systems.
func sorted(cells []*cell) []*cell {
	order := func(c *cell) int { return slices.Index(systemNames(), c.System) }
	cells = slices.Clone(cells)
	slices.SortStableFunc(cells, func(a, b *cell) int { return order(a) - order(b) })
	return cells
}

// title names the row.
func (r row) title() string {
	for _, s := range systems {
		if s.name == r.System {
			if s.tcp {
				return s.title + ", " + r.Congestion
			}
			return s.title
		}
	}
	return r.System
}

// text is a figure's median and rounds.
func (c *cell) text(figure int, f figure) string {
	if len(c.Rounds) == 0 {
		return "does not pass"
	}
	text := digits(number(c.median(figure)), f.digits)
	if len(c.Rounds) == 1 {
		return text
	}
	var rounds []string
	for _, v := range c.Rounds {
		rounds = append(rounds, digits(v[figure], f.digits))
	}
	return text + " (" + strings.Join(rounds, " ") + ")"
}

// text is the values of a round with their titles.
func (l load) text(v values) string {
	var all []string
	for i, f := range l.figures {
		all = append(all, strings.TrimSpace(f.title+" "+digits(v[i], f.digits)+" "+f.unit))
	}
	return strings.Join(all, ", ")
}

// digits writes a number with so many digits after the point.
func digits(v number, n int) string {
	if math.IsNaN(float64(v)) {
		return "–"
	}
	return strconv.FormatFloat(float64(v), 'f', n, 64)
}

// facts describe the machine and the programs.
func facts(ctx context.Context) [][2]string {
	f := [][2]string{
		{"wmproxy", stage.Revision(ctx)},
		{"Machine", fmt.Sprintf("%s, kernel %s, %s", stage.Machine(), stage.FileLine("/proc/sys/kernel/osrelease"), runtime.Version())},
	}
	for _, program := range []string{"hysteria", "sing-box", "ss-local"} {
		if v := stage.Version(ctx, program); v != "" {
			f = append(f, [2]string{program, v})
		}
	}
	return f
}

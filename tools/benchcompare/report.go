package main

import (
	"cmp"
	"context"
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

// write writes the report.
func (c *comparison) write(ctx context.Context) error {
	b := new(strings.Builder)
	c.head(ctx, b)
	for _, l := range loads {
		if c.measured(l) {
			c.table(b, l)
		}
	}
	c.notes(b)
	b.WriteString("\n" + handwritten(c.out))
	if c.out == "-" {
		_, err := os.Stdout.WriteString(b.String())
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.out), 0o755); err != nil {
		return err
	}
	c.logf("written to %s", c.out)
	return os.WriteFile(c.out, []byte(b.String()), 0o644)
}

// byHand is the first line of the part of the report that people write. That part stays when
// the rest is measured again.
const byHand = "<!-- What follows is written by hand and stays. -->\n"

// handwritten returns that part of the report at path.
func handwritten(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return byHand
	}
	_, after, _ := strings.Cut(string(b), byHand)
	return byHand + after
}

func (c *comparison) measured(l load) bool {
	for k := range c.cells {
		if k.load == l.name {
			return true
		}
	}
	return false
}

func (c *comparison) head(ctx context.Context, b *strings.Builder) {
	b.WriteString("# Benchmarks\n\n" +
		"Written by `make bench-compare`, which starts everything on this one machine, over\n" +
		"loopback, and runs the loads of `wmproxy bench` through each system in alternating\n" +
		"rounds. All figures are medians over the rounds; × is the multiple of shadowsocks-libev's\n" +
		"in the same column. One datagram is one round trip. CPU is that of the tunnel's two\n" +
		"processes together, user and system.\n\n" +
		"*shared*: all processes in one session, as started from one shell. *own*: each in its\n" +
		"own (`setsid`), as services are; with `sched_autogroup_enabled` = 1 every wake-up then\n" +
		"preempts more eagerly.\n\n")
	fact := func(name, format string, args ...any) {
		fmt.Fprintf(b, "| %s | %s |\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString("| | |\n| --- | --- |\n")
	fact("date", "%s, %s of measuring", c.began.UTC().Format("2006-01-02 15:04 MST"), time.Since(c.began).Round(time.Second))
	fact("command", "`%s`", c.command)
	fact("rounds", "%d of %v", c.rounds, c.duration)
	fact("wmproxy", "%s", c.revision)
	fact("Go", "%s %s/%s", runtime.Version(), runtime.GOOS, runtime.GOARCH)
	fact("machine", "%s", stage.Machine())
	fact("kernel", "%s, sched_autogroup_enabled = %s", stage.FileLine("/proc/sys/kernel/osrelease"), stage.FileLine("/proc/sys/kernel/sched_autogroup_enabled"))
	fact("TCP congestion control", "%s", stage.FileLine("/proc/sys/net/ipv4/tcp_congestion_control"))
	fact("load average at the end", "%s (other work on the machine shows here)", stage.FileLine("/proc/loadavg"))
	for _, s := range c.wanted() {
		for _, program := range s.programs {
			if v := stage.Version(ctx, program); v != "" {
				fact(program, "%s", v)
			}
		}
	}
	if c.partial {
		fact("incomplete", "the run was interrupted")
	}
}

// table writes a load's figures: a table for each arrangement with a row for each system.
func (c *comparison) table(b *strings.Builder, l load) {
	fmt.Fprintf(b, "\n## %s\n\n`wmproxy bench %s`\n", l.title, strings.Join(l.arguments(c.options), " "))
	for _, arrangement := range c.arrangements {
		fmt.Fprintf(b, "\n| %s |", arrangement)
		rule := "\n| --- |"
		for _, f := range l.figure {
			fmt.Fprintf(b, " %s |", strings.TrimSpace(f.title+" "+f.unit))
			rule += " ---: |"
		}
		b.WriteString(rule + "\n")
		for _, s := range c.all() {
			if ce := c.cells[key{arrangement, l.name, s.name}]; ce != nil {
				var against values
				if base := c.cells[key{arrangement, l.name, cmp.Or(s.base, baseline)}]; base != nil {
					against = base.medians(l)
				}
				fmt.Fprintf(b, "| %s |%s\n", s.title, ce.row(l, against))
			}
		}
	}
}

func (c *cell) row(l load, against values) string {
	m := c.medians(l)
	row := ""
	for i, f := range l.figure {
		row += " " + f.text(m[i])
		if f.ratio && i < len(against) {
			row += multiple(m[i], against[i])
		}
		row += " |"
	}
	if len(c.rounds) == 0 {
		return " does not pass" + strings.Repeat(" |", len(l.figure))
	}
	return row
}

// multiple formats v as a multiple of base.
func multiple(v, base float64) string {
	if math.IsNaN(v) || math.IsNaN(base) || base == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.2f×)", v/base)
}

// text formats a value with commas between thousands.
func (f figure) text(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	s := strconv.FormatFloat(v, 'f', f.digits, 64)
	point := strings.IndexByte(s+".", '.')
	for i := point - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// notes lists the systems and loads that were not measured, with the reasons.
func (c *comparison) notes(b *strings.Builder) {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(c.absent)) {
		lines = append(lines, fmt.Sprintf("- %s was not measured: %s", name, stage.OneLine(c.absent[name])))
	}
	for _, arrangement := range c.arrangements {
		for _, l := range loads {
			for _, s := range c.all() {
				if ce := c.cells[key{arrangement, l.name, s.name}]; ce != nil && ce.failed != "" {
					lines = append(lines, fmt.Sprintf("- %s, %s, %s: after %d rounds %s", arrangement, l.title, s.title, len(ce.rounds), stage.OneLine(ce.failed)))
				}
			}
		}
	}
	if len(lines) > 0 {
		b.WriteString("\n## Not measured\n\n" + strings.Join(lines, "\n") + "\n")
	}
}

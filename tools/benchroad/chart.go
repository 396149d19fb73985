//go:build linux

package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// panel is one column of a chart: a figure of a load.
type panel struct {
	load   string
	figure int
	title  [2]string // lines
	unit   string
	best   func(path) float64 // what the path itself allows, or does without a tunnel
	less   bool               // less is better
}

var panels = []panel{
	{"down1", 0, [2]string{"download,", "one stream"}, "Mbit/s", path.goodput, false},
	{"up1", 0, [2]string{"upload,", "one stream"}, "Mbit/s", path.goodput, false},
	{"half", 0, [2]string{"UDP at half rate,", "back in time"}, "%", func(p path) float64 { return 100 * p.roundTrips(0.5) }, false},
	{"call", 0, [2]string{"a call,", "lost"}, "%", func(p path) float64 { return 100 * (1 - p.roundTrips(0)) }, true},
	{"call-down", 2, [2]string{"beside a download,", "a call's p99"}, "ms", path.idle, true},
	{"over", 4, [2]string{"beside too much UDP,", "a call's p99"}, "ms", path.idle, true},
}

// idle is the round trip of a datagram on an idle path, in ms.
func (p path) idle() float64 { return milliseconds(p.rtt) }

// Sizes of a chart, in pixels.
const (
	chartName   = 210 // width of the systems' names
	chartPanel  = 150
	chartBar    = 92 // of a panel; the rest is for the figure
	chartRow    = 24
	chartTop    = 92
	chartBottom = 34
)

// Colours: ours, the others, no proxy, the path's bound.
const (
	colourOurs   = "#0b6e4f"
	colourOther  = "#9aa5b1"
	colourDirect = "#cbd2d9"
	colourBound  = "#c0392b"
)

// drawChart draws a path's chart: a row for each system, a column for each panel.
func drawChart(p path, r *results) string {
	var rows []row
	for _, c := range sorted(r.Cells) {
		if !slices.Contains(rows, c.row) && slices.ContainsFunc(panels, func(x panel) bool { return x.load == c.Load }) {
			rows = append(rows, c.row)
		}
	}
	var shown []panel
	for _, x := range panels {
		if slices.ContainsFunc(r.Cells, func(c *cell) bool { return c.Load == x.load && len(c.Rounds) > 0 }) {
			shown = append(shown, x)
		}
	}
	width, height := chartName+chartPanel*len(shown)+10, chartTop+chartRow*len(rows)+chartBottom
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="10" y="26" font-size="17" font-weight="bold">%s: %s</text>`+"\n", p.name, html.EscapeString(p.title))
	for i, row := range rows {
		y := chartTop + i*chartRow
		if i%2 == 0 {
			fmt.Fprintf(&b, `<rect x="0" y="%d" width="%d" height="%d" fill="#f5f7fa"/>`+"\n", y, width, chartRow)
		}
		weight := ""
		if row.System == "auto" {
			weight = ` font-weight="bold"`
		}
		fmt.Fprintf(&b, `<text x="10" y="%d"%s>%s</text>`+"\n", y+16, weight, html.EscapeString(row.title()))
	}
	for i, x := range shown {
		x.draw(&b, p, r, rows, chartName+i*chartPanel)
	}
	fmt.Fprintf(&b, `<text x="10" y="%d" font-size="11" fill="#52606d">medians of %d; the line: what the path itself allows; –: does not pass; no entry: not measured, as it does not depend on the kernel's congestion control</text>`+"\n", height-12, r.Rounds)
	b.WriteString("</svg>\n")
	return b.String()
}

// draw draws a panel at the pixel left.
func (x panel) draw(b *strings.Builder, p path, r *results, rows []row, left int) {
	best := x.best(p)
	most := best
	for _, row := range rows {
		if c := r.cellOf(x.load, row); c != nil && !math.IsNaN(c.median(x.figure)) {
			most = max(most, c.median(x.figure))
		}
	}
	better := "more is better"
	if x.less {
		better = "less is better"
	}
	if x.less && best > 0 {
		most = min(most, 5*best) // a bar that is longer is cut
	}
	for i, line := range []string{x.title[0], x.title[1]} {
		fmt.Fprintf(b, `<text x="%d" y="%d" font-weight="bold">%s</text>`+"\n", left, 50+14*i, html.EscapeString(line))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" font-size="11" fill="#52606d">%s, %s</text>`+"\n", left, 79, x.unit, better)
	for i, row := range rows {
		x.bar(b, row, r.cellOf(x.load, row), most, left, chartTop+i*chartRow)
	}
	if most > 0 {
		at := float64(left) + best/most*chartBar
		fmt.Fprintf(b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="%s" stroke-width="1.5"/>`+"\n", at, chartTop-3, at, chartTop+len(rows)*chartRow, colourBound)
	}
	for i, row := range rows {
		if c := r.cellOf(x.load, row); c != nil {
			x.label(b, c, most, left, chartTop+i*chartRow)
		}
	}
}

// bar draws what a row reached; nothing if it was not measured.
func (x panel) bar(b *strings.Builder, of row, c *cell, most float64, left, y int) {
	if c == nil || math.IsNaN(c.median(x.figure)) {
		return
	}
	length := barLength(c.median(x.figure), most)
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="14" fill="%s"/>`+"\n", left, y+5, max(length, 1), of.colour())
	if c.median(x.figure) > most { // it goes on
		fmt.Fprintf(b, `<path d="M%.1f %d l-4 16 M%.1f %d l-4 16" stroke="white" stroke-width="2"/>`+"\n", float64(left)+length-8, y+4, float64(left)+length-13, y+4)
	}
}

// label writes the figure beside the bar, over the line of the bound.
func (x panel) label(b *strings.Builder, c *cell, most float64, left, y int) {
	v, text, at := c.median(x.figure), "–", float64(left)
	if !math.IsNaN(v) {
		text, at = short(v), at+barLength(v, most)+4
	}
	fmt.Fprintf(b, `<text x="%.1f" y="%d" stroke="white" stroke-width="3" paint-order="stroke">%s</text>`+"\n", at, y+16, text)
}

func barLength(v, most float64) float64 {
	if most <= 0 {
		return 0
	}
	return min(v/most, 1) * chartBar
}

// cellOf is what a row did with a load, nil if it was not measured.
func (r *results) cellOf(load string, of row) *cell {
	i := slices.IndexFunc(r.Cells, func(c *cell) bool { return c.Load == load && c.row == of })
	if i < 0 {
		return nil
	}
	return r.Cells[i]
}

// colour tells ours from the others.
func (r row) colour() string {
	switch r.System {
	case "auto", "quic", "yamux":
		return colourOurs
	case direct:
		return colourDirect
	}
	return colourOther
}

// short writes a value with two or three digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2g", v)
}

package bench

import (
	"fmt"
	"io"
	"strconv"
	"time"
)

// progressEvery is how often the line is written.
const progressEvery = 200 * time.Millisecond

// progress is one line on a terminal that is written over and over.
type progress struct {
	out   io.Writer // nil: none
	began time.Time
	last  time.Time
}

func newProgress(out io.Writer) *progress {
	now := time.Now()
	return &progress{out: out, began: now, last: now}
}

// eraseLine returns to the line's start and clears it (ECMA-48 EL).
const eraseLine = "\r\x1b[K"

// show writes the line that text makes, if it is time for one.
func (p *progress) show(text func() string) {
	if p.out == nil || time.Since(p.last) < progressEvery {
		return
	}
	p.last = time.Now()
	fmt.Fprint(p.out, eraseLine, text())
}

func (p *progress) clear() {
	if p.out != nil {
		fmt.Fprint(p.out, eraseLine)
	}
}

// grouped writes n with commas between groups of three digits.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	first := 0
	if n < 0 {
		first = 1
	}
	for i := len(s) - 3; i > first; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// microseconds writes a time in the unit that suits it.
func microseconds(us float64) string {
	switch {
	case us >= 1e6:
		return fmt.Sprintf("%.2f s", us/1e6)
	case us >= 10_000:
		return fmt.Sprintf("%.1f ms", us/1e3)
	case us >= 1000:
		return fmt.Sprintf("%.2f ms", us/1e3)
	}
	return fmt.Sprintf("%.0f µs", us)
}

package bench

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize"
)

// progressEvery is the interval at which the line is written.
const progressEvery = 200 * time.Millisecond

// progress is a line on a terminal that is overwritten again and again.
type progress struct {
	out   io.Writer // may be nil
	began time.Time
	last  time.Time
}

func newProgress(out io.Writer) *progress {
	now := time.Now()
	return &progress{out: out, began: now, last: now}
}

// eraseLine moves to the start of the line and clears it (ECMA-48 EL).
const eraseLine = "\r\x1b[K"

// show writes the line that text returns, unless it has written one just before.
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

// watch ends the recorder's intervals and shows the progress until ctx ends. text returns the
// part of the line after the time.
func (c *Common) watch(ctx context.Context, r *recorder, text func(p Point, rate string) string) {
	interval := max(c.Duration/points, 10*time.Millisecond)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	line := newProgress(c.Progress)
	defer line.clear()
	for {
		select {
		case <-tick.C:
			p := r.endInterval()
			line.show(func() string {
				rate := humanize.Comma(int64(float64(p.RoundTrips) / interval.Seconds()))
				return fmt.Sprintf("%s of %s · %s", time.Since(line.began).Round(100*time.Millisecond), c.Duration, text(p, rate))
			})
		case <-ctx.Done():
			return
		}
	}
}

// microseconds formats a time in a unit that suits it.
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

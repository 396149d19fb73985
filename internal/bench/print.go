package bench

import (
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/guptarohit/asciigraph"
)

func (o Outcome) head(b *strings.Builder, load string) {
	fmt.Fprintf(b, "%s · %s · %s · %.2f s", o.Way, o.Target, load, o.Seconds)
	if o.Interrupted {
		b.WriteString(" · interrupted")
	}
	b.WriteString("\n\n")
}

func (o Outcome) processes(b *strings.Builder) {
	for _, u := range o.Processes {
		row(b, "process", "%s (%d): %.2f CPU-s, RSS %.1f MiB%s", u.Name, u.PID, u.CPUSeconds, mebibytes(u.RSS), pss(u))
	}
	row(b, "bench itself", "%.2f CPU-s", o.OwnCPU)
}

func pss(u Usage) string {
	if u.PSS == 0 {
		return ""
	}
	return fmt.Sprintf(", PSS %.1f MiB", mebibytes(u.PSS))
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

// row writes a name and its value.
func row(b *strings.Builder, name, format string, args ...any) {
	fmt.Fprintf(b, "%-14s %s\n", name, fmt.Sprintf(format, args...))
}

const chartHeight = 8

// chart draws the latency over the time of the run.
func chart(b *strings.Builder, series []Point, name string) {
	var p50, p99 []float64
	for _, p := range series {
		if p.RoundTrips > 0 {
			p50, p99 = append(p50, p.P50/1e3), append(p99, p.P99/1e3)
		}
	}
	if len(p50) < 2 {
		return
	}
	b.WriteString("\n" + asciigraph.PlotMany([][]float64{p99, p50},
		asciigraph.Height(chartHeight), asciigraph.LowerBound(0), asciigraph.Precision(2),
		asciigraph.SeriesChars(asciigraph.CreateCharSet("·"), asciigraph.DefaultCharSet),
		asciigraph.Caption(name+" in ms over the run: line p50, dots p99")) + "\n")
}

// Print writes the result for people.
func (r TCPResult) Print(out io.Writer) error {
	b := new(strings.Builder)
	r.head(b, fmt.Sprintf("%d streams each way that is used", r.Streams))
	if r.UpBytes > 0 {
		row(b, "up", "%.2f Gbit/s  (%s MB)", r.UpGbit, humanize.Comma(r.UpBytes/1e6))
	}
	if r.DownBytes > 0 {
		row(b, "down", "%.2f Gbit/s  (%s MB)", r.DownGbit, humanize.Comma(r.DownBytes/1e6))
	}
	if r.Broken > 0 {
		row(b, "note", "%d streams ended before their time", r.Broken)
	}
	if len(r.Processes) > 0 {
		row(b, "CPU", "%.2f s per GB", r.CPUPerGB)
		r.processes(b)
	}
	if len(r.Series) > 1 {
		b.WriteString("\n" + asciigraph.Plot(r.Series, asciigraph.Height(chartHeight), asciigraph.LowerBound(0),
			asciigraph.Precision(2), asciigraph.Caption("Gbit/s over the run")) + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// Print writes the result for people.
func (r ChurnResult) Print(out io.Writer) error {
	b := new(strings.Builder)
	r.head(b, fmt.Sprintf("%d associations at a time, %d B", r.Workers, r.Size))
	row(b, "associations/s", "%s  (%s in all, opened, used once and closed)", humanize.Comma(int64(r.PerSecond)), humanize.Comma(r.Done))
	row(b, "life", "p50 %s · p90 %s · p99 %s · max %s", microseconds(r.Life.P50), microseconds(r.Life.P90), microseconds(r.Life.P99), microseconds(r.Life.Max))
	if r.Again > 0 {
		row(b, "note", "%s datagrams had to be sent again", humanize.Comma(r.Again))
	}
	if r.Failed > 0 {
		row(b, "note", "%s failed; the first: %s", humanize.Comma(r.Failed), r.Reason)
	}
	if len(r.Processes) > 0 {
		row(b, "CPU", "%.3f ms per association", r.CPUMillis)
		r.processes(b)
	}
	chart(b, r.Series, "life")
	_, err := io.WriteString(out, b.String())
	return err
}

// Print writes the result for people.
func (r HoldResult) Print(out io.Writer) error {
	b := new(strings.Builder)
	r.head(b, fmt.Sprintf("%s associations, %d B", humanize.Comma(int64(r.Associations)), r.Size))
	row(b, "opened", "%s in %.2f s, of which %s answered", humanize.Comma(r.Opened), r.OpenSeconds, humanize.Comma(r.First))
	row(b, "at the end", "%s answered once more, %d had been ended by the server", humanize.Comma(r.Again), r.Ended)
	if r.Reason != "" {
		row(b, "note", "the first failure: %s", r.Reason)
	}
	if r.Before.RSS > 0 {
		row(b, "memory", "RSS %.1f MiB before, %.1f held, %.1f after (%.0f %% of before)",
			mebibytes(r.Before.RSS), mebibytes(r.Held.RSS), mebibytes(r.After.RSS), r.AfterOf)
		if r.Before.PSS > 0 {
			row(b, "", "PSS %.1f MiB before, %.1f held, %.1f after", mebibytes(r.Before.PSS), mebibytes(r.Held.PSS), mebibytes(r.After.PSS))
		}
		row(b, "each", "%.1f KiB of RSS, %.1f of PSS", r.PerRSS/1024, r.PerPSS/1024)
		r.processes(b)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

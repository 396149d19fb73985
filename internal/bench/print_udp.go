package bench

import (
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
)

// Print writes the result for people.
func (r UDPResult) Print(out io.Writer) error {
	b := new(strings.Builder)
	load := fmt.Sprintf("%d associations × %d in flight", r.Associations, r.Window)
	if r.Rate > 0 {
		load = fmt.Sprintf("%s datagrams/s over %d associations", humanize.Comma(int64(r.Rate)), r.Associations)
	}
	r.head(b, fmt.Sprintf("%d B, %s", r.Size, load))
	row(b, "round trips/s", "%s  (%.1f Mbit/s each way)", humanize.Comma(int64(r.PerSecond)), r.Mbit)
	row(b, "datagrams", "%s sent, %s back, %s lost (%.3f %%)", humanize.Comma(r.Sent), humanize.Comma(r.InTime), humanize.Comma(r.Lost), r.LossPercent)
	row(b, "order", "%s reordered, %s duplicates, %s late", humanize.Comma(r.Reordered), humanize.Comma(r.Duplicate), humanize.Comma(r.Late))
	row(b, "RTT", "p50 %s · p90 %s · p99 %s · p99.9 %s · max %s", microseconds(r.RTT.P50), microseconds(r.RTT.P90),
		microseconds(r.RTT.P99), microseconds(r.RTT.P999), microseconds(r.RTT.Max))
	r.remarks(b)
	if len(r.Processes) > 0 {
		row(b, "CPU", "%.1f s per million round trips", r.CPUPerMillion)
		r.processes(b)
	}
	chart(b, r.Series, "RTT")
	_, err := io.WriteString(out, b.String())
	return err
}

// remarks writes a note for each kind of datagram or association that should not occur.
func (r UDPResult) remarks(b *strings.Builder) {
	for _, remark := range []struct {
		n    int64
		text string
	}{
		{r.Unsent, "were never sent: this machine had no room for them in its socket buffers"},
		{r.Skipped, "were not sent in time: this machine is too busy for the rate"},
		{r.Alien, "came that were none of ours, or of another size"},
		{int64(r.Ended), "associations were ended by the server"},
	} {
		if remark.n > 0 {
			row(b, "note", "%s %s", humanize.Comma(remark.n), remark.text)
		}
	}
}

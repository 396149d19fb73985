package probe

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"wmproxy/socks"
)

// Targets are the targets of Measure and the loads for them.
type Targets struct {
	Echo   socks.Addr // UDP and TCP
	DNS    socks.Addr
	Domain string     // a name that the DNS server knows
	Expect netip.Addr // its expected address; invalid to accept any

	Sizes  []int // bytes of payload of the datagrams
	Stream int64 // bytes there and back
}

// Measurement is the results for a SOCKS5 server.
type Measurement struct {
	Label  string // for the first column
	Sizes  []SizeResult
	Lookup LookupResult
	Stream StreamResult
	Err    error // of Sizes
}

// OK reports whether everything passed.
func (m Measurement) OK() bool {
	for _, r := range m.Sizes {
		if !r.OK() {
			return false
		}
	}
	return m.Err == nil && m.Lookup.Err == nil && m.Stream.Err == nil
}

// Measure sends datagrams of each size, a DNS query and a stream through the client's
// server. It tries all of them even if one fails.
func Measure(ctx context.Context, label string, client *socks.Client, t Targets) Measurement {
	m := Measurement{Label: label}
	m.Sizes, m.Err = Sizes(ctx, client, t.Echo, t.Sizes)
	m.Lookup = lookup(ctx, client, t.DNS, t.Domain, t.Expect)
	m.Stream = Stream(ctx, client, t.Echo, t.Stream)
	return m
}

// PrintTable prints the measurements, with a line for each size of datagrams, look-up
// and stream. Times are round trips.
func PrintTable(out io.Writer, ms ...Measurement) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "over\twhat\tpassed\tfastest\tmedian\t")
	for _, m := range ms {
		for _, r := range m.Sizes {
			fmt.Fprintf(w, "%s\tdatagram, %s bytes\t%d of %d\t%s\t%s\t%s\n", m.Label, humanize.Comma(int64(r.Size)),
				r.Received, r.Sent, milliseconds(r.Min), milliseconds(r.Median), note(r.Err))
		}
		if m.Err != nil {
			fmt.Fprintf(w, "%s\tdatagrams\tno\t\t\t%s\n", m.Label, note(m.Err))
		}
		answer := "DNS look-up"
		if len(m.Lookup.Addrs) > 0 {
			answer += fmt.Sprintf(", %v", m.Lookup.Addrs[0])
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\t%s\n", m.Label, answer,
			yes(m.Lookup.Err), milliseconds(m.Lookup.RTT), note(m.Lookup.Err))
		fmt.Fprintf(w, "%s\tstream, %s bytes\t%s\t%s\t\t%s\n", m.Label, humanize.Comma(m.Stream.Bytes),
			yes(m.Stream.Err), milliseconds(m.Stream.Duration), m.Stream.note())
	}
	return w.Flush()
}

func (r StreamResult) note() string {
	if r.Err != nil || r.Duration <= 0 {
		return note(r.Err)
	}
	return fmt.Sprintf("%.0f MB/s there and back", float64(r.Bytes)/r.Duration.Seconds()/1e6)
}

func note(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func yes(err error) string {
	if err != nil {
		return "no"
	}
	return "yes"
}

// milliseconds formats a duration in hundredths of a millisecond, or 0 as a dash.
func milliseconds(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

package status

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"

	"wmproxy/internal/stats"
)

// maxRows bounds the rows of a table for people.
const maxRows = 20

// WriteText writes the report as text for people.
func (r *Report) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	t := &text{Writer: b}
	entrance := "SOCKS5"
	if r.Role == Server {
		entrance = "clients"
	}
	t.linef("%s %d, up %s, %s on %s", r.Role, r.PID, span(r.At.Sub(r.Started).Seconds()), entrance, r.Listen)
	if m := r.Memory; m != nil {
		t.linef("%s of %s of memory held for peers, %d streams and connections reset for it",
			humanize.IBytes(uint64(m.Used)), humanize.IBytes(uint64(m.Limit)), m.Resets)
	}
	if n := &r.Total; n.Up.Datagrams+n.Down.Datagrams+n.StreamBytesUp+n.StreamBytesDown > 0 {
		t.linef("since the start: datagrams %s up, %s down; streams %s up, %s down", traffic(n.Up), traffic(n.Down), size(n.StreamBytesUp), size(n.StreamBytesDown))
	}
	for i := range r.Sessions[:min(len(r.Sessions), maxRows)] {
		t.session(&r.Sessions[i], r.SessionsTotal > 1)
	}
	t.more(r.SessionsTotal, "sessions")
	if r.AssociationsTotal > 0 {
		t.associations(r)
	}
	if len(r.Events) > 0 {
		t.linef("\nevents:")
		for _, e := range r.Events {
			t.linef("  %s %s", e.At.Format(time.TimeOnly), e.What)
		}
	}
	return b.Flush()
}

// text writes lines. Its writer keeps the first error.
type text struct{ io.Writer }

// linef writes one line without control characters, because it may quote a peer.
func (t *text) linef(format string, args ...any) {
	line := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, fmt.Sprintf(format, args...))
	fmt.Fprintln(t, line)
}

func (t *text) more(total int, what string) {
	if total > maxRows {
		t.linef("\nand %d %s more, see --json", total-maxRows, what)
	}
}

func (t *text) session(s *Session, several bool) {
	name := "session " + s.ID
	if s.Server != "" {
		name += " with " + s.Server
	}
	if s.User != "" {
		name += " as " + s.User
	}
	t.linef("\n%s, %s old: %d associations, %d streams", name, span(s.AgeSeconds), s.Associations, s.OpenStreams)
	if s.Preferred && several {
		t.linef("  new associations and streams go here")
	}
	if s.Leaving {
		t.linef("  the server is about to stop")
	}
	if !s.Attached {
		t.linef("  nothing has been attached for %s", span(s.DetachedSeconds))
	}
	if s.State != "" && (!strings.HasPrefix(s.State, "tunnel up") || strings.Contains(s.State, "; without ")) {
		t.linef("  %s", s.State)
	}
	if s.Attached {
		t.linef("  datagrams over %s (%s), new streams over %s (%s)", s.Datagrams.name(), s.Datagrams.Why, s.Streams.name(), s.Streams.Why)
		t.carriers(s.Carriers)
	}
	if len(s.Drops) > 0 {
		t.linef("  dropped: %s", reasons(s.Drops))
	}
}

func (c Choice) name() string {
	if c.Carrier == 0 {
		return "nothing"
	}
	return fmt.Sprintf("%s %d", c.Transport, c.Carrier)
}

func (t *text) carriers(carriers []Carrier) {
	table := t.table()
	table.linef("  CARRIER\tADDRESS\tAGE\tHEARD\tRTT\tLOSS\tUP\tDOWN\tSTREAMS\tHEALTH")
	for _, c := range carriers {
		health := c.Health
		if c.Reason != "" {
			health += ": " + c.Reason
		}
		if c.Congestion != "" {
			health += ", congestion control " + c.Congestion
		}
		if c.SmallSegments {
			health += ", in small segments: nothing came back with larger ones"
		}
		table.linef("  %s %d\t%s\t%s\t%s ago\t%s\t%s\t%s\t%s\t%d\t%s", c.Transport, c.Number, c.Remote, span(c.AgeSeconds), span(c.HeardSeconds),
			c.rtt(), c.loss(), size(c.BytesUp), size(c.BytesDown), c.OpenStreams, health)
	}
	table.end()
}

func (c *Carrier) rtt() string {
	if c.RTTMillis == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", c.RTTMillis)
}

// loss returns the recent loss as measured by the client, or else the loss of what this
// side has sent, as counted by the transport since the beginning.
func (c *Carrier) loss() string {
	share := 0.0
	switch {
	case c.Loss != nil:
		share = *c.Loss
	case c.PacketsUp > 0:
		share = float64(c.PacketsLost) / float64(c.PacketsUp)
	default:
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*share)
}

func (t *text) associations(r *Report) {
	t.linef("\n%d associations:", r.AssociationsTotal)
	table := t.table()
	exits := slices.ContainsFunc(r.Associations, func(a Association) bool { return a.Exit != "" })
	clients := slices.ContainsFunc(r.Associations, func(a Association) bool { return a.Client != "" })
	row := func(client, exit string, cells ...string) {
		if exits {
			cells = append([]string{exit}, cells...)
		}
		if clients {
			cells = append([]string{client}, cells...)
		}
		table.linef("  %s", strings.Join(cells, "\t"))
	}
	row("CLIENT", "EXIT", "USER", "AGE", "UP", "DOWN", "DROPPED")
	for i := range r.Associations[:min(len(r.Associations), maxRows)] {
		a := &r.Associations[i]
		row(a.Client, a.Exit, orDash(a.User), span(a.AgeSeconds), traffic(a.Up), traffic(a.Down), orDash(reasons(a.Drops)))
	}
	table.end()
	t.more(r.AssociationsTotal, "associations")
}

func traffic(t stats.Traffic) string { return fmt.Sprintf("%d (%s)", t.Datagrams, size(t.Bytes)) }

// orDash returns s, or a dash if it is empty.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// table is text with columns that are separated by tabs.
type table struct {
	text
	w *tabwriter.Writer
}

func (t *text) table() *table {
	w := tabwriter.NewWriter(t.Writer, 0, 0, 2, ' ', 0)
	return &table{text{w}, w}
}

func (t *table) end() { _ = t.w.Flush() } // the writer keeps the error

// reasons returns a list of counts by reason, most frequent first.
func reasons(drops map[string]uint64) string {
	keys := slices.SortedFunc(maps.Keys(drops), func(a, b string) int {
		return cmp.Or(cmp.Compare(drops[b], drops[a]), cmp.Compare(a, b))
	})
	for i, key := range keys {
		keys[i] = fmt.Sprintf("%s %d", key, drops[key])
	}
	return strings.Join(keys, ", ")
}

// span formats a time in seconds for people.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// size formats a number of bytes for people.
func size(n uint64) string {
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

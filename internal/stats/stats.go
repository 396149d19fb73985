// Package stats counts datagrams, bytes and drops. A count is an atomic addition, to the
// owner's counter and to the totals that it belongs to: these outlive their owners.
package stats

import (
	"log/slog"
	"sync/atomic"
)

// Drops counts, by reason, datagrams that went no further. The zero value works. It
// takes memory from its first count on, as most owners drop nothing.
type Drops struct {
	total  *Drops // nil: none
	counts atomic.Pointer[[numReasons]atomic.Uint64]
}

// In makes d's counts count in total too. It is called before the first.
func (d *Drops) In(total *Drops) { d.total = total }

// Drop counts n datagrams and returns how many were dropped for this reason before.
func (d *Drops) Drop(why Reason, n int) (before uint64) {
	counts := d.counts.Load()
	if counts == nil {
		d.counts.CompareAndSwap(nil, new([numReasons]atomic.Uint64))
		counts = d.counts.Load()
	}
	if d.total != nil {
		d.total.Drop(why, n)
	}
	return counts[why].Add(uint64(n)) - uint64(n)
}

// Dropped returns the counts so far.
func (d *Drops) Dropped() (by Dropped) {
	if counts := d.counts.Load(); counts != nil {
		for i := range counts {
			by[i] = counts[i].Load()
		}
	}
	return by
}

// Dropped is the counts of a Drops at one moment, by Reason.
type Dropped [numReasons]uint64

// Add adds other's counts.
func (d *Dropped) Add(other Dropped) {
	for i, n := range other {
		d[i] += n
	}
}

// ByReason returns the reasons that occurred, by name; nil if none did.
func (d *Dropped) ByReason() (by map[string]uint64) {
	for r, n := range d {
		if n == 0 {
			continue
		}
		if by == nil {
			by = make(map[string]uint64)
		}
		by[Reason(r).String()] = n
	}
	return by
}

// Traffic is the datagrams that passed in one direction, and the bytes of their payloads.
type Traffic struct {
	Datagrams uint64 `json:"datagrams"`
	Bytes     uint64 `json:"bytes"`
}

// Datagrams counts the datagrams of one owner. The zero value works.
type Datagrams struct {
	Drops
	total                    *Total // nil: none
	upDatagrams, upBytes     atomic.Uint64
	downDatagrams, downBytes atomic.Uint64
}

// In makes c's counts count in t too. It is called before the first.
func (c *Datagrams) In(t *Total) {
	c.total = t
	c.Drops.In(&t.Drops)
}

// Up counts datagrams that passed towards the target.
func (c *Datagrams) Up(datagrams, bytes int) {
	c.upDatagrams.Add(uint64(datagrams))
	c.upBytes.Add(uint64(bytes))
	if c.total != nil {
		c.total.Up(datagrams, bytes)
	}
}

// Down counts datagrams that passed towards the application.
func (c *Datagrams) Down(datagrams, bytes int) {
	c.downDatagrams.Add(uint64(datagrams))
	c.downBytes.Add(uint64(bytes))
	if c.total != nil {
		c.total.Down(datagrams, bytes)
	}
}

// Snapshot reads each counter once: together they are not one moment.
func (c *Datagrams) Snapshot() Snapshot {
	return Snapshot{
		Up:    Traffic{c.upDatagrams.Load(), c.upBytes.Load()},
		Down:  Traffic{c.downDatagrams.Load(), c.downBytes.Load()},
		Drops: c.Dropped(),
	}
}

// Snapshot is the counts of a Datagrams at one moment.
type Snapshot struct {
	Up, Down Traffic
	Drops    Dropped
}

// Attrs returns s for a line in the log, with the drops that occurred.
func (s *Snapshot) Attrs() []slog.Attr {
	attrs := []slog.Attr{
		slog.Uint64("up_datagrams", s.Up.Datagrams), slog.Uint64("up_bytes", s.Up.Bytes),
		slog.Uint64("down_datagrams", s.Down.Datagrams), slog.Uint64("down_bytes", s.Down.Bytes),
	}
	var drops []any
	for r, n := range s.Drops {
		if n > 0 {
			drops = append(drops, slog.Uint64(Reason(r).String(), n))
		}
	}
	if drops != nil {
		attrs = append(attrs, slog.Group("drops", drops...))
	}
	return attrs
}

// Total counts all that passed for a user or a process, streams included. The zero
// value works.
type Total struct {
	Datagrams
	streamUp, streamDown atomic.Uint64
}

// StreamUp counts bytes of a stream that passed towards the target.
func (t *Total) StreamUp(bytes int) {
	t.streamUp.Add(uint64(bytes))
	if t.total != nil {
		t.total.StreamUp(bytes)
	}
}

// StreamDown counts bytes of a stream that passed towards the application.
func (t *Total) StreamDown(bytes int) {
	t.streamDown.Add(uint64(bytes))
	if t.total != nil {
		t.total.StreamDown(bytes)
	}
}

// Streams returns the bytes of streams so far.
func (t *Total) Streams() (up, down uint64) { return t.streamUp.Load(), t.streamDown.Load() }

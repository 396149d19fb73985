package egress

import (
	"log/slog"
	"sync/atomic"

	"wmproxy/tunnel"
)

// Drop is a reason for which a datagram went no further.
type Drop uint8

// The reasons. Up is towards the target, down towards the client.
const (
	DropMalformed  Drop = iota // up: no valid address before the payload
	DropPort                   // up: port 0
	DropPolicy                 // up: the policy refuses the destination
	DropUnresolved             // up: the name has no address, or none in time
	DropWaiting                // up: too much waits for names
	DropNames                  // up: too many names at once
	DropSend                   // up: the system did not take it: no route, too large, buffer full
	DropSource                 // down: the policy refuses the source
	DropFiltered               // down: from somewhere the flow has not sent to
	DropEnded                  // up: the flow had ended
	DropRoom                   // up: others have the flow's socket, and there is no other
	numDrops
)

var dropNames = [numDrops]string{
	"malformed", "port zero", "policy", "unresolved", "waiting", "names", "send", "source", "filtered", "ended", "no room",
}

func (d Drop) String() string { return dropNames[d] }

// Stats is what flows have passed and dropped. Bytes are payload alone.
type Stats struct {
	Flows                    int // open now
	UpDatagrams, UpBytes     uint64
	DownDatagrams, DownBytes uint64
	Drops                    [numDrops]uint64 // by Drop
}

func (s *Stats) add(t Stats) {
	s.UpDatagrams += t.UpDatagrams
	s.UpBytes += t.UpBytes
	s.DownDatagrams += t.DownDatagrams
	s.DownBytes += t.DownBytes
	for i, n := range t.Drops {
		s.Drops[i] += n
	}
}

// dropsByReason is the drops that occurred, by name; nil where none did.
func (s *Stats) dropsByReason() (m map[string]uint64) {
	for i, n := range s.Drops {
		if n > 0 {
			if m == nil {
				m = make(map[string]uint64)
			}
			m[Drop(i).String()] = n
		}
	}
	return m
}

// attrs is s as a line in a log, with what the tunnel's queue dropped: drops only
// where there are any.
func (s *Stats) attrs(queue tunnel.Drops) []any {
	as := []any{
		"up_datagrams", s.UpDatagrams, "up_bytes", s.UpBytes,
		"down_datagrams", s.DownDatagrams, "down_bytes", s.DownBytes,
	}
	drops := queue.Attrs()
	for i, n := range s.Drops {
		if n > 0 {
			drops = append(drops, slog.Uint64(Drop(i).String(), n))
		}
	}
	if len(drops) > 0 {
		as = append(as, slog.Group("drops", drops...))
	}
	return as
}

// Stats sums up all flows, of now and of the past.
func (e *Exits) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.past
	for f := range e.flows {
		s.add(f.counts.snapshot())
	}
	s.Flows = len(e.flows)
	return s
}

// counters are a flow's Stats while it lives.
type counters struct {
	upDatagrams, upBytes     atomic.Uint64
	downDatagrams, downBytes atomic.Uint64
	drops                    [numDrops]atomic.Uint32 // one flow does not drop 2^32
}

func (c *counters) drop(d Drop, n int) { c.drops[d].Add(uint32(n)) }

func (c *counters) snapshot() Stats {
	s := Stats{
		UpDatagrams: c.upDatagrams.Load(), UpBytes: c.upBytes.Load(),
		DownDatagrams: c.downDatagrams.Load(), DownBytes: c.downBytes.Load(),
	}
	for i := range c.drops {
		s.Drops[i] = uint64(c.drops[i].Load())
	}
	return s
}

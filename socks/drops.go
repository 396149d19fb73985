package socks

import (
	"fmt"
	"log/slog"
	"sync/atomic"
)

// DropReason says why an association dropped a datagram.
type DropReason uint8

// Reasons. The first three are about datagrams from the client, the others
// about datagrams to it.
const (
	DropSource    DropReason = iota // from a source that may not speak for the association
	DropMalformed                   // header cut short, unknown address type, empty name; either way
	DropFragment                    // a fragment that could not become a datagram: lost company, late, too large
	DropNoPort                      // the client has sent nothing yet, so its port is unknown
	DropTooLarge                    // with the SOCKS5 header it exceeds a UDP payload
	DropSystem                      // the system did not take it: full buffer, no route

	NumDropReasons int = iota
)

func (r DropReason) String() string {
	switch r {
	case DropSource:
		return "source"
	case DropMalformed:
		return "malformed"
	case DropFragment:
		return "fragment"
	case DropNoPort:
		return "no-port"
	case DropTooLarge:
		return "too-large"
	case DropSystem:
		return "system"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Traffic counts datagrams, and the bytes of their payloads without the SOCKS5
// header.
type Traffic struct {
	Datagrams, Bytes uint64
}

// Stats is what an association has carried so far.
type Stats struct {
	Up, Down Traffic                // from and to the client
	Drops    [NumDropReasons]uint64 // by DropReason; fragments count one by one
}

// counters are Stats while they are counted.
type counters struct {
	upDatagrams, upBytes     atomic.Uint64
	downDatagrams, downBytes atomic.Uint64
	drops                    [NumDropReasons]atomic.Uint64
}

// drop counts n datagrams and returns how many were dropped so before.
func (c *counters) drop(r DropReason, n int) (before uint64) {
	return c.drops[r].Add(uint64(n)) - uint64(n)
}

// snapshot reads each counter once; together they are not one moment.
func (c *counters) snapshot() Stats {
	s := Stats{
		Up:   Traffic{c.upDatagrams.Load(), c.upBytes.Load()},
		Down: Traffic{c.downDatagrams.Load(), c.downBytes.Load()},
	}
	for i := range s.Drops {
		s.Drops[i] = c.drops[i].Load()
	}
	return s
}

// DropsByReason is the drops that happened, by name; nil where none did.
func (s *Stats) DropsByReason() (m map[string]uint64) {
	for r, n := range s.Drops {
		if n > 0 {
			if m == nil {
				m = make(map[string]uint64)
			}
			m[DropReason(r).String()] = n
		}
	}
	return m
}

// logAttrs is s for a log line, with the drops that happened, more among them.
func (s *Stats) logAttrs(more []any) []slog.Attr {
	attrs := []slog.Attr{
		slog.Uint64("up_datagrams", s.Up.Datagrams),
		slog.Uint64("up_bytes", s.Up.Bytes),
		slog.Uint64("down_datagrams", s.Down.Datagrams),
		slog.Uint64("down_bytes", s.Down.Bytes),
	}
	drops := more
	for r, n := range s.Drops {
		if n > 0 {
			drops = append(drops, slog.Uint64(DropReason(r).String(), n))
		}
	}
	if len(drops) > 0 {
		attrs = append(attrs, slog.Group("drops", drops...))
	}
	return attrs
}

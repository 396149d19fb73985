package tunnel

import (
	"log/slog"
	"sync/atomic"
)

// Drop is a reason for which a session dropped a datagram.
type Drop uint8

// Reasons.
const (
	DropQueueFull  Drop = iota // pushed out of the bounded queue by newer ones
	DropStale                  // waited longer than maxQueueAge
	DropTooLarge               // larger than MaxBody
	DropPathShrank             // in a bundle that the path no longer carries
	DropMalformed              // in a bundle that does not parse; counts bundles
	DropReassembly             // fragments that never became whole
	DropEnded                  // of a flow that has ended
	DropRefused                // of a flow that the exit or the session's limit refused
	DropUnknown                // of a flow that we opened once and no longer have
	dropReasons
)

var dropNames = [dropReasons]string{
	"queue_full", "stale", "too_large", "path_shrank", "malformed", "reassembly", "ended", "refused", "unknown",
}

func (d Drop) String() string { return dropNames[d] }

// dropCounters counts by reason; any goroutine may add.
type dropCounters [dropReasons]atomic.Uint64

func (c *dropCounters) add(d Drop, n uint64) { c[d].Add(n) }

// Drops is a snapshot of the counters, indexed by Drop.
type Drops [dropReasons]uint64

// Add adds what t counted.
func (s *Drops) Add(t Drops) {
	for i, n := range t {
		s[i] += n
	}
}

// Attrs is the reasons that occurred, for a line in the log.
func (s *Drops) Attrs() (attrs []any) {
	for d, n := range s {
		if n > 0 {
			attrs = append(attrs, slog.Uint64(Drop(d).String(), n))
		}
	}
	return attrs
}

func (c *dropCounters) snapshot() (s Drops) {
	for i := range c {
		s[i] = c[i].Load()
	}
	return s
}

package egress

import (
	"net/netip"

	"wmproxy/internal/config"
)

// maxPeers bounds whom a flow that filters remembers. Beyond it the one that was
// sent to longest ago may no longer answer.
const maxPeers = 1024

// peerTable is whom a flow has sent to, with the tick it last did.
type peerTable map[netip.AddrPort]uint32

// filterKey is what of a remote's address filtering goes by.
func (f *flow) filterKey(ap netip.AddrPort) netip.AddrPort {
	if f.user.exits.cfg.Filtering == config.AddressDependent {
		return netip.AddrPortFrom(ap.Addr(), 0)
	}
	return ap
}

func (t peerTable) add(ap netip.AddrPort, tick uint32) {
	if last, ok := t[ap]; ok && last == tick {
		return
	} else if !ok && len(t) >= maxPeers {
		t.dropOldest(tick)
	}
	t[ap] = tick
}

// dropOldest looks at a few entries, in the map's random order, and drops the
// oldest: a flow that scans must not pay for the whole table with each datagram.
func (t peerTable) dropOldest(now uint32) {
	var out netip.AddrPort
	var age uint32
	looked := 0
	for ap, tick := range t {
		if looked == 0 || now-tick > age {
			out, age = ap, now-tick
		}
		if looked++; looked == 16 {
			break
		}
	}
	delete(t, out)
}

package egress

import (
	"net/netip"

	"wmproxy/internal/config"
)

// maxPeers bounds the remotes that a flow with filtering remembers. Beyond it the one that was
// sent to longest ago, roughly, may not answer any more.
const maxPeers = 1024

// peerTable is the remotes that a flow has sent to, with the tick of the last datagram.
type peerTable map[netip.AddrPort]uint32

// filterKey returns the part of a remote's address that filtering uses.
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
		out, _ := oldest(t, func(last uint32) (int64, bool) { return int64(tick - last), true })
		delete(t, out)
	}
	t[ap] = tick
}

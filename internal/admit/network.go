package admit

import (
	"container/heap"
	"container/list"
	"net/netip"
)

// Prefix lengths of the networks by which connections are counted. In IPv6 a host can use
// all addresses of a /64 (RFC 4291 section 2.5.4), a customer has a /56 and a site a /48
// (RFC 6177). In IPv4 the smallest network that is routed is a /24.
var (
	lengths4 = []int{24, 32}
	lengths6 = []int{48, 56, 64}
)

// networksOf returns the networks of an address, largest first.
func networksOf(a netip.Addr) []netip.Prefix {
	a = a.Unmap().WithZone("")
	lengths := lengths4
	if a.Is6() {
		lengths = lengths6
	}
	within := make([]netip.Prefix, len(lengths))
	for i, bits := range lengths {
		within[i], _ = a.Prefix(bits) // the zero prefix for the zero address
	}
	return within
}

// network is the half-open connections of one network.
type network struct {
	prefix  netip.Prefix
	around  *network // nil for the Internet
	number  uint64   // rises with each new network
	n       int      // connections, including those of the networks within it
	index   int      // in around.within
	within  fullest
	entries list.List // of *entry, oldest first; used in the smallest networks only
}

// add adds delta, 1 or -1, to the number of connections of n and the networks around it.
func (n *network) add(delta int) {
	for ; n != nil; n = n.around {
		n.n += delta
		switch {
		case n.around == nil:
		case n.n == 0:
			heap.Remove(&n.around.within, n.index)
		case n.n == 1 && delta > 0:
			heap.Push(&n.around.within, n)
		default:
			heap.Fix(&n.around.within, n.index)
		}
	}
}

// oldestOfFullest returns the oldest entry of the smallest network that it reaches by
// always taking the fullest one. There must be an entry.
func (n *network) oldestOfFullest() *entry {
	for len(n.within) > 0 {
		n = n.within[0]
	}
	return n.entries.Front().Value.(*entry)
}

// fullest is a heap of networks, the one with most connections on top, and the older of
// two equal ones.
type fullest []*network

func (f fullest) Len() int { return len(f) }

func (f fullest) Less(i, j int) bool {
	if f[i].n != f[j].n {
		return f[i].n > f[j].n
	}
	return f[i].number < f[j].number
}

func (f fullest) Swap(i, j int) {
	f[i], f[j] = f[j], f[i]
	f[i].index, f[j].index = i, j
}

func (f *fullest) Push(x any) {
	n := x.(*network)
	n.index = len(*f)
	*f = append(*f, n)
}

func (f *fullest) Pop() any {
	last := len(*f) - 1
	n := (*f)[last]
	(*f)[last] = nil
	*f = (*f)[:last]
	return n
}

package admit

import (
	"container/heap"
	"container/list"
	"net/netip"
)

// Networks that connections are counted in, as prefix lengths. Of IPv6 a host has a /64
// to choose from (RFC 4291 section 2.5.4), a customer a /56 and a site a /48 (RFC 6177).
// Of IPv4 addresses nobody is routed less than a /24.
var (
	lengths4 = []int{24, 32}
	lengths6 = []int{48, 56, 64}
)

// networksOf returns the networks of an address, the largest first.
func networksOf(a netip.Addr) []netip.Prefix {
	a = a.Unmap().WithZone("")
	lengths := lengths4
	if a.Is6() {
		lengths = lengths6
	}
	within := make([]netip.Prefix, len(lengths))
	for i, bits := range lengths {
		within[i], _ = a.Prefix(bits) // the zero address has the zero prefix
	}
	return within
}

// network is the half-open connections of one network.
type network struct {
	prefix  netip.Prefix
	around  *network // nil for the Internet
	number  uint64   // in the order they came
	n       int      // connections, also of the networks within it
	index   int      // in around.within
	within  fullest
	entries list.List // of *entry, oldest first; only of a smallest network
}

// grow counts a connection in or out, also in the networks around n.
func (n *network) grow(by int) {
	for ; n != nil; n = n.around {
		n.n += by
		switch {
		case n.around == nil:
		case n.n == 0:
			heap.Remove(&n.around.within, n.index)
		case n.n == 1 && by > 0:
			heap.Push(&n.around.within, n)
		default:
			heap.Fix(&n.around.within, n.index)
		}
	}
}

// oldestOfFullest returns the oldest entry of the fullest of the smallest networks in
// the fullest of the larger ones. There must be one.
func (n *network) oldestOfFullest() *entry {
	for len(n.within) > 0 {
		n = n.within[0]
	}
	return n.entries.Front().Value.(*entry)
}

// fullest is a heap of networks, the one with most connections on top, and of equal ones
// the one that came first.
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

// Package admit bounds the connections that have not proved who they are. It
// knows nothing of what they are: an entry is an address and a way to end it.
package admit

import (
	"container/list"
	"net/netip"
	"sync"
)

// What the zero Gate admits. A handshake takes a few round trips, so an honest
// client is half open for well under a second.
const (
	DefaultTotal   = 1024
	DefaultPerAddr = 128
)

// subnetBits is how much of an IPv6 address counts as one address: a host has
// a whole /64 to choose from (RFC 4291 section 2.5.4).
const subnetBits = 64

// Gate counts half-open connections. Where a bound is reached the newcomer is
// let in and the oldest goes: an honest handshake is short, so what is oldest is
// least likely to be one, and a flood cannot lock the door for longer than it lasts.
// The zero value is ready to use; the fields are set before the first Enter.
type Gate struct {
	Total   int // half-open connections in all; 0 means DefaultTotal
	PerAddr int // of these, from one IPv4 address or IPv6 /64; 0 means DefaultPerAddr

	// Refuse makes the newcomer go where a bound is reached, for connections that
	// nobody can end before their time. Their evict is only called by Close.
	Refuse bool

	mu      sync.Mutex
	closed  bool
	evicted uint64
	all     list.List // of *entry, oldest first
	byAddr  map[netip.Addr]*list.List
}

type entry struct {
	addr  netip.Addr
	evict func()
	inAll *list.Element
	inOwn *list.Element
}

// Enter counts a connection from addr as half open until leave is called; leave
// may be called from anywhere and more than once. If the newcomer's place is
// needed later, evict is called instead, once, from the Enter that needs it and with
// no lock held; it has to end the connection and must not wait. ok is false,
// and leave does nothing, once the gate is closed and where Refuse says so.
func (g *Gate) Enter(addr netip.Addr, evict func()) (leave func(), ok bool) {
	e := &entry{addr: bucket(addr), evict: evict}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return func() {}, false
	}
	victim := g.makeRoom(e.addr)
	if victim != nil && g.Refuse {
		g.mu.Unlock()
		return func() {}, false
	}
	if victim != nil {
		g.remove(victim)
		g.evicted++
	}
	g.insert(e)
	g.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
	return func() { g.leave(e) }, true
}

// Len is the number of half-open connections now.
func (g *Gate) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all.Len()
}

// LenOf is how many of them count as from addr.
func (g *Gate) LenOf(addr netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	own := g.byAddr[bucket(addr)]
	if own == nil {
		return 0
	}
	return own.Len()
}

// EvictOldest ends the half-open connection that came first, where the process
// has run out of something that newcomers need.
func (g *Gate) EvictOldest() {
	g.mu.Lock()
	first := g.all.Front()
	var victim *entry
	if first != nil {
		victim = first.Value.(*entry)
		g.remove(victim)
		g.evicted++
	}
	g.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
}

// Evicted is how many connections have lost their place to a newcomer.
func (g *Gate) Evicted() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.evicted
}

// Close evicts every half-open connection and admits no more.
func (g *Gate) Close() {
	g.mu.Lock()
	g.closed = true
	var victims []*entry
	for g.all.Len() > 0 {
		e := g.all.Front().Value.(*entry)
		g.remove(e)
		victims = append(victims, e)
	}
	g.mu.Unlock()
	for _, e := range victims {
		e.evict()
	}
}

// makeRoom returns the entry that has to go before one of addr comes in, or nil.
// One is always enough: entries come one at a time.
func (g *Gate) makeRoom(addr netip.Addr) *entry {
	var oldest *list.Element
	if own := g.byAddr[addr]; own != nil && own.Len() >= bound(g.PerAddr, DefaultPerAddr) {
		oldest = own.Front()
	} else if g.all.Len() >= bound(g.Total, DefaultTotal) {
		oldest = g.all.Front()
	}
	if oldest == nil {
		return nil
	}
	return oldest.Value.(*entry)
}

func (g *Gate) insert(e *entry) {
	own := g.byAddr[e.addr]
	if own == nil {
		own = list.New()
		if g.byAddr == nil {
			g.byAddr = make(map[netip.Addr]*list.List)
		}
		g.byAddr[e.addr] = own
	}
	e.inAll = g.all.PushBack(e)
	e.inOwn = own.PushBack(e)
}

// remove takes e out. Further calls for the same entry do nothing.
func (g *Gate) remove(e *entry) {
	if e.inAll == nil {
		return
	}
	g.all.Remove(e.inAll)
	own := g.byAddr[e.addr]
	own.Remove(e.inOwn)
	e.inAll, e.inOwn = nil, nil
	if own.Len() > 0 {
		return
	}
	delete(g.byAddr, e.addr)
	if len(g.byAddr) == 0 {
		g.byAddr = nil // a map never shrinks: a flood from many addresses must leave nothing
	}
}

func (g *Gate) leave(e *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(e)
}

func bound(n, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return n
}

// bucket is what counts as one address.
func bucket(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, err := a.Prefix(subnetBits)
	if err != nil {
		return a
	}
	return p.Addr()
}

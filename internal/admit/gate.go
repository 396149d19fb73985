// Package admit bounds the connections that have not authenticated yet. It must not
// know their transport: an entry is an address and a function that ends it.
package admit

import (
	"container/list"
	"net/netip"
	"sync"
)

// DefaultTotal bounds the connections of a zero Gate. A handshake takes a few round trips,
// so the connection of an honest client is half-open for well under a second.
const DefaultTotal = 1024

// Gate counts half-open connections, in total and by the networks that they come from.
//
// A new connection fits if the numbers of all its networks, the Internet among them, add up
// to less than Total. So no network gets more than half of the places that are left in the
// network around it: one address gets a quarter to a third of all, and never the last place.
// If the new connection does not fit, the oldest one of the fullest network is evicted: an
// honest handshake is short and comes from a network with few, so a flood can lock out
// its own neighbours at most.
//
// The zero value is ready to use. The fields must be set before the first Enter.
type Gate struct {
	Total int // half-open connections; 0 means DefaultTotal

	// Refuse makes Enter refuse a connection that does not fit instead of evicting
	// another, for connections that cannot be ended early. Their evict is called by
	// Close only.
	Refuse bool

	mu     sync.Mutex
	closed bool
	all    network // the Internet
	known  map[netip.Prefix]*network
	made   uint64 // networks so far
}

type entry struct {
	smallest *network // nil after leave or eviction
	place    *list.Element
	evict    func()
}

// Enter counts a connection from addr as half-open until leave is called, from any
// goroutine and as often as the caller likes. If another connection needs the place, its
// Enter calls evict, once and with no lock held; evict must end the connection and must
// not block. ok is false, and leave does nothing, if the gate is closed or refuses the
// connection.
func (g *Gate) Enter(addr netip.Addr, evict func()) (leave func(), ok bool) {
	within := networksOf(addr)
	e := &entry{evict: evict}
	var victim *entry
	g.mu.Lock()
	fits := g.fitsLocked(within)
	if g.closed || g.Refuse && !fits {
		g.mu.Unlock()
		return func() {}, false
	}
	if !fits {
		victim = g.evictLocked()
	}
	g.insertLocked(e, within)
	g.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
	return func() { g.leave(e) }, true
}

// Len returns the number of half-open connections.
func (g *Gate) Len() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all.n
}

// LenOf returns the number of half-open connections from addr, or from its /64 if it is IPv6.
func (g *Gate) LenOf(addr netip.Addr) int {
	within := networksOf(addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	if smallest := g.known[within[len(within)-1]]; smallest != nil {
		return smallest.n
	}
	return 0
}

// Evict ends the oldest half-open connection of the fullest network. It is for callers
// that have run out of another resource, such as descriptors.
func (g *Gate) Evict() {
	g.mu.Lock()
	victim := g.evictLocked()
	g.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
}

// Close ends every half-open connection. Enter refuses all later ones.
func (g *Gate) Close() {
	g.mu.Lock()
	g.closed = true
	var victims []*entry
	for g.all.n > 0 {
		e := g.all.oldestOfFullest()
		g.removeLocked(e)
		victims = append(victims, e)
	}
	g.mu.Unlock()
	for _, e := range victims {
		e.evict()
	}
}

// fitsLocked reports whether one more connection from these networks fits.
func (g *Gate) fitsLocked(within []netip.Prefix) bool {
	total := g.Total
	if total <= 0 {
		total = DefaultTotal
	}
	sum := g.all.n
	for _, p := range within {
		if n := g.known[p]; n != nil {
			sum += n.n
		}
	}
	return sum < total
}

// evictLocked removes an entry and returns it, or nil if there is none. The caller must
// call its evict after unlocking.
func (g *Gate) evictLocked() *entry {
	if g.all.n == 0 {
		return nil
	}
	e := g.all.oldestOfFullest()
	g.removeLocked(e)
	return e
}

func (g *Gate) insertLocked(e *entry, within []netip.Prefix) {
	if g.known == nil {
		g.known = make(map[netip.Prefix]*network)
	}
	around := &g.all
	for _, p := range within {
		n := g.known[p]
		if n == nil {
			g.made++
			n = &network{prefix: p, around: around, number: g.made}
			g.known[p] = n
		}
		around = n
	}
	e.smallest, e.place = around, around.entries.PushBack(e)
	around.add(1)
}

// removeLocked removes e. Further calls for the same entry do nothing.
func (g *Gate) removeLocked(e *entry) {
	if e.smallest == nil {
		return
	}
	e.smallest.entries.Remove(e.place)
	e.smallest.add(-1)
	for n := e.smallest; n.around != nil && n.n == 0; n = n.around {
		delete(g.known, n.prefix)
	}
	e.smallest, e.place = nil, nil
	if len(g.known) == 0 {
		g.known = nil // a map never shrinks, and a flood from many networks must leave no memory in use
	}
}

func (g *Gate) leave(e *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked(e)
}

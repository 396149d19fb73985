// Package admit bounds the connections that have not proved who they are. It
// knows nothing of the connections: an entry is an address and a way to end it.
package admit

import (
	"container/list"
	"net/netip"
	"sync"
)

// DefaultTotal is how many the zero Gate admits. A handshake takes a few round trips, so an
// honest client is half open for well under a second.
const DefaultTotal = 1024

// Gate counts half-open connections, in all and in the networks that they come from.
//
// A newcomer fits if the connections of all its networks, the Internet among them, add up
// to less than Total. Each network then has at most half of the places that the network
// around it could still have: one address has a quarter to a third of all, and
// never the last place. If the newcomer does not fit, the oldest connection of the fullest
// network goes: an honest handshake is short and from a network that has few, so a flood
// can lock out its neighbours at most.
//
// The zero value is ready to use; the fields are set before the first Enter.
type Gate struct {
	Total int // half-open connections in all; 0 means DefaultTotal

	// Refuse makes a newcomer go if it does not fit, for connections that
	// nobody can end before their time. Their evict is only called by Close.
	Refuse bool

	mu      sync.Mutex
	closed  bool
	evicted uint64
	all     network // the Internet
	known   map[netip.Prefix]*network
	made    uint64 // networks so far
}

type entry struct {
	own   *network // the smallest; nil once the entry has left
	place *list.Element
	evict func()
}

// Enter counts a connection from addr as half open until leave is called; leave
// may be called from anywhere and more than once. If the newcomer's place is
// needed later, evict is called instead, once, from the Enter that needs it and with
// no lock held; it has to end the connection and must not wait. ok is false,
// and leave does nothing, once the gate is closed and if Refuse turns the newcomer away.
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

// LenOf returns how many of them come from addr, or from its IPv6 /64.
func (g *Gate) LenOf(addr netip.Addr) int {
	within := networksOf(addr)
	g.mu.Lock()
	defer g.mu.Unlock()
	if own := g.known[within[len(within)-1]]; own != nil {
		return own.n
	}
	return 0
}

// Evict ends the oldest half-open connection of the fullest network, when the process
// has run out of something that newcomers need.
func (g *Gate) Evict() {
	g.mu.Lock()
	victim := g.evictLocked()
	g.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
}

// Evicted returns how many connections have lost their place to a newcomer.
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

// fitsLocked reports whether one more connection from these networks fits; g.mu is held.
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

// evictLocked removes and returns an entry, nil if there is none. The caller calls its evict.
func (g *Gate) evictLocked() *entry {
	if g.all.n == 0 {
		return nil
	}
	e := g.all.oldestOfFullest()
	g.removeLocked(e)
	g.evicted++
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
	e.own, e.place = around, around.entries.PushBack(e)
	around.grow(1)
}

// removeLocked takes e out. Further calls for the same entry do nothing.
func (g *Gate) removeLocked(e *entry) {
	if e.own == nil {
		return
	}
	e.own.entries.Remove(e.place)
	e.own.grow(-1)
	for n := e.own; n.around != nil && n.n == 0; n = n.around {
		delete(g.known, n.prefix)
	}
	e.own, e.place = nil, nil
	if len(g.known) == 0 {
		g.known = nil // a map never shrinks: a flood from many networks must leave nothing
	}
}

func (g *Gate) leave(e *entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked(e)
}

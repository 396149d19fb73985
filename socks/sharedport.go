package socks

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/udpio"
)

// sharedPort is one UDP socket for many associations. A datagram belongs to the
// association that its source belongs to already, or else to the one that choose returns.
type sharedPort struct {
	server *Server
	ip     netip.Addr
	sock   *udpio.Socket
	users  int // guarded by portTable.mu

	// mu is held while datagrams are passed on, so that nothing reaches an
	// association after it has left.
	mu       sync.Mutex
	bySource map[netip.AddrPort]*Association // by sources that belong to one
	byName   map[netip.AddrPort]*Association // by the sources that UDP ASSOCIATE named; the first to name one has it
	byClient map[netip.Addr]*sharedPlaces    // by the address of the control connection
	all      sharedPlaces
	told     time.Time // when datagrams of no association were last logged
}

// sharedPlaces are associations, oldest first.
type sharedPlaces struct {
	silent list.List // no source has spoken for them yet
	spoken list.List
}

// sharedPlace is an association's in the lists of a shared port.
type sharedPlace struct {
	ofClient *sharedPlaces // of its client's address
	in       [2]*list.Element
	spoken   bool
}

const (
	// maxChoice is how many associations of one address are searched for an unknown
	// source.
	maxChoice = 64

	// unmatchedLogInterval is the time between two lines in the log about datagrams of
	// no association: anyone can send them.
	unmatchedLogInterval = 10 * time.Minute
)

// enter makes a known to the port, without a source yet.
func (p *sharedPort) enter(a *Association) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ip := a.client.Addr().WithZone("")
	c := p.byClient[ip]
	if c == nil {
		c = new(sharedPlaces)
		p.byClient[ip] = c
	}
	a.place = &sharedPlace{ofClient: c, in: [2]*list.Element{c.silent.PushBack(a), p.all.silent.PushBack(a)}}
	if named := a.sources.named; named.IsValid() && p.byName[named] == nil {
		p.byName[named] = a
	}
}

// exit forgets a. Once it returns, nothing is passed on to a any more.
func (p *sharedPort) exit(a *Association) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.place != nil {
		p.leave(a)
		if c := a.place.ofClient; c.silent.Len()+c.spoken.Len() == 0 {
			delete(p.byClient, a.client.Addr().WithZone(""))
		}
		a.place = nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.byName[a.sources.named] == a {
		delete(p.byName, a.sources.named)
	}
	for _, e := range a.sources.list {
		delete(p.bySource, e.addr)
	}
}

// leave takes a out of the lists.
func (p *sharedPort) leave(a *Association) {
	if a.place.spoken {
		a.place.ofClient.spoken.Remove(a.place.in[0])
		p.all.spoken.Remove(a.place.in[1])
	} else {
		a.place.ofClient.silent.Remove(a.place.in[0])
		p.all.silent.Remove(a.place.in[1])
	}
}

// receive passes each run of datagrams from one source on to its association.
func (p *sharedPort) receive(ms []udpio.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(ms) > 0 {
		n := 1
		a := p.bySource[ms[0].Addr]
		if a == nil {
			a = p.choose(&ms[0])
		}
		if a != nil {
			for n < len(ms) && ms[n].Addr == ms[0].Addr {
				n++
			}
			a.relayUp(ms[:n])
		} else {
			p.server.unmatched.Add(1)
		}
		ms = ms[n:]
	}
}

// choose returns an association for a source that belongs to none yet, after adding the
// source to it: the one that named it; else the oldest of its address that has no source
// yet, rather one that named no source; else, as its port may have changed, the
// only one of its address, or the only one there that has been silent for sourceSilence.
// If several could be meant there is none: it must not take another's place.
func (p *sharedPort) choose(m *udpio.Message) *Association {
	if _, err := udpHeader(m.Body); err != nil || m.Addr.Port() == 0 {
		return nil
	}
	ip := m.Addr.Addr().WithZone("")
	if a := p.byName[netip.AddrPortFrom(ip, m.Addr.Port())]; a != nil && p.take(a, m) {
		return a
	}
	places := p.byClient[ip]
	if places == nil && p.server.fromAllowed(ip) {
		places = &p.all
	}
	if places == nil {
		return nil
	}
	var named *Association
	looked := 0
	for e := places.silent.Front(); e != nil && looked < maxChoice; e = e.Next() {
		a := e.Value.(*Association)
		if a.sources.named.IsValid() {
			if named == nil {
				named = a
			}
		} else if p.take(a, m) {
			return a
		}
		looked++
	}
	if named != nil && p.take(named, m) {
		return named
	}
	if a := places.only(m); a != nil && p.take(a, m) {
		return a
	}
	p.tell(m)
	return nil
}

// only returns the only association that m's source may join, or the only one of these
// that has been silent.
func (c *sharedPlaces) only(m *udpio.Message) *Association {
	if c.spoken.Len() > maxChoice {
		return nil
	}
	var may, silent *Association
	mayCount, silentCount := 0, 0
	for e := c.spoken.Front(); e != nil; e = e.Next() {
		a := e.Value.(*Association)
		a.mu.Lock()
		now := time.Since(a.start)
		if r, _ := a.judge(m, now); r == admitted {
			may = a
			mayCount++
			if a.sources.silent(now) {
				silent = a
				silentCount++
			}
		}
		a.mu.Unlock()
	}
	switch {
	case mayCount == 1:
		return may
	case silentCount == 1:
		return silent
	}
	return nil
}

// take adds m's source to a, and reports whether it is admitted.
func (p *sharedPort) take(a *Association, m *udpio.Message) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Since(a.start)
	r, sure := a.judge(m, now)
	if r != admitted {
		return false
	}
	a.join(m, now, sure)
	if !a.place.spoken {
		p.leave(a)
		a.place.spoken = true
		a.place.in = [2]*list.Element{a.place.ofClient.spoken.PushBack(a), p.all.spoken.PushBack(a)}
	}
	return true
}

// tell logs a datagram that belongs to no association.
func (p *sharedPort) tell(m *udpio.Message) {
	if now := time.Now(); p.told.IsZero() || now.Sub(p.told) >= unmatchedLogInterval {
		p.told = now
		p.server.log().Warn("dropping datagrams on the shared UDP port of a source that could speak for several associations, or for none; a range of ports (--udp-port 20000-20999) tells them apart",
			"source", m.Addr)
	}
}

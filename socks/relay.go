package socks

import (
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
)

// writeBatch bounds the datagrams that Deliver passes to the system at once.
const writeBatch = 64

// A datagram between client and server (RFC 1928 section 7):
//
//	+-----+------+------+----------+----------+------+
//	| RSV | FRAG | ATYP | DST.ADDR | DST.PORT | DATA |
//	+-----+------+------+----------+----------+------+
//	|  2  |  1   |  1   | variable |    2     |      |
//	+-----+------+------+----------+----------+------+
const (
	fragAt       = 2
	udpHeaderLen = 3 // RSV and FRAG
)

// noFragment is RSV and FRAG of every datagram to a client; it is never written to.
var noFragment = make([]byte, udpHeaderLen)

// udpHeader checks the header of a datagram and returns how many bytes the
// address after RSV and FRAG takes. RSV may be anything: some clients use it.
func udpHeader(b []byte) (addrLen int, err error) {
	if len(b) < udpHeaderLen {
		return 0, errShortAddr
	}
	return AddrLen(b[udpHeaderLen:])
}

// relayUp takes what the socket read and passes the good ones on, in place: a
// datagram loses RSV and FRAG and is otherwise what the tunnel carries.
func (a *Association) relayUp(ms []udpio.Message) {
	now := time.Since(a.start)
	kept, size := 0, 0
	a.mu.Lock()
	for i := range ms {
		body := ms[i].Body
		at := a.speaker(&ms[i], now)
		if at < 0 {
			continue
		}
		addrLen, err := udpHeader(body)
		if err != nil {
			a.counts.Drop(stats.Malformed, 1)
			continue
		}
		frag := body[fragAt]
		body = body[udpHeaderLen:]
		a.sources.spoke(at, body[:addrLen], now, ms[i].Local)
		if frag != 0 {
			if body = a.reassemble(frag, body, addrLen); body == nil {
				continue
			}
		}
		size += len(body) - addrLen
		ms[kept].Head, ms[kept].Body, ms[kept].Addr = nil, body, ms[i].Addr
		kept++
	}
	a.mu.Unlock()
	if kept > 0 {
		a.counts.Up(kept, size)
		a.up.Send(ms[:kept])
	}
}

// speaker returns the index of m's source, and adds it if it is admitted; else it
// counts m as dropped and returns -1. The caller has a.mu.
func (a *Association) speaker(m *udpio.Message, now time.Duration) int {
	at := a.sources.find(m.Addr)
	if at >= 0 {
		e := &a.sources.list[at]
		if a.maySpeakOn(e, m, now) {
			return at
		}
		a.forget(e.addr)
		a.sources.remove(at)
	}
	if m.Addr.Port() == 0 {
		a.refuse(m, refusedPort)
		return -1
	}
	if c := a.claim(m.Addr, now); c.ofClient || c.allowed {
		if _, err := udpHeader(m.Body); err != nil {
			a.counts.Drop(stats.Malformed, 1)
			return -1
		}
	}
	r, sure := a.judge(m, now)
	if r != admitted {
		a.refuse(m, r)
		return -1
	}
	return a.join(m, now, sure)
}

// maySpeakOn reports whether m's source, which is e, needs no new ruling. The caller has a.mu.
func (a *Association) maySpeakOn(e *source, m *udpio.Message, now time.Duration) bool {
	if e.sure {
		if now-e.asked < ownerMemory {
			return true
		}
		e.asked = now
		return a.owner(m.Addr, m.Local) == ownerSame // the port may be another user's by now
	}
	if now-e.heard < sourceSilence || !a.sources.isNamed(e.addr) {
		return true
	}
	_, err := udpHeader(m.Body)
	return err != nil // a good one takes the association back, as that of a new source does
}

// judge applies the rules to a source that is not known. The caller has a.mu.
func (a *Association) judge(m *udpio.Message, now time.Duration) (r ruling, sure bool) {
	return a.claim(m.Addr, now).judge(func() owner { return a.owner(m.Addr, m.Local) })
}

// claim returns the facts that the rules go by for a source that is not known. The caller
// has a.mu.
func (a *Association) claim(addr netip.AddrPort, now time.Duration) claim {
	ip := addr.Addr().WithZone("")
	c := claim{
		ofClient: ip == a.client.Addr().WithZone(""),
		allowed:  a.server.fromAllowed(ip),
		named:    a.sources.isNamed(addr),
	}
	c.rival = !c.named && a.sources.rival(now)
	return c
}

// join lets the source of m in and returns its index. The caller has a.mu.
func (a *Association) join(m *udpio.Message, now time.Duration, sure bool) int {
	e := source{addr: m.Addr, to: m.Addr, local: m.Local, heard: now, asked: now, sure: sure}
	if e.addr.Addr().WithZone("") == a.client.Addr().WithZone("") {
		// Link-local addresses need the zone of the control connection to be written to.
		e.to = netip.AddrPortFrom(a.client.Addr(), e.addr.Port())
	}
	at, out := a.sources.add(e)
	for _, addr := range out.addrs[:out.n] {
		a.forget(addr)
	}
	if a.shared != nil {
		a.shared.bySource[e.addr] = a
	}
	return at
}

// forget removes a source from the shared port, if there is one; the port's mu is held then.
func (a *Association) forget(addr netip.AddrPort) {
	if a.shared != nil {
		delete(a.shared.bySource, addr)
	}
}

// refuse drops m and logs each reason once: nothing else would show why UDP does not
// work. The caller has a.mu.
func (a *Association) refuse(m *udpio.Message, r ruling) {
	a.counts.Drop(stats.Source, 1)
	var why string
	switch r {
	case refusedAddress:
		// Docker's proxy, or a second address of the client.
		why = "dropping datagrams that do not come from the client's address; --udp-from lets their source in"
	case refusedUser:
		why = "dropping datagrams from a socket that is not of the user of this machine who opened the association"
	case refusedNamed:
		why = "dropping datagrams from another port of the client than the one that its UDP ASSOCIATE named and that it uses"
	default:
		return
	}
	if a.warned&(1<<r) == 0 {
		a.warned |= 1 << r
		a.server.log().Warn(why, "source", m.Addr, "client", a.client)
	}
}

// fromAllowed reports whether ip, which has no zone, is in UDPFrom.
func (s *Server) fromAllowed(ip netip.Addr) bool {
	for _, prefix := range s.UDPFrom {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// batches are what Deliver lays messages out in.
var batches = sync.Pool{New: func() any { return new([writeBatch]udpio.Message) }}

// Deliver sends datagrams to the client, in order. Each one is from ATYP
// onward, the address being where it came from. It never waits and keeps
// nothing; what cannot be sent is dropped and counted.
func (a *Association) Deliver(bodies [][]byte) {
	batch := batches.Get().(*[writeBatch]udpio.Message)
	n, size := 0, 0
	a.mu.Lock()
	for _, body := range bodies {
		addrLen, err := AddrLen(body)
		if err != nil {
			a.counts.Drop(stats.Malformed, 1)
			continue
		}
		to := a.sources.answerTo(body[:addrLen])
		if to == nil {
			a.counts.Drop(stats.NoPort, 1)
			continue
		}
		if udpHeaderLen+len(body) > udpio.MaxPayload(to.to.Addr()) {
			a.counts.Drop(stats.TooLarge, 1)
			continue
		}
		batch[n] = udpio.Message{Head: noFragment, Body: body, Addr: to.to, Local: to.local}
		size += len(body) - addrLen
		if n++; n == writeBatch {
			a.mu.Unlock()
			a.write(batch[:n], size)
			n, size = 0, 0
			a.mu.Lock()
		}
	}
	a.mu.Unlock()
	a.write(batch[:n], size)
	batches.Put(batch)
}

// write sends ms, whose payloads are size bytes together, and counts what the
// system took. When that is a part, it does not say which: the bytes are then an estimate.
func (a *Association) write(ms []udpio.Message, size int) {
	if len(ms) == 0 {
		return
	}
	sent, _ := a.sock.Write(ms)
	if sent < len(ms) {
		a.counts.Drop(stats.System, len(ms)-sent)
		size = size * sent / len(ms)
	}
	a.counts.Down(sent, size)
	clear(ms) // the pool must not keep the bodies alive
}

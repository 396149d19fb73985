package egress

import (
	"net/netip"
	"slices"
	"time"

	"wmproxy/internal/eyeballs"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
)

// Bounds on the names of flows.
const (
	maxFlowNames = 64        // per flow; beyond it one of the least recently used is resolved again
	maxHeldCount = 64        // datagrams per flow that are waiting for names
	maxHeldBytes = 128 << 10 // payload of these, per flow
	maxHeldTotal = 16 << 20  // payload of all waiting ones, over all flows
)

// nameTable is the names that a flow has sent to. A name keeps its address while that
// answers: a peer must not move to another host within a conversation.
type nameTable struct {
	byName    map[string]*destName
	heldCount int
	heldBytes int
}

type destName struct {
	name    string     // as the client spelled it
	asked   bool       // the client wants answers to carry it
	ip      netip.Addr // invalid while it is being resolved
	used    uint32     // tick of the last datagram
	waiting []heldDatagram
	silence silence
}

// heldDatagram is a datagram that waits for its name.
type heldDatagram struct {
	port    uint16
	payload []byte
}

// named returns the address of a name, or otherwise holds or drops the datagram. asked is set
// if the client wants answers to carry the name.
func (f *flow) named(name []byte, port uint16, payload []byte, asked bool) (netip.Addr, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended.Load() { // checked with f.mu held, so that finish sees all held datagrams
		f.counts.Drop(stats.Ended, 1)
		return netip.Addr{}, false
	}
	if f.names == nil {
		f.names = &nameTable{byName: make(map[string]*destName)}
	}
	n := f.names.byName[string(name)] // does not allocate
	if n == nil {
		var why stats.Reason
		if n, why = f.learn(string(name)); n == nil {
			f.counts.Drop(why, 1)
			return netip.Addr{}, false
		}
	}
	n.used, n.asked = f.used.Load(), asked
	if !n.ip.IsValid() {
		f.hold(n, port, payload)
		return netip.Addr{}, false
	}
	if n.silence.addrs != nil {
		f.noteSent(name, n)
	}
	f.noteName(netip.AddrPortFrom(n.ip, port), n)
	return n.ip, true
}

// learn adds a new name to the table and starts to resolve it. The caller holds f.mu.
func (f *flow) learn(name string) (*destName, stats.Reason) {
	n := &destName{name: name}
	if ip, ok := socks.ParseLiteral(name); ok {
		n.ip = ip
	} else if !validName(name) {
		return nil, stats.Malformed
	}
	if !f.names.makeRoom(f.used.Load()) {
		return nil, stats.Names
	}
	if !n.ip.IsValid() {
		addrs, done, err := f.user.resolve(name, keepAnswer, func(addrs []netip.Addr, err error) { f.resolved(name, addrs, err) })
		if err != nil {
			return nil, stats.Unresolved
		}
		if done {
			n.use(f.user.exits.policy.choose(addrs))
		}
		f.usesNames.Store(true)
	}
	f.names.byName[name] = n
	return n, 0
}

// makeRoom keeps the table within its bound. It returns false if every name in it is still
// being resolved.
func (t *nameTable) makeRoom(now uint32) bool {
	if len(t.byName) < maxFlowNames {
		return true
	}
	out, ok := oldest(t.byName, func(n *destName) (int64, bool) { return int64(now - n.used), n.ip.IsValid() })
	delete(t.byName, out)
	return ok
}

// hold keeps a copy of a datagram until its name is resolved. The caller holds f.mu.
func (f *flow) hold(n *destName, port uint16, payload []byte) {
	for f.names.full(len(payload)) && len(n.waiting) > 0 {
		f.unhold(n.waiting[0])
		n.waiting = slices.Delete(n.waiting, 0, 1)
		f.counts.Drop(stats.Waiting, 1)
	}
	if f.names.full(len(payload)) || !f.user.exits.reserveHeld(len(payload)) {
		f.counts.Drop(stats.Waiting, 1)
		return
	}
	f.names.heldCount++
	f.names.heldBytes += len(payload)
	n.waiting = append(n.waiting, heldDatagram{port, slices.Clone(payload)})
}

// reserveHeld takes n bytes of maxHeldTotal and reports whether there were enough.
func (e *Exits) reserveHeld(n int) bool {
	if e.held.Add(int64(n)) > maxHeldTotal {
		e.held.Add(-int64(n))
		return false
	}
	return true
}

func (t *nameTable) full(more int) bool {
	return t.heldCount >= maxHeldCount || t.heldBytes+more > maxHeldBytes
}

// unhold undoes hold's accounting for a datagram. The caller holds f.mu.
func (f *flow) unhold(d heldDatagram) {
	f.names.heldCount--
	f.names.heldBytes -= len(d.payload)
	f.user.exits.held.Add(-int64(len(d.payload)))
}

// resolved is called by the resolver. It sends the held datagrams before it lets Receive see
// the address, so that their order is kept.
func (f *flow) resolved(name string, addrs []netip.Addr, err error) {
	addrs = f.user.exits.policy.choose(addrs)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil || f.names.byName[name] == nil {
		return // the flow has ended
	}
	n := f.names.byName[name]
	if err != nil {
		f.counts.Drop(stats.Unresolved, len(n.waiting))
		delete(f.names.byName, name) // the next datagram asks again
	} else {
		n.use(addrs)
		n.silence.last = f.user.exits.now()
		f.sendHeld(n)
	}
	for _, d := range n.waiting {
		f.unhold(d)
	}
	n.waiting = nil
}

// sendHeld sends the datagrams held for n. The caller holds f.mu.
func (f *flow) sendHeld(n *destName) {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	out := b.ms[:0] // maxHeldCount fit
	for _, d := range n.waiting {
		to := netip.AddrPortFrom(n.ip, d.port)
		if !f.user.exits.policy.permits(to) {
			f.counts.Drop(stats.Policy, 1)
			continue
		}
		if f.peers != nil {
			f.peers.add(f.filterKey(to), f.used.Load())
		}
		f.noteName(to, n)
		out = append(out, udpio.Message{Body: d.payload, Addr: to})
	}
	f.write(out)
}

// forgetNames drops all held datagrams. The caller holds f.mu.
func (f *flow) forgetNames() {
	if f.names == nil {
		return
	}
	for _, n := range f.names.byName {
		f.counts.Drop(stats.Ended, len(n.waiting))
		for _, d := range n.waiting {
			f.unhold(d)
		}
	}
	f.names = nil
}

// choose returns the addresses that a flow may use for a name, in order: all that the policy
// does not refuse outright, or else the first, so that its datagrams count as refused.
func (p *policy) choose(addrs []netip.Addr) []netip.Addr {
	var allowed []netip.Addr
	for _, ip := range addrs {
		if p.judge(ip) != refused {
			allowed = append(allowed, ip)
		}
	}
	if allowed == nil {
		return addrs[:min(len(addrs), 1)]
	}
	return eyeballs.Order(allowed)
}

// resolve calls the resolver's resolve, within the user's share of it.
func (u *UserExit) resolve(name string, maxAge time.Duration, then func([]netip.Addr, error)) (addrs []netip.Addr, done bool, err error) {
	return u.exits.resolver.resolve(&u.lookups, name, maxAge, u.noting(name, then))
}

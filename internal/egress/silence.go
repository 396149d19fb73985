package egress

import (
	"net/netip"
	"slices"
	"time"
)

// Bounds on the silence of a name's address. They count the time of sending only.
const (
	// tryNextAfter is the silence after which the next address is tried if none of the name has
	// answered, in one round that ends at the first. An application that sends three times
	// thus finds the address that answers.
	tryNextAfter = 3 * time.Second

	// renewAfter is the silence after which the name is looked up again.
	renewAfter = 30 * time.Second

	// maxPause bounds the time between two datagrams that counts. A conversation that paused
	// after an unanswered datagram is not silent when it continues.
	maxPause = 5 * time.Second

	// maxRenewAge bounds the age of a cached answer for a name that is looked up again.
	maxRenewAge = 5 * time.Second
)

// silence measures the silence of a name's address and has the other addresses to try.
type silence struct {
	addrs []netip.Addr  // of the name; nil for a literal
	left  int           // remaining steps of a round of addrs
	last  time.Time     // of the last datagram sent; zero if the address has answered since
	spent time.Duration // sending without an answer
	heard bool          // the address, or one before it in the round, has answered at some time
	asked bool          // the name is being looked up again
}

// use sets the addresses of the name and uses the first.
func (n *destName) use(addrs []netip.Addr) {
	n.silence = silence{addrs: addrs}
	if len(addrs) > 0 {
		n.ip = addrs[0]
	}
	n.beginRound()
}

// beginRound begins a round through all addresses of the name that ends with the present one.
func (n *destName) beginRound() {
	n.silence.left = 0
	if len(n.silence.addrs) > 1 {
		n.silence.left = len(n.silence.addrs)
	}
}

// step moves to the next address of the name.
func (n *destName) step() {
	s := &n.silence
	at := slices.Index(s.addrs, n.ip)
	n.ip = s.addrs[(at+1)%len(s.addrs)]
	s.left--
	s.spent, s.last = 0, time.Time{}
}

// noteSent is called before each datagram to a name is sent, and may change the address. The
// caller holds f.mu.
func (f *flow) noteSent(name []byte, n *destName) {
	s := &n.silence
	now := f.user.exits.now()
	if !s.last.IsZero() {
		s.spent += min(now.Sub(s.last), maxPause)
	}
	switch {
	case s.left > 0 && s.spent >= tryNextAfter:
		n.step()
	case s.spent >= renewAfter:
		s.spent = 0
		f.renew(string(name), n)
	}
	s.last = now
}

// noteHeard is called with the source of datagrams for the client. In a round the name keeps the
// address that answers first.
func (f *flow) noteHeard(ip netip.Addr) {
	if !f.usesNames.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names == nil {
		return
	}
	for _, n := range f.names.byName {
		s := &n.silence
		if n.ip != ip && (s.left == 0 || !slices.Contains(s.addrs, ip)) {
			continue
		}
		n.ip = ip
		s.left, s.spent, s.last, s.heard, s.asked = 0, 0, time.Time{}, true, false
	}
}

// renew looks the name up again. The address stays meanwhile. The caller holds f.mu.
func (f *flow) renew(name string, n *destName) {
	n.silence.asked = true
	addrs, done, err := f.user.resolve(name, maxRenewAge, func(addrs []netip.Addr, err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.names != nil && f.names.byName[name] == n {
			f.renewed(n, addrs, err)
		}
	})
	if done {
		f.renewed(n, addrs, err)
	}
}

// renewed handles the answer to renew. It leaves an address that the name no longer has, and also
// one that has answered before, or if there are untried addresses. Otherwise the address stays:
// datagrams to it may need no answer. The caller holds f.mu.
func (f *flow) renewed(n *destName, addrs []netip.Addr, err error) {
	s := &n.silence
	if err != nil || !s.asked {
		return // the look-up failed, or the address has answered since
	}
	s.asked = false
	addrs = f.user.exits.policy.choose(addrs)
	if f.user.exits.policy.judge(addrs[0]) == refused {
		return
	}
	added := slices.ContainsFunc(addrs, func(ip netip.Addr) bool { return !slices.Contains(s.addrs, ip) })
	again := s.heard || added
	s.addrs, s.heard = addrs, false
	switch {
	case !slices.Contains(addrs, n.ip):
		n.use(addrs)
	case again && len(addrs) > 1:
		n.beginRound()
		n.step()
	}
}

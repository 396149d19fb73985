package egress

import (
	"net/netip"
	"slices"
	"time"
)

// Bounds on the silence of an address that a flow uses for a name. They are times of sending.
const (
	// tryNextAfter is the silence after which the next address of a name of which none has
	// answered is tried, in one round that ends at the first. It lets an application
	// that asks three times find the address that answers.
	tryNextAfter = 3 * time.Second

	// renewAfter is the silence after which the name is asked for again.
	renewAfter = 30 * time.Second

	// maxPause is the most that the time between two datagrams counts. A conversation that
	// was paused after an unanswered datagram is not a silent one when it goes on.
	maxPause = 5 * time.Second

	// maxRenewAge is how old a kept answer may be for a name that is asked for again.
	maxRenewAge = 5 * time.Second
)

// silence is how long an address of a name has not answered, and which others are left
// to try.
type silence struct {
	addrs []netip.Addr  // of the name, nil for a literal
	left  int           // steps left of a round of addrs
	last  time.Time     // of the last datagram sent; zero if the address has answered since
	spent time.Duration // on datagrams without an answer
	heard bool          // the address, or one before it in the round, has answered at some time
	asked bool          // the name is being asked for again
}

// use sets the addresses of the name and begins with the first.
func (n *destName) use(addrs []netip.Addr) {
	n.silence = silence{addrs: addrs}
	if len(addrs) > 0 {
		n.ip = addrs[0]
	}
	n.beginRound()
}

// beginRound lets all addresses of the name be tried, and at last the present one again.
func (n *destName) beginRound() {
	n.silence.left = 0
	if len(n.silence.addrs) > 1 {
		n.silence.left = len(n.silence.addrs)
	}
}

// step goes on to the next address of the name.
func (n *destName) step() {
	s := &n.silence
	at := slices.Index(s.addrs, n.ip)
	n.ip = s.addrs[(at+1)%len(s.addrs)]
	s.left--
	s.spent, s.last = 0, time.Time{}
}

// noteSent is called for each datagram to a name, before it is sent, and may change the address.
// The caller has f.mu.
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

// noteHeard is called with the source of datagrams that the flow passes back. In a round
// the name keeps the address that answers first.
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

// renew asks for the name again. The address stays meanwhile. The caller has f.mu.
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

// renewed takes in the answer to renew. An address that is gone is left at once; one that is
// still there is left for the next if it has answered before, or if there are addresses
// that were not tried. One that never answered otherwise stays: the datagrams sent to it
// may need no answer. The caller has f.mu.
func (f *flow) renewed(n *destName, addrs []netip.Addr, err error) {
	s := &n.silence
	if err != nil || !s.asked {
		return // the name cannot be resolved now, or the address has answered since
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

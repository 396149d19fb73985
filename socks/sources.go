package socks

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// The rules for which source may send for an association, and which gets its answers:
//
//  1. A source has the address of the control connection or one in UDPFrom.
//  2. If there is a password and the control connection comes from a socket of this
//     machine, the source is a socket of the same user: every user has that address.
//  3. A source that UDP ASSOCIATE has named takes the association from sources that
//     rule 2 has not confirmed, as soon as it speaks, and until it has been silent for
//     sourceSilence.
//  4. Any other source is added. Beyond maxSources it takes the place of the source that
//     has been silent for longest, which may come back in the same way.
//  5. An answer goes to the source that last sent to the answer's origin, and otherwise
//     to the one that spoke last.
//
// On a shared port a source belongs to one association at a time (see sharedPort.choose).
const (
	maxSources = 4

	// sourceSilence is the least time for which a NAT keeps a UDP mapping: a source that was
	// heard more recently still has its port.
	sourceSilence = 30 * time.Second

	// fewTargets and manyTargets are how many origins of answers are remembered while an
	// association has one source, and from the second on. They, and targetWays, are powers
	// of two.
	fewTargets  = 16
	manyTargets = 256

	// targetWays is how many targets with colliding hashes are kept: the newest.
	targetWays = 4
)

// A source is an address and port that datagrams of an association come from.
type source struct {
	addr  netip.AddrPort // as read; the zero value is a free place
	to    netip.AddrPort // to write to
	local netip.Addr     // the address of ours that it last sent to, if known
	heard time.Duration  // when, since the association began
	sure  bool           // rule 2 has confirmed it
	asked time.Duration  // when it did so last
}

// sources are the sources of one association.
type sources struct {
	named netip.AddrPort // by UDP ASSOCIATE, without a zone; the zero value is none
	list  []source       // at most maxSources
	used  int            // places that are not free
	last  int            // the source that sent last

	// targets is a hash of each target with the index of the source that last sent to it
	// in the lowest two bits. Targets with colliding hashes are targetWays entries in a
	// row, the newest first.
	targets []uint32
	few     [fewTargets]uint32
}

// A ruling admits a source or is the reason why it is refused.
type ruling uint8

const (
	admitted       ruling = iota
	refusedPort           // nothing can be sent to port 0
	refusedAddress        // rule 1
	refusedUser           // rule 2
	refusedNamed          // rule 3
)

// An owner is the user of a source's socket, compared with the control connection's.
type owner uint8

const (
	ownerUnknown owner = iota // it need not, or cannot, be known
	ownerSame                 // the user's who has the control connection
	ownerOther                // another user's
	ownerNone                 // no socket of this machine
)

// A claim is a source that asks to be admitted.
type claim struct {
	ofClient bool // it has the address of the control connection
	allowed  bool // or one in UDPFrom
	named    bool // UDP ASSOCIATE named it
	rival    bool // UDP ASSOCIATE named another, which has spoken lately
}

// judge applies rules 1 to 3. It asks for the owner only if rule 1 admits the source.
func (c claim) judge(ask func() owner) (r ruling, sure bool) {
	if !c.ofClient && !c.allowed {
		return refusedAddress, false
	}
	switch o := ask(); {
	case o == ownerSame:
		return admitted, true
	case o == ownerOther, o == ownerNone && c.ofClient: // a socket that is closed at once would hide its user
		return refusedUser, false
	case c.rival && !c.named:
		return refusedNamed, false
	}
	return admitted, false
}

// namedSource returns the source that DST of a UDP ASSOCIATE from client names: one of
// its own address, or of none. Most clients send no port, and some send the target.
func namedSource(dst []byte, client netip.Addr) netip.AddrPort {
	a, _, err := ParseAddr(dst)
	if err != nil || a.Port == 0 {
		return netip.AddrPort{}
	}
	client = client.WithZone("")
	if a.IP == client || a.IP.IsValid() && a.IP.IsUnspecified() || a.Name == "0" { // PySocks: the name 0
		return netip.AddrPortFrom(client, a.Port)
	}
	return netip.AddrPort{}
}

// isNamed reports whether UDP ASSOCIATE named addr.
func (s *sources) isNamed(addr netip.AddrPort) bool {
	return s.named.IsValid() && addr.Port() == s.named.Port() && addr.Addr().WithZone("") == s.named.Addr()
}

// rival reports whether a named source has spoken lately.
func (s *sources) rival(now time.Duration) bool {
	for i := range s.list {
		if e := &s.list[i]; e.addr.IsValid() && s.isNamed(e.addr) {
			return now-e.heard < sourceSilence
		}
	}
	return false
}

// silent reports whether no source has spoken lately.
func (s *sources) silent(now time.Duration) bool {
	for i := range s.list {
		if e := &s.list[i]; e.addr.IsValid() && now-e.heard < sourceSilence {
			return false
		}
	}
	return true
}

// find returns the index of addr, or -1.
func (s *sources) find(addr netip.AddrPort) int {
	if s.last < len(s.list) && s.list[s.last].addr == addr {
		return s.last
	}
	for i := range s.list {
		if s.list[i].addr == addr {
			return i
		}
	}
	return -1
}

// gone are the sources that had to make room, at most maxSources.
type gone struct {
	addrs [maxSources]netip.AddrPort
	n     int
}

// add adds a source that judge has admitted, and returns its index and the sources that
// it replaces.
func (s *sources) add(e source) (at int, out gone) {
	if s.isNamed(e.addr) {
		for i := range s.list {
			if other := &s.list[i]; other.addr.IsValid() && !other.sure {
				out.addrs[out.n] = other.addr
				out.n++
				s.remove(i)
			}
		}
	}
	at = s.place()
	if old := s.list[at].addr; old.IsValid() {
		out.addrs[out.n] = old
		out.n++
		s.remove(at)
	}
	s.list[at] = e
	s.used++
	s.last = at
	if s.targets == nil {
		s.targets = s.few[:]
	}
	if s.used > 1 && len(s.targets) == fewTargets {
		s.targets = make([]uint32, manyTargets)
		for i := range s.few {
			s.note(s.few[fewTargets-1-i]) // the oldest first
		}
	}
	return at, out
}

// place returns the index for one more source.
func (s *sources) place() int {
	longest := 0
	for i := range s.list {
		if !s.list[i].addr.IsValid() {
			return i
		}
		if s.list[i].heard < s.list[longest].heard {
			longest = i
		}
	}
	if len(s.list) < maxSources {
		s.list = append(s.list, source{})
		return len(s.list) - 1
	}
	return longest
}

func (s *sources) remove(i int) {
	s.list[i] = source{}
	s.used--
	if s.last == i {
		s.last = s.lastHeard()
	}
	for k, t := range s.targets {
		if int(t&3) == i {
			s.targets[k] = 0
		}
	}
}

// lastHeard returns the index of the source that sent last, 0 if there is none.
func (s *sources) lastHeard() (at int) {
	for i := range s.list {
		if e := &s.list[i]; e.addr.IsValid() && (!s.list[at].addr.IsValid() || e.heard > s.list[at].heard) {
			at = i
		}
	}
	return at
}

// targetSeed makes it unlikely that a target can be chosen to hide another.
var targetSeed = maphash.MakeSeed()

func targetHash(target []byte) uint32 { return uint32(maphash.Bytes(targetSeed, target)) }

// spoke notes that source i has sent to target.
func (s *sources) spoke(i int, target []byte, now time.Duration, local netip.Addr) {
	e := &s.list[i]
	e.heard, e.local = now, local
	s.last = i
	s.note(targetHash(target)&^3 | uint32(i))
}

// near returns the entries among which a hash belongs.
func (s *sources) near(hash uint32) []uint32 {
	i := int(hash>>2) & (len(s.targets)/targetWays - 1) * targetWays
	return s.targets[i : i+targetWays]
}

// note puts an entry first in its row, in place of the entry of the same target or else
// of the oldest.
func (s *sources) note(entry uint32) {
	near := s.near(entry)
	at := 0
	for at < targetWays-1 && near[at]&^3 != entry&^3 {
		at++
	}
	copy(near[1:], near[:at])
	near[0] = entry
}

// answerTo returns the source for an answer from target, nil if there is none at all.
func (s *sources) answerTo(target []byte) *source {
	if s.used > 1 {
		h := targetHash(target)
		for _, t := range s.near(h) {
			if i := int(t & 3); t&^3 == h&^3 && i < len(s.list) && s.list[i].addr.IsValid() {
				return &s.list[i]
			}
		}
	}
	if s.last < len(s.list) && s.list[s.last].addr.IsValid() {
		return &s.list[s.last]
	}
	return nil
}

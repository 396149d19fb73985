package socks

import (
	"net/netip"
	"sync"
	"time"
)

// ownerMemory is the time after which the user of a source's socket is looked up again: the
// socket may have been closed, and its port be another user's. A flood from one socket
// costs one look-up in that time. ownerPlaces is for how many sources a user is remembered.
const (
	ownerMemory = time.Second
	ownerPlaces = 64
)

// A lookup is the system's answer about the socket at an address.
type lookup uint8

const (
	lookupFailed lookup = iota // the system gave no answer
	lookupFound
	lookupNone // no socket of this machine, as far as this process can see
)

// A socketUser is the user of a socket.
type socketUser struct {
	uid    uint32 // if found
	result lookup
}

// A socketKind is TCP or UDP.
type socketKind uint8

const (
	kindTCP socketKind = 6 // as in IP headers
	kindUDP socketKind = 17
)

// owners looks up the users of the sockets that talk to ours.
type owners struct {
	// ask, unless nil, stands in for the system.
	ask func(kind socketKind, far, near netip.AddrPort) socketUser

	mu    sync.Mutex
	known [ownerPlaces]knownOwner

	untold sync.Once // logs once that the system gives no answer
}

type knownOwner struct {
	addr netip.AddrPort
	user socketUser
	at   time.Time
}

// of returns the user of the socket at far, which talks to ours at near.
func (o *owners) of(kind socketKind, far, near netip.AddrPort) socketUser {
	ask := o.ask
	if ask == nil {
		ask = askSystem
	}
	u := ask(kind, far, near)
	if u.result == lookupNone && ask(kind, near, far).result != lookupFound {
		// Ours is not there either, so that this proves nothing.
		u.result = lookupFailed
	}
	return u
}

// ofSource is of for the source of a datagram. It remembers the answer for ownerMemory.
func (o *owners) ofSource(far, near netip.AddrPort) socketUser {
	o.mu.Lock()
	defer o.mu.Unlock()
	k := &o.known[int(far.Port())%ownerPlaces]
	now := time.Now()
	if k.addr != far || now.Sub(k.at) >= ownerMemory {
		*k = knownOwner{far, o.of(kindUDP, far, near), now}
	}
	return k.user
}

// owner compares the user of the source of a datagram, which came to our address local,
// with that of the control connection. The caller has a.mu.
func (a *Association) owner(addr netip.AddrPort, local netip.Addr) owner {
	s := a.server
	if s.Users.Open() {
		return ownerUnknown
	}
	control := a.conn.LocalAddr()
	if !a.controlAsked {
		a.controlAsked = true
		a.controlUser = s.owners.of(kindTCP, a.client, control)
	}
	loopback := a.client.Addr().IsLoopback()
	switch {
	case a.controlUser.result == lookupNone && loopback:
		return ownerNone // it has just ended
	case a.controlUser.result == lookupFailed && loopback:
		s.owners.untold.Do(func() {
			s.log().Warn("this system does not tell whose sockets send datagrams: other users of this machine can send through an association whose client did not name its port")
		})
		return ownerUnknown
	case a.controlUser.result != lookupFound:
		return ownerUnknown // another machine's
	}
	if !local.IsValid() {
		local = control.Addr()
	}
	switch u := s.owners.ofSource(addr, netip.AddrPortFrom(local, a.bound.Port())); {
	case u.result == lookupNone:
		return ownerNone
	case u.result == lookupFailed:
		return ownerUnknown
	case u.uid == a.controlUser.uid:
		return ownerSame
	}
	return ownerOther
}

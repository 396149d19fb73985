package socks

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"wmproxy/internal/udpio"
)

// PortRange is the UDP ports First to Last. The zero value is any port; a Last
// of 0 means First alone.
type PortRange struct {
	First, Last uint16
}

// ParsePortRange reads PORT or PORT-PORT, ports being 1 to 65535.
func ParsePortRange(s string) (PortRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return PortRange{}, fmt.Errorf("%q is neither a port (1-65535) nor a range of ports such as 20000-20999", s)
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

func (r PortRange) String() string {
	switch {
	case r.First == 0:
		return "any"
	case r.single():
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// single reports whether r is one port, which associations then share.
func (r PortRange) single() bool { return r.First != 0 && r.Last <= r.First }

// A portTable opens the UDP sockets of associations.
type portTable struct {
	mu     sync.Mutex // never taken while receiving, so that a socket can be closed under it
	next   uint16     // offset in the range where the search goes on
	shared map[netip.Addr]*sharedPort
}

// maxPortTries is how many ports of a range one association tries: it is opened by the
// event loop, which has datagrams to carry too.
const maxPortTries = 256

// open binds a socket on ip to a port of r that is free.
func (t *portTable) open(ip netip.Addr, r PortRange, cfg udpio.Config) (*udpio.Socket, error) {
	if r.First == 0 {
		return udpio.Listen(netip.AddrPortFrom(ip, 0), cfg)
	}
	count := uint32(r.Last) - uint32(r.First) + 1
	t.mu.Lock()
	start := uint32(t.next)
	t.mu.Unlock()
	var err error
	for i := range min(count, maxPortTries) {
		offset := (start + i) % count
		var sock *udpio.Socket
		sock, err = udpio.Listen(netip.AddrPortFrom(ip, r.First+uint16(offset)), cfg)
		t.mu.Lock()
		t.next = uint16((offset + 1) % count) // the next call goes on from here
		t.mu.Unlock()
		if err == nil {
			return sock, nil
		}
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w (%s): %w", errPortsInUse, r, err)
}

// join returns the shared socket on local, opening it for the first.
func (t *portTable) join(s *Server, local netip.AddrPort, cfg udpio.Config) (*sharedPort, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.shared[local.Addr()]
	if p == nil {
		sock, err := udpio.Listen(local, cfg)
		if err != nil {
			return nil, err
		}
		p = &sharedPort{
			server:   s,
			ip:       local.Addr(),
			sock:     sock,
			pinned:   make(map[netip.AddrPort]*Association),
			unpinned: make(map[netip.Addr]*list.List),
		}
		if t.shared == nil {
			t.shared = make(map[netip.Addr]*sharedPort)
		}
		t.shared[p.ip] = p
		s.start(sock, p.receive)
	}
	p.users++
	return p, nil
}

// leave undoes a join; the last one closes the socket.
func (t *portTable) leave(p *sharedPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(t.shared, p.ip)
		p.sock.Close()
	}
}

// A sharedPort is one UDP socket for many associations. A datagram belongs to
// the association that its source is pinned to; a source that is not pinned
// takes the oldest association of its address that has none yet.
type sharedPort struct {
	server *Server
	ip     netip.Addr
	sock   *udpio.Socket
	users  int // guarded by portTable.mu

	// mu is held while datagrams are passed on, so that nothing reaches an
	// association after it has left.
	mu       sync.Mutex
	pinned   map[netip.AddrPort]*Association
	unpinned map[netip.Addr]*list.List // by address of the client, oldest first
	waiting  list.List                 // all the unpinned ones, oldest first
}

// A seat is an association's place among the unpinned ones of a shared port.
type seat struct {
	byAddr, waiting *list.Element
}

// enter makes a known to the port, without a source yet.
func (p *sharedPort) enter(a *Association) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ip := a.client.Addr().WithZone("")
	l := p.unpinned[ip]
	if l == nil {
		l = list.New()
		p.unpinned[ip] = l
	}
	a.seat = &seat{byAddr: l.PushBack(a), waiting: p.waiting.PushBack(a)}
}

// exit forgets a. Once it returns, nothing is passed on to a any more.
func (p *sharedPort) exit(a *Association) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unseat(a)
	if pin := a.pin.Load(); pin != nil {
		delete(p.pinned, pin.source)
	}
}

// unseat takes a out of the unpinned ones.
func (p *sharedPort) unseat(a *Association) {
	if a.seat == nil {
		return
	}
	ip := a.client.Addr().WithZone("")
	l := p.unpinned[ip]
	l.Remove(a.seat.byAddr)
	if l.Len() == 0 {
		delete(p.unpinned, ip)
	}
	p.waiting.Remove(a.seat.waiting)
	a.seat = nil
}

// receive passes each run of datagrams from one source on to its association.
func (p *sharedPort) receive(ms []udpio.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(ms) > 0 {
		n := 1
		if a := p.match(&ms[0]); a != nil {
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

// match returns the association that m belongs to, pinning one if need be.
func (p *sharedPort) match(m *udpio.Message) *Association {
	if a := p.pinned[m.Addr]; a != nil {
		return a
	}
	if _, err := udpHeader(m.Body); err != nil || m.Addr.Port() == 0 {
		return nil
	}
	var first *list.Element
	ip := m.Addr.Addr().WithZone("")
	if l := p.unpinned[ip]; l != nil {
		first = l.Front()
	} else if p.server.fromAllowed(ip) {
		first = p.waiting.Front()
	}
	if first == nil {
		return nil
	}
	a := first.Value.(*Association)
	p.unseat(a)
	a.pinTo(m.Addr)
	p.pinned[m.Addr] = a
	return a
}

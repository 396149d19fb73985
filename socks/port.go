package socks

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"wmproxy/internal/udpio"
)

// PortRange is the UDP ports First to Last. The zero value is any port; a Last
// of 0 means First alone.
type PortRange struct {
	First, Last uint16
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
			bySource: make(map[netip.AddrPort]*Association),
			byName:   make(map[netip.AddrPort]*Association),
			byClient: make(map[netip.Addr]*sharedPlaces),
		}
		if t.shared == nil {
			t.shared = make(map[netip.Addr]*sharedPort)
		}
		t.shared[p.ip] = p
		sock.Start(p.receive)
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

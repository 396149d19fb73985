// Package floor has pairs of relays that pass datagrams on one at a time and do nothing
// else, to measure the least that such relays cost in Go. Between the two is plain UDP, a
// quic-go connection, a TLS connection, or a yamux stream in one, with no code of ours but
// the socket. They do not bundle datagrams, so that a tunnel that does may need less CPU if
// several are waiting. Unlike the tunnel, those over QUIC and TLS block in a socket's
// callback if the connection is full.
//
// Both ends are a NAT: each source has a socket of its own towards the far side, until the
// relay ends. They are for the loads of trusted programs on loopback.
package floor

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"

	"wmproxy/internal/udpio"
)

// maxSources bounds the sources of a relay.
const maxSources = 4096

var errTooMany = errors.New("too many sources")

// deliver sends messages from the far side to a source.
type deliver func(ms []udpio.Message)

// nat has a socket towards an address for each source.
type nat[source comparable] struct {
	to      netip.AddrPort
	deliver func(source) deliver

	mu      sync.Mutex
	sockets map[source]*udpio.Socket
}

func newNAT[source comparable](to netip.AddrPort, f func(source) deliver) *nat[source] {
	return &nat[source]{to: to, deliver: f, sockets: make(map[source]*udpio.Socket)}
}

// socket returns the source's socket.
func (n *nat[source]) socket(from source) (*udpio.Socket, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sockets[from]; s != nil {
		return s, nil
	}
	if len(n.sockets) == maxSources {
		return nil, errTooMany
	}
	s, err := udpio.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), udpio.Config{})
	if err != nil {
		return nil, err
	}
	n.sockets[from] = s
	s.Start(n.deliver(from))
	return s, nil
}

// send passes on messages from a source. Those that cannot be sent are lost.
func (n *nat[source]) send(from source, ms []udpio.Message) {
	s, err := n.socket(from)
	if err != nil {
		return
	}
	for i := range ms {
		ms[i].Addr = n.to
	}
	_, _ = s.Write(ms)
}

func (n *nat[source]) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sockets {
		_ = s.Close()
	}
}

// eachRun calls f with each run of messages from the same source.
func eachRun(ms []udpio.Message, f func(from netip.AddrPort, ms []udpio.Message)) {
	for len(ms) > 0 {
		from, n := ms[0].Addr, 1
		for n < len(ms) && ms[n].Addr == from {
			n++
		}
		f(from, ms[:n])
		ms = ms[n:]
	}
}

// UDP is a relay from a socket to an address.
type UDP struct {
	front *udpio.Socket
	nat   *nat[netip.AddrPort]
}

// ListenUDP starts a relay at an address that passes datagrams on to another.
func ListenUDP(at, to netip.AddrPort) (*UDP, error) {
	front, err := udpio.Listen(at, udpio.Config{})
	if err != nil {
		return nil, err
	}
	u := &UDP{front: front}
	u.nat = newNAT(to, func(source netip.AddrPort) deliver {
		return func(ms []udpio.Message) {
			for i := range ms {
				ms[i].Addr = source
			}
			_, _ = front.Write(ms)
		}
	})
	front.Start(func(ms []udpio.Message) { eachRun(ms, u.nat.send) })
	return u, nil
}

// Addr returns the relay's address.
func (u *UDP) Addr() netip.AddrPort { return u.front.LocalAddr() }

// Close closes the relay.
func (u *UDP) Close() error {
	err := u.front.Close()
	u.front.Wait()
	u.nat.close()
	return err
}

// A DATAGRAM of the QUIC relays: the number of the source and its datagram.
//
//	0               2
//	+---------------+-----------
//	| source (16)   | datagram …
//	+---------------+-----------
const indexSize = 2

func putIndex(b []byte, index uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b[:0], index), body...)
}

func cutIndex(b []byte) (index uint16, body []byte, ok bool) {
	if len(b) < indexSize {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(b), b[indexSize:], true
}

// entrance is the socket of a near end, which numbers its sources.
type entrance struct {
	front   *udpio.Socket
	sources sources
}

// Addr returns the socket's address.
func (e *entrance) Addr() netip.AddrPort { return e.front.LocalAddr() }

// deliver returns a function that sends a datagram to its source. It is for one goroutine.
func (e *entrance) deliver() func(index uint16, body []byte) {
	var ms [1]udpio.Message
	return func(index uint16, body []byte) {
		if to, ok := e.sources.source(index); ok {
			ms[0] = udpio.Message{Body: body, Addr: to}
			_, _ = e.front.Write(ms[:])
		}
	}
}

// sendEach returns a function that sends a source's datagram through n. It is for one
// goroutine.
func sendEach(n *nat[uint16]) func(index uint16, body []byte) {
	var ms [1]udpio.Message
	return func(index uint16, body []byte) {
		ms[0] = udpio.Message{Body: body}
		n.send(index, ms[:])
	}
}

// sources numbers the sources of a near end. The zero value is ready to use.
type sources struct {
	mu      sync.Mutex
	indices map[netip.AddrPort]uint16
	all     []netip.AddrPort
}

// index returns the number of a source, or false if there are too many.
func (s *sources) index(from netip.AddrPort) (uint16, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index, ok := s.indices[from]
	if !ok && len(s.all) < maxSources {
		if s.indices == nil {
			s.indices = make(map[netip.AddrPort]uint16)
		}
		index, ok = uint16(len(s.all)), true
		s.indices[from] = index
		s.all = append(s.all, from)
	}
	return index, ok
}

func (s *sources) source(index uint16) (netip.AddrPort, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int(index) >= len(s.all) {
		return netip.AddrPort{}, false
	}
	return s.all[index], true
}

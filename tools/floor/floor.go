// Package floor is the least that two relays in Go can cost for one datagram at a time:
// they pass it on and do nothing else. They do not bundle, so that where several wait a tunnel
// that does may need less. Those over QUIC and TLS wait in a socket's callback where the connection
// is full, which the tunnel must not. Between the two is plain UDP, or a
// quic-go or TLS connection, or a yamux stream in one, without anything of ours but the socket.
//
// Both ends are a NAT: each source has a socket of its own towards the far side. They
// are for loads of trusted programs on loopback, and keep what they know until they end.
package floor

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"

	"wmproxy/internal/udpio"
)

// maxSources bounds the sources of one relay.
const maxSources = 4096

var errTooMany = errors.New("too many sources")

// back is where what comes from the far side for one source goes.
type back func(ms []udpio.Message)

// nat has a socket towards to for each source.
type nat[source comparable] struct {
	to   netip.AddrPort
	back func(source) back

	mu      sync.Mutex
	sockets map[source]*udpio.Socket
}

func newNAT[source comparable](to netip.AddrPort, of func(source) back) *nat[source] {
	return &nat[source]{to: to, back: of, sockets: make(map[source]*udpio.Socket)}
}

// socket is the source's own.
func (n *nat[source]) socket(of source) (*udpio.Socket, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sockets[of]; s != nil {
		return s, nil
	}
	if len(n.sockets) == maxSources {
		return nil, errTooMany
	}
	s, err := udpio.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 0), udpio.Config{})
	if err != nil {
		return nil, err
	}
	n.sockets[of] = s
	s.Start(n.back(of))
	return s, nil
}

// send passes on what came from a source; what cannot be sent is lost.
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

// runs calls do with the messages of each source that follow each other.
func runs(ms []udpio.Message, do func(from netip.AddrPort, ms []udpio.Message)) {
	for len(ms) > 0 {
		from, n := ms[0].Addr, 1
		for n < len(ms) && ms[n].Addr == from {
			n++
		}
		do(from, ms[:n])
		ms = ms[n:]
	}
}

// UDP is a relay from a socket to an address.
type UDP struct {
	front *udpio.Socket
	nat   *nat[netip.AddrPort]
}

// ListenUDP passes what comes to at on to to.
func ListenUDP(at, to netip.AddrPort) (*UDP, error) {
	front, err := udpio.Listen(at, udpio.Config{})
	if err != nil {
		return nil, err
	}
	u := &UDP{front: front}
	u.nat = newNAT(to, func(source netip.AddrPort) back {
		return func(ms []udpio.Message) {
			for i := range ms {
				ms[i].Addr = source
			}
			_, _ = front.Write(ms)
		}
	})
	front.Start(func(ms []udpio.Message) { runs(ms, u.nat.send) })
	return u, nil
}

// Addr is where the relay listens.
func (u *UDP) Addr() netip.AddrPort { return u.front.LocalAddr() }

// Close ends the relay.
func (u *UDP) Close() error {
	err := u.front.Close()
	u.nat.close()
	return err
}

// A DATAGRAM of the QUIC relays: which source, then what it sent.
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

// entrance is the socket of a near end that numbers its sources.
type entrance struct {
	front   *udpio.Socket
	sources sources
}

// Addr is where it listens.
func (e *entrance) Addr() netip.AddrPort { return e.front.LocalAddr() }

// deliver gives the sources what has come back for them. It is for one goroutine.
func (e *entrance) deliver() func(index uint16, body []byte) {
	var ms [1]udpio.Message
	return func(index uint16, body []byte) {
		if to, ok := e.sources.source(index); ok {
			ms[0] = udpio.Message{Body: body, Addr: to}
			_, _ = e.front.Write(ms[:])
		}
	}
}

// sendEach gives n what has come for its sources. It is for one goroutine.
func sendEach(n *nat[uint16]) func(index uint16, body []byte) {
	var ms [1]udpio.Message
	return func(index uint16, body []byte) {
		ms[0] = udpio.Message{Body: body}
		n.send(index, ms[:])
	}
}

// sources are numbered at the near end. The zero value works.
type sources struct {
	mu      sync.Mutex
	indices map[netip.AddrPort]uint16
	all     []netip.AddrPort
}

// index is the number of a source.
func (s *sources) index(of netip.AddrPort) (uint16, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index, ok := s.indices[of]
	if !ok && len(s.all) < maxSources {
		if s.indices == nil {
			s.indices = make(map[netip.AddrPort]uint16)
		}
		index, ok = uint16(len(s.all)), true
		s.indices[of] = index
		s.all = append(s.all, of)
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

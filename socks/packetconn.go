package socks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/udpio"
)

// Errors of a PacketConn.
var (
	// ErrAssociationEnded: the control connection ended, and the association with
	// it (RFC 1928 section 7).
	ErrAssociationEnded = errors.New("socks: the server ended the UDP association")
	// ErrDatagramSize: header and payload together exceed what UDP carries.
	ErrDatagramSize = errors.New("socks: datagram too large for UDP")
)

// packetConnBuffer is asked of the system for each direction, in bytes: room
// for a burst of large datagrams. Getting less is no error.
const packetConnBuffer = 4 << 20

// PacketConn is a UDP association seen from its client: a net.PacketConn whose
// datagrams travel by way of the server (RFC 1928 section 7). All methods may be
// called from any goroutine. It has none of *net.UDPConn's further methods, so
// that callers do not take the socket below for the destination's.
type PacketConn struct {
	control *net.TCPConn
	udp     *net.UDPConn
	relay   netip.AddrPort // where the server takes our datagrams
	bound   Addr

	watcher sync.WaitGroup // the goroutine that reads control

	mu          sync.Mutex
	ended       error // why it ended; nil while it lives
	strangeFrom netip.AddrPort

	wrongSource, malformed, fragments atomic.Uint64

	readMu  sync.Mutex
	readBuf []byte       // holds one datagram while it is decoded
	source  *net.UDPAddr // what ReadFrom said last; never written to again

	writeMu  sync.Mutex
	writeBuf []byte // header and payload of the datagram being sent
}

var _ net.PacketConn = (*PacketConn)(nil)

// RequestAssociation asks the server for a UDP association (RFC 1928 section 4, UDP
// ASSOCIATE), for callers with a socket of their own. It returns the control
// connection, BND, and the address for datagrams: BND, or the server's own address
// and BND.PORT if BND.ADDR is unspecified or a name. The context bounds the handshake
// only. Errors are *StepError.
func (c *Client) RequestAssociation(ctx context.Context) (control *net.TCPConn, bound Addr, relay netip.AddrPort, err error) {
	// DST 0.0.0.0:0 means that the source port is not known yet.
	control, bound, err = c.open(ctx, askAssociate, Addr{IP: netip.IPv4Unspecified()})
	if err != nil {
		return nil, Addr{}, netip.AddrPort{}, err
	}
	if bound.Port == 0 {
		control.Close()
		return nil, Addr{}, netip.AddrPort{}, &StepError{StepReply, fmt.Errorf("%w: BND.PORT is 0", ErrMalformed)}
	}
	return control, bound, relayAddr(bound, udpio.AddrPortOf(control.RemoteAddr()).Addr()), nil
}

// Associate asks the server for a UDP association as RequestAssociation does and
// opens the socket for it.
func (c *Client) Associate(ctx context.Context) (*PacketConn, error) {
	control, bound, relay, err := c.RequestAssociation(ctx)
	if err != nil {
		return nil, err
	}
	udp, err := listenFor(udpio.AddrPortOf(control.LocalAddr()).Addr(), relay)
	if err != nil {
		control.Close()
		return nil, &StepError{StepSocket, err}
	}
	// Best effort: the system may allow less.
	udp.SetReadBuffer(packetConnBuffer)
	udp.SetWriteBuffer(packetConnBuffer)
	p := &PacketConn{control: control, udp: udp, relay: relay, bound: bound}
	p.watcher.Go(p.watchControl)
	c.passed(StepSocket, Addr{})
	return p, nil
}

// relayAddr is where datagrams go for this BND of the server at this address.
func relayAddr(bound Addr, server netip.Addr) netip.AddrPort {
	switch ip := bound.IP; {
	case !ip.IsValid(), ip.IsUnspecified():
		return netip.AddrPortFrom(server, bound.Port)
	case ip.IsLinkLocalUnicast() && ip.Is6():
		// SOCKS has no zones; the server is on the link that we reached it by.
		return netip.AddrPortFrom(ip.WithZone(server.Zone()), bound.Port)
	default:
		return netip.AddrPortFrom(ip, bound.Port)
	}
}

// listenFor opens the association's socket on the control connection's own
// local address, since servers take datagrams from there alone, or on any
// address when that one has no route to the relay. It stays unconnected, so
// that datagrams from elsewhere can be counted.
func listenFor(local netip.Addr, relay netip.AddrPort) (*net.UDPConn, error) {
	network := "udp4"
	if relay.Addr().Is6() {
		network = "udp6"
	}
	laddr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	// Connecting a socket sends nothing and asks the system for a route.
	probe, err := net.DialUDP(network, laddr, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		return net.ListenUDP(network, nil)
	}
	probe.Close()
	return net.ListenUDP(network, laddr)
}

// watchControl ends the association when the server ends the control
// connection. What the server may say there means nothing and is thrown away.
func (p *PacketConn) watchControl() {
	_, err := io.Copy(io.Discard, p.control)
	if err == nil {
		err = io.EOF
	}
	p.end(fmt.Errorf("%w: %w", ErrAssociationEnded, err))
}

// end closes both sockets; the first reason is the one that is told.
func (p *PacketConn) end(reason error) {
	p.mu.Lock()
	if p.ended == nil {
		p.ended = reason
	}
	p.mu.Unlock()
	p.control.Close()
	p.udp.Close()
}

// Close ends the association. Reads that wait return net.ErrClosed. Closing
// again does nothing.
func (p *PacketConn) Close() error {
	p.end(net.ErrClosed)
	p.watcher.Wait()
	return nil
}

// reason returns why the association ended, or err while it lives.
func (p *PacketConn) reason(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return p.ended
	}
	return err
}

// BoundAddr is BND as the server told it, usable or not.
func (p *PacketConn) BoundAddr() Addr { return p.bound }

// RelayAddr is where datagrams are sent: BND, or what stands in for it.
func (p *PacketConn) RelayAddr() netip.AddrPort { return p.relay }

// ServerAddr is the server's end of the control connection.
func (p *PacketConn) ServerAddr() netip.AddrPort { return udpio.AddrPortOf(p.control.RemoteAddr()) }

// WrongSource counts the datagrams that were dropped because they did not come
// from RelayAddr. last is where the latest of them came from.
func (p *PacketConn) WrongSource() (n uint64, last netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wrongSource.Load(), p.strangeFrom
}

// Malformed counts the datagrams that were dropped for their header.
func (p *PacketConn) Malformed() uint64 { return p.malformed.Load() }

// Fragments counts the datagrams that were dropped because FRAG was not 0:
// reassembly is optional (RFC 1928 section 7), and this side does not do it.
func (p *PacketConn) Fragments() uint64 { return p.fragments.Load() }

// A datagram between client and server (RFC 1928 section 7):
//
//	+-----+------+-------------------+---------+
//	| RSV | FRAG | address and port  | payload |
//	+-----+------+-------------------+---------+
//	|  2  |  1   | 7, 19 or 5…259    |  0…     |
//	+-----+------+-------------------+---------+

// errFragmented is a datagram whose FRAG is not 0.
var errFragmented = errors.New("socks: fragment of a datagram")

// splitReplyDatagram decodes a datagram from the server. body aliases b. RSV
// is not judged: some peers keep flags there.
func splitReplyDatagram(b []byte) (from Addr, body []byte, err error) {
	if len(b) < 3 {
		return Addr{}, nil, errShortAddr
	}
	if b[2] != 0 {
		return Addr{}, nil, errFragmented
	}
	from, n, err := ParseAddr(b[3:])
	if err != nil {
		return Addr{}, nil, err
	}
	return from, b[3+n:], nil
}

// ReadFromAddr waits for a datagram and copies its payload to b; what exceeds b
// is lost. from is the source as the server tells it. A payload of zero bytes
// is a datagram too. The error is ErrAssociationEnded after the server ended
// the association, net.ErrClosed after Close. It does not allocate unless the
// source is a name.
func (p *PacketConn) ReadFromAddr(b []byte) (n int, from Addr, err error) {
	p.readMu.Lock()
	defer p.readMu.Unlock()
	return p.read(b)
}

// read is ReadFromAddr for a caller that holds readMu.
func (p *PacketConn) read(b []byte) (int, Addr, error) {
	if p.readBuf == nil {
		p.readBuf = make([]byte, udpio.MaxDatagram6)
	}
	for {
		n, source, err := p.udp.ReadFromUDPAddrPort(p.readBuf)
		if err != nil {
			return 0, Addr{}, p.reason(err)
		}
		if source = udpio.Unmap(source); source != p.relay {
			p.mu.Lock()
			p.wrongSource.Add(1)
			p.strangeFrom = source
			p.mu.Unlock()
			continue
		}
		from, body, err := splitReplyDatagram(p.readBuf[:n])
		switch {
		case err == nil:
			return copy(b, body), from, nil
		case errors.Is(err, errFragmented):
			p.fragments.Add(1)
		default:
			p.malformed.Add(1)
		}
	}
}

// ReadFrom is ReadFromAddr with the source as a *net.UDPAddr, which must not be
// written to, or as an Addr if it is a name. While datagrams come from one
// source it does not allocate.
func (p *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	p.readMu.Lock()
	defer p.readMu.Unlock()
	n, from, err := p.read(b)
	if err != nil {
		return 0, nil, err
	}
	if !from.IP.IsValid() {
		return n, from, nil
	}
	if p.source == nil || AddrFrom(p.source.AddrPort()) != from {
		p.source = net.UDPAddrFromAddrPort(from.AddrPort())
	}
	return n, p.source, nil
}

// WriteToAddr sends b to dst by way of the server, which resolves a name. It
// does not allocate once it has sent its largest datagram.
func (p *PacketConn) WriteToAddr(b []byte, dst Addr) (int, error) {
	if err := dst.encodable(); err != nil {
		return 0, err
	}
	limit := udpio.MaxPayload(p.relay.Addr())
	if len(b) > limit {
		return 0, fmt.Errorf("%w: %d bytes of payload", ErrDatagramSize, len(b))
	}
	p.writeMu.Lock()
	defer p.writeMu.Unlock()
	p.writeBuf = AppendAddr(append(p.writeBuf[:0], 0, 0, 0), dst)
	header := len(p.writeBuf)
	p.writeBuf = append(p.writeBuf, b...)
	if len(p.writeBuf) > limit {
		return 0, fmt.Errorf("%w: %d bytes of payload and %d of header", ErrDatagramSize, len(b), header)
	}
	if _, err := p.udp.WriteToUDPAddrPort(p.writeBuf, p.relay); err != nil {
		return 0, p.reason(err)
	}
	return len(b), nil
}

// WriteTo is WriteToAddr for a *net.UDPAddr, or an Addr to send to a name.
func (p *PacketConn) WriteTo(b []byte, dst net.Addr) (int, error) {
	switch a := dst.(type) {
	case *net.UDPAddr:
		return p.WriteToAddr(b, AddrFrom(a.AddrPort()))
	case Addr:
		return p.WriteToAddr(b, a)
	}
	return 0, fmt.Errorf("socks: cannot send to an address of type %T", dst)
}

// Network makes Addr a net.Addr, so that WriteTo can take a name.
func (a Addr) Network() string { return "socks" }

// LocalAddr is the address of the socket that talks to the server.
func (p *PacketConn) LocalAddr() net.Addr { return p.udp.LocalAddr() }

// SetDeadline bounds reads and writes, as in net.PacketConn.
func (p *PacketConn) SetDeadline(t time.Time) error { return p.udp.SetDeadline(t) }

// SetReadDeadline bounds reads, as in net.PacketConn.
func (p *PacketConn) SetReadDeadline(t time.Time) error { return p.udp.SetReadDeadline(t) }

// SetWriteDeadline bounds writes, as in net.PacketConn.
func (p *PacketConn) SetWriteDeadline(t time.Time) error { return p.udp.SetWriteDeadline(t) }

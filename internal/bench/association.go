package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// association is an association of the loads churn and hold, which send one datagram at
// a time.
type association struct {
	control *net.TCPConn // nil without a proxy
	udp     *net.UDPConn
}

// attempts bounds the datagrams sent for one round trip.
const attempts = 3

// pinger makes round trips on associations, for one goroutine.
type pinger struct {
	header  int // bytes before the payload
	stamp   stamp
	packet  []byte
	answer  []byte
	timeout time.Duration
}

func newPinger(c *Common, size int, run uint32) *pinger {
	p := &pinger{stamp: stamp{run: run}, timeout: c.timeout(), answer: make([]byte, 1<<16)}
	if c.Socks != "" {
		p.packet = udpHeader(c.Target)
	}
	p.header = len(p.packet)
	p.packet = append(append(p.packet, make([]byte, MinSize)...), filler(size)...)
	return p
}

// openAssociation opens an association and its socket.
func openAssociation(ctx context.Context, way *Way) (a association, err error) {
	control, to, err := way.associate(ctx)
	if err != nil {
		return a, err
	}
	a.control = control
	local := net.UDPAddrFromAddrPort(localAddr(control, to))
	if a.udp, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to)); err != nil {
		a.close()
	}
	return a, err
}

// associate opens a UDP association and returns its control connection and the address
// for datagrams. Without a proxy these are nil and the target. The caller opens the
// socket: that of a socks.PacketConn costs a goroutine, which is too much for thousands.
// Errors are *socks.StepError.
func (w *Way) associate(ctx context.Context) (control *net.TCPConn, to netip.AddrPort, err error) {
	if w.Socks == "" {
		return nil, w.direct, nil
	}
	control, _, to, err = w.client().RequestAssociation(ctx)
	return control, to, err
}

// localAddr returns the address for a socket that sends to an address: that of the
// control connection, since servers take datagrams from there, or else a wildcard.
func localAddr(control *net.TCPConn, to netip.AddrPort) netip.AddrPort {
	ip := netip.IPv6Unspecified()
	if to.Addr().Is4() {
		ip = netip.IPv4Unspecified()
	}
	if control != nil {
		if own := control.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); own.Is4() == to.Addr().Is4() {
			ip = own
		}
	}
	return netip.AddrPortFrom(ip, 0)
}

func (a *association) close() {
	if a.udp != nil {
		_ = a.udp.Close()
	}
	if a.control != nil {
		_ = a.control.Close()
	}
}

// ping makes a round trip on a and returns the number of datagrams sent again.
func (p *pinger) ping(ctx context.Context, a association) (again int, err error) {
	for again = range attempts {
		if err = p.pingOnce(ctx, a); err == nil || !timedOut(err) || ctx.Err() != nil {
			return again, err
		}
	}
	return again, fmt.Errorf("%w within %v to %d datagrams", errNoAnswer, p.timeout, attempts)
}

func (p *pinger) pingOnce(ctx context.Context, a association) error {
	p.stamp.sequence++
	p.stamp.put(p.packet[p.header:])
	_ = a.udp.SetReadDeadline(time.Now().Add(p.timeout))
	if _, err := a.udp.Write(p.packet); err != nil {
		return err
	}
	for ctx.Err() == nil {
		n, err := a.udp.Read(p.answer)
		if err != nil {
			return err
		}
		body := p.answer[:n]
		if a.control != nil {
			body = payloadOf(body)
		}
		if s, ok := readStamp(body); ok && s == p.stamp && len(body) == len(p.packet)-p.header {
			return nil
		}
	}
	return context.Cause(ctx)
}

// interrupted reports whether err is due to the end of ctx. A dial checks the deadline
// itself and may return before ctx is done.
func interrupted(ctx context.Context, err error) bool {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return true
	}
	return ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

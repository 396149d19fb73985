package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// association is one of churn's and hold's: it asks and waits for the answer.
type association struct {
	control *net.TCPConn // nil without a proxy
	udp     *net.UDPConn
}

// trips is how often a datagram is sent until its answer comes.
const trips = 3

// traveller is what one goroutine needs to make round trips on associations.
type traveller struct {
	header  int // bytes before the payload
	stamp   stamp
	packet  []byte
	answer  []byte
	timeout time.Duration
}

func newTraveller(c *Common, size int, run uint32) *traveller {
	t := &traveller{stamp: stamp{run: run}, timeout: c.timeout(), answer: make([]byte, 1<<16)}
	if c.Socks != "" {
		t.packet = udpHeader(c.Target)
	}
	t.header = len(t.packet)
	t.packet = append(append(t.packet, make([]byte, MinSize)...), filler(size)...)
	return t
}

// openAssociation opens one.
func openAssociation(ctx context.Context, way *Way) (a association, err error) {
	to := way.direct
	var local *net.UDPAddr
	if way.Socks != "" {
		if a.control, to, err = associate(ctx, way); err != nil {
			return a, err
		}
		// Servers take datagrams from where the request came from.
		if ap := a.control.LocalAddr().(*net.TCPAddr).AddrPort(); ap.Addr().Unmap().Is4() == to.Addr().Is4() {
			local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(ap.Addr().Unmap(), 0))
		}
	}
	if a.udp, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to)); err != nil {
		a.close()
	}
	return a, err
}

func (a *association) close() {
	if a.udp != nil {
		_ = a.udp.Close()
	}
	if a.control != nil {
		_ = a.control.Close()
	}
}

// trip makes one round trip on a. again counts the times that it had to be tried
// again.
func (t *traveller) trip(ctx context.Context, a association) (rtt time.Duration, again int, err error) {
	for again = range trips {
		if rtt, err = t.once(ctx, a); err == nil || !timedOut(err) || ctx.Err() != nil {
			return rtt, again, err
		}
	}
	return 0, again, fmt.Errorf("%w within %v, asked %d times", errNoAnswer, t.timeout, trips)
}

func (t *traveller) once(ctx context.Context, a association) (time.Duration, error) {
	t.stamp.sequence++
	t.stamp.put(t.packet[t.header:])
	sent := time.Now()
	_ = a.udp.SetReadDeadline(sent.Add(t.timeout))
	if _, err := a.udp.Write(t.packet); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		n, err := a.udp.Read(t.answer)
		if err != nil {
			return 0, err
		}
		body := t.answer[:n]
		if a.control != nil {
			body = payloadOf(body)
		}
		if s, ok := readStamp(body); ok && s == t.stamp && len(body) == len(t.packet)-t.header {
			return time.Since(sent), nil
		}
	}
	return 0, context.Cause(ctx)
}

// interrupted says whether err only means that the load is to end. A dial looks at
// the deadline itself and may find it past before ctx does.
func interrupted(ctx context.Context, err error) bool {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return true
	}
	return ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

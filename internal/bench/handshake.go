package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"wmproxy/socks"
)

// handshakeTimeout bounds dial and handshake of one association.
const handshakeTimeout = 10 * time.Second

var (
	resolver = net.DefaultResolver
	dialer   net.Dialer
)

// associate opens a UDP association and returns its control connection and where
// the server takes datagrams. socks.Client also opens a socket and starts a
// goroutine for each association; a load of thousands brings sockets of its own.
// Errors are *socks.StepError.
func associate(ctx context.Context, way *Way) (*net.TCPConn, netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", way.Socks)
	if err != nil {
		return nil, netip.AddrPort{}, &socks.StepError{Step: socks.StepDial, Err: err}
	}
	control := conn.(*net.TCPConn)
	// The context reaches the blocking reads and writes through the deadline.
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = control.SetDeadline(time.Unix(1, 0))
		close(aborted)
	})
	bound, step, err := requestAssociation(control, way)
	if !stop() {
		<-aborted
		err = context.Cause(ctx)
	}
	if err == nil && bound.Port == 0 {
		step, err = socks.StepReply, fmt.Errorf("%w: BND.PORT is 0", socks.ErrMalformed)
	}
	if err != nil {
		_ = control.Close()
		return nil, netip.AddrPort{}, &socks.StepError{Step: step, Err: err}
	}
	ip := bound.IP
	if !ip.IsValid() || ip.IsUnspecified() {
		ip = control.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	}
	return control, netip.AddrPortFrom(ip, bound.Port), nil
}

// requestAssociation is the client's side of RFC 1928 sections 3 to 6 and RFC
// 1929, for UDP ASSOCIATE:
//
//	VER 5 · NMETHODS · METHODS             →
//	                                       ←  VER 5 · METHOD
//	VER 1 · ULEN · UNAME · PLEN · PASSWD   →                          (method 2)
//	                                       ←  VER · STATUS
//	VER 5 · CMD 3 · RSV 0 · 0.0.0.0:0      →
//	                                       ←  VER 5 · REP · RSV · BND
func requestAssociation(c io.ReadWriter, way *Way) (bound socks.Addr, step socks.Step, err error) {
	var b [udpHeaderLen + socks.MaxAddrLen]byte
	hello := []byte{5, 1, 0}
	if way.Username != "" {
		hello = []byte{5, 2, 0, 2}
	}
	if err = exchange(c, hello, b[:2]); err != nil {
		return bound, socks.StepGreeting, err
	}
	switch {
	case b[0] != 5:
		return bound, socks.StepGreeting, socks.ErrNotSOCKS5
	case b[1] == 2 && way.Username != "":
		login := append([]byte{1, byte(len(way.Username))}, way.Username...)
		login = append(append(login, byte(len(way.Password))), way.Password...)
		if err = exchange(c, login, b[:2]); err == nil && b[1] != 0 {
			err = socks.ErrAuth
		}
		if err != nil {
			return bound, socks.StepAuth, err
		}
	case b[1] != 0:
		return bound, socks.StepGreeting, socks.ErrNoMethod
	}
	if err = exchange(c, []byte{5, 3, 0, socks.TypeIPv4, 0, 0, 0, 0, 0, 0}, b[:5]); err != nil {
		return bound, socks.StepReply, err
	}
	if b[0] != 5 {
		return bound, socks.StepReply, socks.ErrMalformed
	}
	if b[1] != socks.ReplySucceeded {
		return bound, socks.StepReply, &socks.ReplyError{Code: b[1]}
	}
	n := map[byte]int{socks.TypeIPv4: 10, socks.TypeIPv6: 22, socks.TypeName: 7 + int(b[4])}[b[3]]
	if n < 5 {
		return bound, socks.StepReply, socks.ErrMalformed
	}
	if _, err = io.ReadFull(c, b[5:n]); err != nil {
		return bound, socks.StepReply, err
	}
	if bound, _, err = socks.ParseAddr(b[3:n]); err != nil {
		err = fmt.Errorf("%w: %w", socks.ErrMalformed, err)
	}
	return bound, socks.StepReply, err
}

// exchange writes ask and fills answer.
func exchange(c io.ReadWriter, ask, answer []byte) error {
	if _, err := c.Write(ask); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("%w: %w", socks.ErrHungUp, err)
	}
	return nil
}

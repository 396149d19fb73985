package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"wmproxy/internal/eyeballs"
	"wmproxy/internal/share"
)

// dialAny dials the candidates, a new one beside the others while none has answered. It dials
// the addresses that the policy has permitted, so that a name which changes meanwhile has no
// effect. The error is errPolicy only if the policy permits none.
func (u *UserExit) dialAny(ctx context.Context, candidates []netip.Addr, port uint16) (*net.TCPConn, error) {
	var allowed []netip.Addr
	for _, ip := range candidates {
		if u.exits.policy.permits(netip.AddrPortFrom(ip, port)) {
			allowed = append(allowed, ip)
		}
	}
	if len(allowed) == 0 {
		return nil, errPolicy
	}
	s := sockets{user: u, own: make(chan struct{}, 1)}
	s.own <- struct{}{}
	conn, errs := eyeballs.Dial(ctx, eyeballs.Order(allowed), func(ctx context.Context, ip netip.Addr) (*net.TCPConn, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		release, err := s.take(ctx, cancel)
		if err != nil {
			return nil, err
		}
		defer release()
		return dial(ctx, netip.AddrPortFrom(ip, port))
	}, func(conn *net.TCPConn) { conn.Close() })
	if conn == nil {
		return nil, mostTelling(errs)
	}
	return conn, nil
}

// dial connects to one address.
func dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive} // TCP_NODELAY is Go's default
	conn, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	return conn, nil
}

// mostTelling returns the error to send to the client: that of a host that answered,
// otherwise that of the first address.
func mostTelling(errs []error) error {
	for _, err := range errs {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
	return errs[0]
}

// sockets counts the attempts of one stream. One has the stream's own place among the user's
// streams. Each one beside it takes another place, so that names with many dead addresses do
// not take more descriptors than the limits allow.
type sockets struct {
	user *UserExit
	own  chan struct{} // has a value while no attempt has the stream's own place
}

// take blocks until there is a place for an attempt. cancel ends the attempt if others need it.
func (s *sockets) take(ctx context.Context, cancel context.CancelCauseFunc) (release func(), err error) {
	for {
		select {
		case <-s.own:
			return func() { s.own <- struct{}{} }, nil
		default:
		}
		if release := s.user.enterBeside(cancel); release != nil {
			return release, nil
		}
		select {
		case <-s.own:
			return func() { s.own <- struct{}{} }, nil
		case <-ctx.Done():
			return nil, fmt.Errorf("dial: %w", ctx.Err())
		case <-time.After(eyeballs.Delay):
		}
	}
}

// enterBeside counts one more stream, or returns nil if the limits do not allow it at once. The
// caller counts as a stream itself.
func (u *UserExit) enterBeside(cancel context.CancelCauseFunc) (release func()) {
	e := u.exits
	if !e.enterStream(u) {
		return nil
	}
	use := &streamUse{pool: e.cfg.Room, cancel: cancel}
	use.note()
	lease, err := e.cfg.Room.TakeFree(u.Name, share.Stream, 1, use)
	if err != nil {
		e.leaveStream(u)
		return nil
	}
	return func() {
		lease.Release()
		e.leaveStream(u)
	}
}

package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"wmproxy/internal/relay"
	"wmproxy/internal/share"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// keepAlive detects targets that have vanished in about two minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 4}

var (
	errPolicy  = errors.New("the destination policy refuses it")
	errBadAddr = errors.New("malformed destination")
)

// request is the client's side of a stream.
type request interface {
	Accept(bound []byte) (carrier.Stream, error)
	Refuse(code byte)
	Context() context.Context
}

var _ request = (*tunnel.IncomingStream)(nil)

// ServeStream connects a stream to its destination and relays until both have ended.
func (u *UserExit) ServeStream(ctx context.Context, in *tunnel.IncomingStream) {
	u.serveStream(ctx, in.Addr, in)
}

func (u *UserExit) serveStream(ctx context.Context, addr []byte, in request) {
	e := u.exits
	if !e.enterStream(u) {
		e.refusedByLimit(u, "stream", errLimit)
		in.Refuse(socks.ReplyGeneralFailure)
		return
	}
	defer e.leaveStream(u)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(e.ctx, func() { cancel(nil) })()
	use := &streamUse{pool: e.cfg.Room, cancel: cancel}
	use.note()
	lease, err := e.cfg.Room.Wait(ctx, u.Name, share.Stream, e.each(), use)
	if err != nil {
		e.refusedByLimit(u, "stream", err)
		in.Refuse(socks.ReplyGeneralFailure)
		return
	}
	defer lease.Release()

	since := time.Now()
	log := e.cfg.Log.With("user", u.Name)
	conn, err := u.connectFor(ctx, in, addr)
	if exhausted(err) && e.squeeze(ctx, u) {
		conn, err = u.connectFor(ctx, in, addr)
	}
	if err != nil {
		code := replyCode(err)
		in.Refuse(code)
		log.Debug("stream refused", "code", code, "error", err)
		return
	}
	remote := conn.RemoteAddr()
	stream, err := in.Accept(socks.AppendAddrPort(nil, conn.LocalAddr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		conn.Close()
		log.Debug("stream gone before it was connected", "target", remote, "error", err)
		return
	}
	r := relay.Run(ctx, conn, nil, u.counted(stream, use))
	log.Debug("stream ended", "target", remote, "duration", time.Since(since).Round(time.Millisecond),
		"up_bytes", r.FromStream, "down_bytes", r.ToStream, "error", r.Err)
}

// counted returns the stream with its bytes counted for the user.
func (u *UserExit) counted(s carrier.Stream, use *streamUse) carrier.Stream {
	return relay.Noted(s, func(n int) { use.note(); u.Total.StreamUp(n) }, func(n int) { use.note(); u.Total.StreamDown(n) })
}

// connectFor is like connect, but ends early if the request does.
func (u *UserExit) connectFor(ctx context.Context, in request, addr []byte) (*net.TCPConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(in.Context(), cancel)()
	return u.connect(ctx, addr)
}

// connect dials the destination in addr.
func (u *UserExit) connect(ctx context.Context, addr []byte) (*net.TCPConn, error) {
	dst, n, err := socks.ParseAddr(addr)
	if err != nil {
		return nil, err
	}
	if n != len(addr) || dst.Port == 0 {
		return nil, errBadAddr
	}
	ctx, cancel := context.WithTimeout(ctx, u.exits.cfg.DialTimeout)
	defer cancel()
	candidates := []netip.Addr{dst.IP}
	if !dst.IP.IsValid() {
		if candidates, err = u.lookupName(ctx, dst.Name); err != nil {
			return nil, err
		}
	}
	conn, err := u.dialAny(ctx, candidates, dst.Port)
	if err == nil && !u.exits.own.permits(conn) {
		conn.SetLinger(0) // send the host that accepted it a reset
		conn.Close()
		return nil, errPolicy
	}
	return conn, err
}

// lookupName resolves a name and waits for it.
func (u *UserExit) lookupName(ctx context.Context, name string) ([]netip.Addr, error) {
	type result struct {
		addrs []netip.Addr
		err   error
	}
	c := make(chan result, 1) // the resolver answers even after the return
	addrs, done, err := u.resolve(name, keepAnswer, func(addrs []netip.Addr, err error) { c <- result{addrs, err} })
	if done {
		return addrs, err
	}
	select {
	case r := <-c:
		return r.addrs, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("resolve: %w", ctx.Err())
	}
}

// replyCode returns the SOCKS5 reply (RFC 1928 section 6) for err. A timeout is "TTL expired",
// which is unused otherwise, to distinguish it from an unreachable host. Refusals of the local
// packet filter count as not allowed.
func replyCode(err error) byte {
	var dns *net.DNSError
	switch {
	case errors.Is(err, errPolicy), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return socks.ReplyNotAllowed
	case errors.Is(err, socks.ErrAddrType):
		return socks.ReplyAddrUnsupported
	case errors.Is(err, syscall.ECONNREFUSED):
		return socks.ReplyConnectionRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ENETDOWN),
		errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT): // the host does not have the family
		return socks.ReplyNetworkUnreachable
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN),
		errors.Is(err, errNoAddr), errors.As(err, &dns) && dns.IsNotFound:
		return socks.ReplyHostUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ETIMEDOUT), dns != nil && dns.IsTimeout:
		return socks.ReplyTTLExpired
	}
	return socks.ReplyGeneralFailure
}

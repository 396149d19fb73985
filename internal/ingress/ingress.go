// Package ingress is entrances to the tunnel: what an application asks for in
// its own protocol becomes a flow or a stream. It knows nothing of the far end.
package ingress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"wmproxy/internal/relay"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// connectTimeout bounds the far end's answer to a CONNECT; the far end's own
// bounds on the name and the dial are shorter.
const connectTimeout = 20 * time.Second

// SOCKS is the SOCKS5 entrance: its methods are the hooks of a socks.Server.
type SOCKS struct {
	Route *Route
	Room  *Room // nil: descriptors are not shared out
	Log   *slog.Logger

	// AddressAnswers has answers to datagrams carry their source's address even if the
	// datagrams were sent to a name.
	AddressAnswers bool
}

// Connect carries one CONNECT through the tunnel and returns at its end.
func (s *SOCKS) Connect(ctx context.Context, r *socks.ConnectRequest) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var use use
	defer use.leave()
	if err := s.Room.enterStream(ctx, &use, userOf(r.User, r.Client.Addr()), func() { end(errGivenUp) }); err != nil {
		s.full("CONNECT", r.User, r.Client, err)
		_ = r.Reply(socks.ReplyGeneralFailure, netip.AddrPort{})
		return
	}
	opening, cancel := context.WithTimeout(ctx, connectTimeout)
	st, bound, err := s.Route.preferred.Load().OpenStream(opening, r.DstWire)
	cancel()
	if err != nil {
		code := reply(err)
		s.Log.Info("CONNECT failed", slog.String("user", r.User), slog.String("client", r.Client.String()),
			slog.String("target", r.Dst.String()), slog.Int("reply", int(code)), slog.Any("reason", err))
		_ = r.Reply(code, netip.AddrPort{})
		return
	}
	ap, _, _, _ := socks.SplitAddr(bound)
	if err := r.Reply(socks.ReplySucceeded, ap); err != nil {
		st.Reset(tunnel.CodeConnectionReset)
		return
	}
	began := time.Now()
	res := relay.Run(ctx, r.Conn.(*net.TCPConn), r.Ahead, relay.Noted(st, use.note))
	s.Log.Debug("stream ended", slog.String("user", r.User), slog.String("target", r.Dst.String()),
		slog.Duration("duration", time.Since(began)), slog.Int64("bytes_up", res.ToStream),
		slog.Int64("bytes_down", res.FromStream), slog.Any("error", res.Err))
}

// reply is the reply code for what kept a stream from opening.
func reply(err error) byte {
	if refused := (*tunnel.RefusedError)(nil); errors.As(err, &refused) {
		return refused.Code
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return socks.ReplyTTLExpired // as the exit says when the target does not answer
	}
	return socks.ReplyGeneralFailure
}

// Associate carries one UDP association through the tunnel as a flow.
func (s *SOCKS) Associate(a *socks.Association) (socks.Uplink, byte) {
	as := &association{route: s.Route, socks: a, byName: !s.AddressAnswers}
	if err := s.Room.enter(&as.use, userOf(a.User(), a.Client().Addr()), a.Close); err != nil {
		s.full("UDP ASSOCIATE", a.User(), a.Client(), err)
		return nil, socks.ReplyGeneralFailure
	}
	if !as.open() {
		as.use.leave()
		return nil, socks.ReplyGeneralFailure
	}
	s.Route.add(as)
	return as, socks.ReplySucceeded
}

// full logs that there is no room for an application's request.
func (s *SOCKS) full(what, user string, client netip.AddrPort, err error) {
	s.Log.Warn("refused for want of room", slog.String("what", what), slog.String("user", user),
		slog.String("client", client.String()), slog.Any("error", err))
}

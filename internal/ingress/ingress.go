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
	Log   *slog.Logger

	// AddressAnswers has answers to datagrams carry their source's address even if the
	// datagrams were sent to a name.
	AddressAnswers bool
}

// Connect carries one CONNECT through the tunnel and returns at its end.
func (s *SOCKS) Connect(ctx context.Context, r *socks.ConnectRequest) {
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
	res := relay.Run(ctx, r.Conn.(*net.TCPConn), r.Ahead, st)
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
	if !as.open() {
		return nil, socks.ReplyGeneralFailure
	}
	s.Route.add(as)
	return as, socks.ReplySucceeded
}

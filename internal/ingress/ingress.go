// Package ingress is entrances to the tunnel: what an application asks for in
// its own protocol becomes a flow or a stream. It knows nothing of the far end.
package ingress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/relay"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// connectTimeout bounds the far end's answer to a CONNECT; the far end's own
// bounds on the name and the dial are shorter.
const connectTimeout = 20 * time.Second

// SOCKS is the SOCKS5 entrance: its methods are the hooks of a socks.Server.
type SOCKS struct {
	Session *tunnel.Session
	Log     *slog.Logger
}

// Connect carries one CONNECT through the tunnel and returns at its end.
func (s *SOCKS) Connect(ctx context.Context, r *socks.ConnectRequest) {
	opening, cancel := context.WithTimeout(ctx, connectTimeout)
	st, bound, err := s.Session.OpenStream(opening, r.DstWire)
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
	res := relay.Run(ctx, r.Conn.(*net.TCPConn), st)
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
	as := &association{session: s.Session, socks: a}
	if !as.open() {
		return nil, socks.ReplyGeneralFailure
	}
	return as, socks.ReplySucceeded
}

// association joins a SOCKS5 association and a flow.
type association struct {
	session *tunnel.Session
	socks   *socks.Association
	flow    atomic.Pointer[tunnel.Flow]
	over    atomic.Bool

	mu   sync.Mutex
	lost tunnel.Drops // of the flows before this one
}

func (a *association) open() bool {
	f, err := a.session.OpenFlow(a)
	if err != nil {
		return false
	}
	a.flow.Store(f)
	if a.over.Load() {
		f.End(tunnel.EndNormal)
	}
	return true
}

// Send takes datagrams from the application.
// The socket has the session's Turn.
func (a *association) Send(ms []udpio.Message) { a.flow.Load().Queue(ms) }

// End says that the application ended the association.
func (a *association) End() {
	a.over.Store(true)
	a.flow.Load().End(tunnel.EndNormal)
}

// DropAttrs is what the tunnel dropped, for the association's line in the log.
func (a *association) DropAttrs() []any {
	a.mu.Lock()
	defer a.mu.Unlock()
	drops := a.lost
	drops.Add(a.flow.Load().Drops())
	return drops.Attrs()
}

// Receive takes datagrams for the application.
func (a *association) Receive(bodies [][]byte) { a.socks.Deliver(bodies) }

// Ended is the far end's word that the flow is no more. A limit ends the
// association; after anything else the next datagram goes over a new flow.
func (a *association) Ended(code tunnel.EndCode) {
	a.mu.Lock()
	a.lost.Add(a.flow.Load().Drops())
	a.mu.Unlock()
	if code == tunnel.EndLimit || !a.open() {
		a.socks.Close()
	}
}

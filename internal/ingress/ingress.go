// Package ingress carries requests of applications through the tunnel, as flows and streams. It knows neither
// the protocol of a request nor the far end.
package ingress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"wmproxy/internal/config"
	"wmproxy/internal/entrance"
	"wmproxy/internal/relay"
	"wmproxy/internal/stats"
	"wmproxy/internal/user"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// connectTimeout bounds the far end's answer to a request; the far end's own
// bounds on the name and the dial are shorter.
const connectTimeout = 20 * time.Second

// Handler serves the requests of an entrance.
type Handler struct {
	Options   config.Entrance
	Users     *user.Set // see Users
	NoOffload bool      // of the sockets for datagrams
	Route     *Route
	Room      *Room
	Log       *slog.Logger
}

var _ entrance.Handler = (*Handler)(nil)

// Users returns the users of an entrance, whose counts are counted in total too.
func Users(o *config.Entrance, total *stats.Total) *user.Set {
	users := user.NewSet(total)
	if o.User != "" || o.Pass != "" {
		users.Replace([]*user.User{user.New(o.User, string(o.Pass), total)})
	}
	return users
}

// Connect carries a request's connection through the tunnel and returns at its end.
func (h *Handler) Connect(ctx context.Context, r *entrance.Request) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var use use
	defer use.leave()
	st, bound, err := h.open(ctx, &use, r.Origin, r.Target, func() { end(errGivenUp) })
	if err != nil {
		_ = r.Reply(err.Result, netip.AddrPort{})
		return
	}
	if err := r.Reply(entrance.OK, bound); err != nil {
		st.Reset(carrier.CodeConnectionReset)
		return
	}
	began := time.Now()
	res := relay.Run(ctx, r.Conn.(*net.TCPConn), r.Ahead, st)
	h.Log.Debug("stream ended", slog.String("user", r.User.Name), slog.String("target", r.Target.String()),
		slog.Duration("duration", time.Since(began)), slog.Int64("bytes_up", res.ToStream),
		slog.Int64("bytes_down", res.FromStream), slog.Any("error", res.Err))
}

// Dial opens a stream to t for o.
func (h *Handler) Dial(ctx context.Context, o entrance.Origin, t entrance.Target, gaveUp func()) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := new(streamConn)
	st, bound, err := h.open(ctx, &c.use, o, t, func() { cancel(); c.giveUp(); gaveUp() })
	if err != nil {
		c.use.leave()
		return nil, err
	}
	if !c.start(st, bound) {
		return nil, &entrance.Error{Result: entrance.Limit, Err: errGivenUp}
	}
	return c, nil
}

// open takes what a stream needs and opens it; end is called if others need that. The caller calls use.leave.
func (h *Handler) open(ctx context.Context, use *use, o entrance.Origin, t entrance.Target, end func()) (carrier.Stream, netip.AddrPort, *entrance.Error) {
	if err := h.Room.enterStream(ctx, use, userOf(o), end); err != nil {
		h.full("a TCP connection", o, err)
		return nil, netip.AddrPort{}, &entrance.Error{Result: entrance.Limit, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	st, bound, err := h.openStream(ctx, o.User, t)
	if err != nil {
		res := resultOf(err)
		h.Log.Info("connecting failed", slog.String("user", o.User.Name), slog.String("client", o.Client.String()),
			slog.String("target", t.String()), slog.String("result", res.String()), slog.Any("reason", err))
		return nil, netip.AddrPort{}, &entrance.Error{Result: res, Err: err}
	}
	ap, _, _, _ := socks.SplitAddr(bound)
	total := &o.User.Total
	return relay.Noted(st, func(n int) { use.note(); total.StreamDown(n) }, func(n int) { use.note(); total.StreamUp(n) }), ap, nil
}

func (h *Handler) openStream(ctx context.Context, u *user.User, t entrance.Target) (carrier.Stream, []byte, error) {
	addr, err := socks.AddrOf(t.Host, t.Port)
	if err != nil {
		return nil, nil, err
	}
	s := h.Route.sessions.For(u)
	if s == nil {
		return nil, nil, tunnel.ErrNotAttached
	}
	return s.OpenStream(ctx, socks.AppendAddr(nil, addr))
}

// resultOf returns the result for the error that kept a stream from opening.
func resultOf(err error) entrance.Result {
	refused, reset := (*tunnel.RefusedError)(nil), (*carrier.ResetError)(nil)
	switch {
	case errors.As(err, &refused):
		return entrance.FromSOCKS5(refused.Code)
	case errors.Is(err, tunnel.ErrNotAttached), errors.Is(err, tunnel.ErrUnanswered), errors.Is(err, tunnel.ErrSessionClosed):
		return entrance.Unavailable
	case errors.Is(err, carrier.ErrStreamLimit), errors.As(err, &reset) && reset.Code == carrier.CodeLimit:
		return entrance.Limit
	case errors.Is(err, context.DeadlineExceeded):
		return entrance.TimedOut // as the exit says when the target does not answer
	}
	return entrance.Failed
}

// Associate carries a UDP association through the tunnel as a flow.
func (h *Handler) Associate(a entrance.Association) (entrance.Uplink, entrance.Result) {
	as := &association{route: h.Route, app: a, user: a.Origin().User, byName: h.Options.UDPAnswers == config.AnswersByName}
	if err := h.Room.enter(&as.use, userOf(a.Origin()), a.Close); err != nil {
		h.full("a UDP association", a.Origin(), err)
		return nil, entrance.Limit
	}
	if !as.open() {
		as.use.leave()
		return nil, entrance.Unavailable
	}
	h.Route.add(as)
	return as, entrance.OK
}

// full logs that there is no room for an application's request.
func (h *Handler) full(request string, o entrance.Origin, err error) {
	h.Log.Warn("refused for want of room", slog.String("request", request), slog.String("user", o.User.Name),
		slog.String("client", o.Client.String()), slog.Any("error", err))
}

package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"wmproxy/internal/entrance"
	"wmproxy/internal/httpproxy"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
)

// Listen opens the entrance's port.
func (h *Handler) Listen(ctx context.Context) (net.Listener, error) {
	ln, err := entrance.Listen(ctx, h.Options.Listen)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", h.Options.Listen, err)
	}
	if udpio.IPv4Alone(h.Options.Listen, ln.Addr()) {
		h.Log.Warn("this machine has no IPv6: applications reach SOCKS5 over IPv4 alone")
	}
	return ln, nil
}

// Serve serves the applications that connect to ln in every protocol until ctx ends, which
// is no error. It calls started, unless that is nil, with the address of ln.
func (h *Handler) Serve(ctx context.Context, ln net.Listener, started func(net.Addr)) error {
	o := &h.Options
	s := &entrance.Server{
		Protocols: []entrance.Protocol{
			&socks.Server{
				Users:        h.Users,
				UDPAdvertise: o.UDPAdvertise, UDPPorts: socks.PortRange(o.UDPPorts), UDPFrom: o.UDPFrom, NoOffload: h.NoOffload,
				Handler: h, Log: h.Log,
			},
			&httpproxy.Server{Users: h.Users, Handler: h, Log: h.Log},
		},
		MaxHalfOpen: h.Room.HalfOpen(), MakeRoom: h.Room.MakeRoom, Log: h.Log,
	}
	h.Log.Info("SOCKS5 is listening", slog.String("address", ln.Addr().String()))
	if started != nil {
		started(ln.Addr())
	}
	return s.Serve(ctx, ln)
}

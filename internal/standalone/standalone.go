// Package standalone is a proxy in one process: the entrance and the exit of the tunnel, joined
// by the in-memory carrier. It should behave like client and server.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"wmproxy/internal/config"
	"wmproxy/internal/egress"
	"wmproxy/internal/ingress"
	"wmproxy/internal/share"
	"wmproxy/internal/state"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/pipe"
)

// Config is a proxy's options, which must be valid, and the resources of its process. Log is
// required.
type Config struct {
	config.Proxy

	// Descriptors is the number of descriptors that this process may have open, 0 if unknown.
	// Applications share all but a reserve.
	Descriptors int

	// State is the open and locked state directory, or nil if there is none. The caller must
	// close it after Run has returned.
	State *state.Dir

	Log *slog.Logger

	// Started, if set, is called once the proxy listens, with its address.
	Started func(net.Addr)
}

// Run serves until ctx ends and then returns nil.
func Run(ctx context.Context, cfg Config) error {
	room := share.For(cfg.Descriptors)
	var totals totals
	totals.users = ingress.Users(&cfg.Entrance, &totals.entrance)
	entrance := &ingress.Handler{Options: cfg.Entrance, Users: totals.users, NoOffload: cfg.NoOffload, Room: &ingress.Room{Pool: room, Beside: 1}, Log: cfg.Log}
	ln, err := entrance.Listen(ctx)
	if err != nil {
		return err
	}
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	running, stop := context.WithCancel(ctx)
	var clock sync.WaitGroup
	clock.Go(func() { room.Run(running) })
	defer clock.Wait()
	defer stop()
	advertised := ""
	if at := cfg.Entrance.UDPAdvertise; at.IsValid() {
		advertised = at.String()
	}
	exits := egress.New(egress.Config{
		Exit: cfg.Exit, Advertised: advertised, Closed: func(ap netip.AddrPort) bool { return ap.Port() == port },
		NoOffload: cfg.NoOffload, Log: cfg.Log,
		// The entrance counts per user; for the exit there is one user.
		Room: room, Counted: true, MaxUserFlows: tunnel.MaxFlows, MaxUserStreams: tunnel.MaxFlows,
	})
	defer exits.Close()
	// To the tunnel and the exit all applications are one user.
	everyone := user.New("", "", &totals.exit)
	registry, session, err := join(ctx, everyone, exits.For(everyone), cfg.Log)
	if err != nil {
		ln.Close()
		return err
	}
	defer registry.Close(carrier.CodeShutdown, "the proxy is shutting down")
	defer session.Close(carrier.CodeShutdown, "the proxy is shutting down")

	budget := tunnel.NewBudget(int64(cfg.Memory), func() []*tunnel.Session { return append(registry.Sessions(), session) }, cfg.Log)
	defer budget.Close()

	var preferred ingress.Preferred
	preferred.Set(session)
	entrance.Route = ingress.NewRoute(&preferred)
	defer serveStatus(&cfg, ln.Addr().String(), &totals, entrance.Route, exits, budget)()
	return entrance.Serve(ctx, ln, cfg.Started)
}

// join returns the two sides of a session over an in-memory carrier.
func join(ctx context.Context, u *user.User, exit tunnel.Exit, log *slog.Logger) (*tunnel.Registry, *tunnel.Session, error) {
	near, far := pipe.New()
	registry := tunnel.NewRegistry(tunnel.RegistryConfig{
		Authenticate: func(tunnel.Credentials) *user.User { return u }, // the client is this process
		Exit:         func(*user.User) tunnel.Exit { return exit },
		MaxStreams:   tunnel.MaxFlows, // the entrance has bounds
		Log:          log,
	})
	session := tunnel.NewSession(tunnel.SessionConfig{User: u, Log: log})
	var wg sync.WaitGroup
	var errNear, errFar error
	wg.Go(func() { _, errFar = registry.Attach(ctx, far) })
	wg.Go(func() { _, errNear = session.Attach(ctx, near, tunnel.Credentials{}) })
	wg.Wait()
	if err := errors.Join(errNear, errFar); err != nil {
		session.Close(carrier.CodeInternal, "")
		registry.Close(carrier.CodeInternal, "")
		return nil, nil, fmt.Errorf("joining entrance and exit: %w", err)
	}
	return registry, session, nil
}

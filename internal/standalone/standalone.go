// Package standalone is a SOCKS5 proxy in one process: the entrance and the exit
// of the tunnel, joined by the in-memory carrier. Whatever it does differently
// from client and server is a mistake.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/egress"
	"wmproxy/internal/entrance"
	"wmproxy/internal/ingress"
	"wmproxy/internal/share"
	"wmproxy/internal/state"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// Config is all that a proxy is told. The zero value of a field is its default.
type Config struct {
	Bind         string // HOST:PORT
	User, Pass   string // asked of applications; both or neither
	UDPAdvertise netip.Addr
	UDPPorts     socks.PortRange
	UDPFrom      []netip.Prefix
	Allow, Deny  []netip.Prefix
	UDPIdle      time.Duration
	Filtering    egress.Filtering
	NoOffload    bool

	// AddressAnswers has answers carry an address even if the application sent to a name.
	AddressAnswers bool

	// Descriptors is how many this process may have open; 0 is not known. All but a
	// reserve are shared among the applications.
	Descriptors int

	// Memory bounds the bytes that applications and targets can make the process hold;
	// see tunnel.Budget. 0 is no bound.
	Memory int64

	// State is the open and locked state directory, or nil when there is none.
	// Whoever opened it closes it after Run has returned.
	State *state.Dir

	Log *slog.Logger

	// Started, when set, is called once the proxy listens, with its address.
	Started func(net.Addr)
}

// Run serves until ctx ends, which is no error.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ln, err := entrance.Listen(ctx, cfg.Bind)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", cfg.Bind, err)
	}
	if udpio.IPv4Alone(cfg.Bind, ln.Addr()) {
		cfg.Log.Warn("this machine has no IPv6: applications reach SOCKS5 over IPv4 alone")
	}
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	room := share.For(cfg.Descriptors)
	running, stop := context.WithCancel(ctx)
	var clock sync.WaitGroup
	clock.Go(func() { room.Run(running) })
	defer clock.Wait()
	defer stop()
	advertised := ""
	if cfg.UDPAdvertise.IsValid() {
		advertised = cfg.UDPAdvertise.String()
	}
	exits := egress.New(egress.Config{
		Allow: cfg.Allow, Deny: cfg.Deny, Advertised: advertised, Closed: func(ap netip.AddrPort) bool { return ap.Port() == port },
		Filtering: cfg.Filtering, Idle: cfg.UDPIdle, NoOffload: cfg.NoOffload, Log: cfg.Log,
		// The entrance counts per user; for the exit there is one user.
		Room: room, Counted: true, MaxUserFlows: tunnel.MaxFlows, MaxUserStreams: tunnel.MaxFlows,
	})
	defer exits.Close()
	registry, session, err := join(ctx, func(user string) tunnel.Exit { return exits.For(user) }, cfg.Log)
	if err != nil {
		ln.Close()
		return err
	}
	defer registry.Close(tunnel.CodeShutdown, "the proxy is shutting down")
	defer session.Close(tunnel.CodeShutdown, "the proxy is shutting down")

	budget := tunnel.NewBudget(cfg.Memory, func() []*tunnel.Session { return append(registry.Sessions(), session) }, cfg.Log)
	defer budget.Close()

	route := ingress.NewRoute(session)
	handler := &ingress.Handler{Route: route, Room: &ingress.Room{Pool: room, Beside: 1}, Log: cfg.Log, AddressAnswers: cfg.AddressAnswers}
	proxy := &entrance.Server{
		Protocols: []entrance.Protocol{&socks.Server{
			Authenticate: entrance.OneUser(cfg.User, cfg.Pass),
			UDPAdvertise: cfg.UDPAdvertise, UDPPorts: cfg.UDPPorts, UDPFrom: cfg.UDPFrom, NoOffload: cfg.NoOffload,
			Handler: handler, Log: cfg.Log,
		}},
		MaxHalfOpen: room.HalfOpen(), MakeRoom: handler.Room.MakeRoom, Log: cfg.Log,
	}
	defer serveStatus(&cfg, ln.Addr().String(), route, exits, budget)()
	cfg.Log.Info("SOCKS5 is listening", slog.String("address", ln.Addr().String()))
	if cfg.Started != nil {
		cfg.Started(ln.Addr())
	}
	return proxy.Serve(ctx, ln)
}

// join makes the two sides of a session over an in-memory carrier.
func join(ctx context.Context, exit func(string) tunnel.Exit, log *slog.Logger) (*tunnel.Registry, *tunnel.Session, error) {
	near, far := tunnel.NewPipe(tunnel.PipeConfig{}, tunnel.PipeConfig{})
	registry := tunnel.NewRegistry(tunnel.RegistryConfig{
		Authenticate: func(tunnel.Credentials) bool { return true }, // it is ourselves
		Exit:         exit,
		MaxStreams:   tunnel.MaxFlows, // the entrance has bounds
		Log:          log,
	})
	session := tunnel.NewSession(tunnel.SessionConfig{Log: log})
	var wg sync.WaitGroup
	var errNear, errFar error
	wg.Go(func() { _, errFar = registry.Attach(ctx, far) })
	wg.Go(func() { _, errNear = session.Attach(ctx, near, tunnel.Credentials{}) })
	wg.Wait()
	if err := errors.Join(errNear, errFar); err != nil {
		session.Close(tunnel.CodeInternal, "")
		registry.Close(tunnel.CodeInternal, "")
		return nil, nil, fmt.Errorf("joining entrance and exit: %w", err)
	}
	return registry, session, nil
}

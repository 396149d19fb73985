// Package client is the near end: it keeps a session attached to its server and
// composes the entrance. It knows nothing of the sockets of targets.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/ingress"
	"wmproxy/internal/link"
	"wmproxy/internal/notify"
	"wmproxy/internal/share"
	"wmproxy/internal/status"
	"wmproxy/internal/udpio"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// Client is one near end.
type Client struct {
	cfg       Config
	kinds     []tunnel.Kind
	upstreams []*upstream
	route     *ingress.Route
	steering  notify.Signal // something changed at a server
	events    status.Events
}

// New checks the configuration.
func New(cfg Config) (*Client, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:1080"
	}
	if len(cfg.Links) == 0 {
		return nil, errors.New("a client needs the link that the server printed")
	}
	if cfg.Pick != "" && cfg.Pick != Order && cfg.Pick != Fastest {
		return nil, fmt.Errorf("unknown way to pick a server %q: use order or fastest", cfg.Pick)
	}
	kinds, err := transports(cfg.Transport)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, kinds: kinds, steering: notify.New()}
	numbers := new(tunnel.FlowNumbers)
	for _, l := range cfg.Links {
		c.upstreams = append(c.upstreams, c.newUpstream(l, numbers))
	}
	c.route = ingress.NewRoute(c.upstreams[0].session)
	return c, nil
}

func (c *Client) newUpstream(l link.Link, numbers *tunnel.FlowNumbers) *upstream {
	log := c.cfg.Log
	if len(c.cfg.Links) > 1 {
		log = log.With(slog.String("server", l.Address()))
	}
	u := &upstream{
		link: l, status: newStatus(log, l.Address(), c.kinds),
		noOffload: c.cfg.NoOffload, dead: c.cfg.Timers.Dead,
		back: make(chan struct{}),
	}
	u.connect = u.dial
	u.session = tunnel.NewSession(tunnel.SessionConfig{
		Streams: streamKind(c.cfg.Streams),
		Timers:  c.cfg.Timers,
		Numbers: numbers,
		Log:     log,
		Changed: func() {
			u.status.changed.Wake()
			c.steering.Wake()
		},
		Event: func(sentence string) {
			if len(c.cfg.Links) > 1 {
				sentence = l.Address() + ": " + sentence
			}
			c.events.Note(sentence)
		},
	})
	return u
}

// streamKind is the kind that --streams names, 0 for auto.
func streamKind(name string) tunnel.Kind {
	switch name {
	case QUIC:
		return tunnel.KindQUIC
	case Yamux:
		return tunnel.KindYamux
	}
	return 0
}

func transports(name string) ([]tunnel.Kind, error) {
	switch name {
	case "", Auto:
		return []tunnel.Kind{tunnel.KindQUIC, tunnel.KindYamux}, nil
	case QUIC:
		return []tunnel.Kind{tunnel.KindQUIC}, nil
	case Yamux:
		return []tunnel.Kind{tunnel.KindYamux}, nil
	}
	return nil, fmt.Errorf("unknown transport %q: use auto, quic or yamux", name)
}

// Run listens for applications and keeps the tunnel until ctx ends, which is no
// error. A server that refuses us for good before we ever got in is one.
func (c *Client) Run(ctx context.Context) error {
	ln, err := entrance.Listen(ctx, c.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", c.cfg.Listen, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	room := &ingress.Room{Pool: share.For(c.cfg.Descriptors), Streams: share.New(tunnel.MaxStreams-streamSlack, streamSlack)}
	handler := &ingress.Handler{Route: c.route, Room: room, Log: c.cfg.Log, AddressAnswers: c.cfg.AddressAnswers}
	proxy := &entrance.Server{
		Protocols: []entrance.Protocol{&socks.Server{
			Authenticate: entrance.OneUser(c.cfg.User, c.cfg.Pass),
			UDPAdvertise: c.cfg.UDPAdvertise,
			UDPPorts:     c.cfg.UDPPorts,
			UDPFrom:      c.cfg.UDPFrom,
			NoOffload:    c.cfg.NoOffload,
			Handler:      handler,
			Log:          c.cfg.Log,
		}},
		MaxHalfOpen: room.HalfOpen(),
		MakeRoom:    room.MakeRoom,
		Log:         c.cfg.Log,
	}
	budget := tunnel.NewBudget(c.cfg.Memory, c.sessions, c.cfg.Log)
	defer budget.Close()
	defer c.serveStatus(ln.Addr().String(), budget)()
	c.cfg.Log.Info("SOCKS5 is listening", slog.String("address", ln.Addr().String()))
	if udpio.IPv4Alone(c.cfg.Listen, ln.Addr()) {
		c.cfg.Log.Warn("this machine has no IPv6: applications reach SOCKS5 over IPv4 alone")
	}
	if c.cfg.Started != nil {
		c.cfg.Started(ln.Addr())
	}

	var wg sync.WaitGroup
	wg.Go(func() { room.Run(ctx) })
	wg.Go(func() { room.Streams.Run(ctx) })
	wg.Go(func() { c.steerAll(ctx) })
	for _, u := range c.upstreams {
		wg.Go(func() { u.status.run(ctx, u.session) })
		for _, kind := range c.kinds {
			wg.Go(func() { u.keep(ctx, kind, func() { c.refusedBy(u, cancel) }) })
		}
	}
	closed := make(chan struct{})
	wg.Go(func() {
		<-ctx.Done()
		// The session after the entrance, so that the ends of its associations are
		// told; but a carrier that is stuck holds the entrance's streams up.
		select {
		case <-closed:
		case <-time.After(entranceGrace):
		}
		var ending sync.WaitGroup
		for _, u := range c.upstreams {
			ending.Go(func() { u.session.Close(tunnel.CodeShutdown, "the client is shutting down") })
		}
		ending.Wait()
	})
	err = proxy.Serve(ctx, ln)
	close(closed)
	cancel(err)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// sessions returns the sessions with all servers.
func (c *Client) sessions() (all []*tunnel.Session) {
	for _, u := range c.upstreams {
		all = append(all, u.session)
	}
	return all
}

// streamSlack is how many of the tunnel's streams may be about to end while new streams
// already have their places.
const streamSlack = 64

// entranceGrace is how long associations and streams have to end by themselves.
const entranceGrace = 300 * time.Millisecond

// refusedBy ends the client once every server has refused it for good.
func (c *Client) refusedBy(u *upstream, cancel context.CancelCauseFunc) {
	for _, other := range c.upstreams {
		if !other.status.refused() {
			return
		}
	}
	cancel(errors.New(u.status.refusal()))
}

// Package client is the near end: it keeps a session attached to its server and composes the
// entrance. It must not know the sockets of targets.
package client

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"wmproxy/internal/ingress"
	"wmproxy/internal/link"
	"wmproxy/internal/notify"
	"wmproxy/internal/share"
	"wmproxy/internal/stats"
	"wmproxy/internal/status"
	"wmproxy/internal/transports"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/health"
)

// Client is a near end.
type Client struct {
	cfg       Config
	kinds     []carrier.Kind
	upstreams []*upstream
	preferred ingress.Preferred
	route     *ingress.Route
	steering  notify.Signal // something changed at a server
	events    status.Events
	total     stats.Total
	users     *user.Set  // of the entrance
	everyone  *user.User // the user of all sessions
}

// New returns a client. Run starts it.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, kinds: kindsOf(cfg.Transport), steering: notify.New()}
	c.users, c.everyone = ingress.Users(&cfg.Entrance, &c.total), user.New("", "", &c.total)
	numbers := new(tunnel.FlowNumbers)
	for _, l := range cfg.Links {
		c.upstreams = append(c.upstreams, c.newUpstream(l, numbers))
	}
	c.preferred.Set(c.upstreams[0].session)
	c.route = ingress.NewRoute(&c.preferred)
	return c
}

func (c *Client) newUpstream(l link.Link, numbers *tunnel.FlowNumbers) *upstream {
	log := c.cfg.Log
	if len(c.cfg.Links) > 1 {
		log = log.With(slog.String("server", l.Address()))
	}
	u := &upstream{
		link: l, status: newStatus(log, l.Address(), c.kinds),
		options: transports.Options{Dead: c.cfg.Timers.Dead, NoOffload: c.cfg.NoOffload},
		back:    make(chan struct{}),
	}
	u.connect = u.dial
	u.session = tunnel.NewSession(tunnel.SessionConfig{
		User:       c.everyone,
		Transports: transports.Traits(),
		Streams:    streamKind(c.cfg.Streams),
		Timers:     health.Timers(c.cfg.Timers),
		Numbers:    numbers,
		Log:        log,
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

// streamKind returns the preferred kind for streams, 0 for auto.
func streamKind(name string) carrier.Kind {
	kind, _ := transports.Named(name)
	return kind
}

// kindsOf returns the kinds of the transports that name stands for: one, or all for auto.
func kindsOf(name string) (kinds []carrier.Kind) {
	if kind, ok := transports.Named(name); ok {
		return []carrier.Kind{kind}
	}
	for _, t := range transports.All {
		kinds = append(kinds, t.Kind)
	}
	return kinds
}

// Run listens for applications and keeps the tunnel attached until ctx ends, and then returns
// nil. It returns an error if the server refuses the client for good before it was ever
// accepted.
func (c *Client) Run(ctx context.Context) error {
	room := &ingress.Room{Pool: share.For(c.cfg.Descriptors), Streams: share.New(tunnel.MaxStreams-streamSlack, streamSlack)}
	entrance := &ingress.Handler{Options: c.cfg.Entrance, Users: c.users, NoOffload: c.cfg.NoOffload, Route: c.route, Room: room, Log: c.cfg.Log}
	ln, err := entrance.Listen(ctx)
	if err != nil {
		return err
	}
	for _, advice := range transports.Advice() {
		c.cfg.Log.Info(advice)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	budget := tunnel.NewBudget(int64(c.cfg.Memory), c.sessions, c.cfg.Log)
	defer budget.Close()
	defer c.serveStatus(ln.Addr().String(), budget)()

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
			ending.Go(func() { u.session.Close(carrier.CodeShutdown, "the client is shutting down") })
		}
		ending.Wait()
	})
	err = entrance.Serve(ctx, ln, c.cfg.Started)
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

// streamSlack is the number of the tunnel's streams that may be about to end while new streams
// have taken their places.
const streamSlack = 64

// entranceGrace is the time for associations and streams to end by themselves.
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

// Package client is the near end: it keeps a session attached to its server and
// composes the entrance. It knows nothing of the sockets of targets.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"wmproxy/internal/ingress"
	"wmproxy/socks"
	"wmproxy/tunnel"
)

// Client is one near end.
type Client struct {
	cfg     Config
	session *tunnel.Session
	status  *status
}

// New checks the configuration.
func New(cfg Config) (*Client, error) {
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:1080"
	}
	if cfg.Link.Host == "" {
		return nil, errors.New("a client needs the link that the server printed")
	}
	kinds, err := transports(cfg.Transport)
	if err != nil {
		return nil, err
	}
	streams := tunnel.KindYamux
	if cfg.Streams == QUIC {
		streams = tunnel.KindQUIC
	}
	c := &Client{cfg: cfg, status: newStatus(cfg.Log, cfg.Link.Address(), kinds)}
	c.session = tunnel.NewSession(tunnel.SessionConfig{
		Streams: streams,
		Log:     cfg.Log,
		Changed: func() { c.status.kick() },
	})
	return c, nil
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
	ln, err := net.Listen("tcp", c.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", c.cfg.Listen, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	entrance := &ingress.SOCKS{Session: c.session, Log: c.cfg.Log}
	proxy := &socks.Server{
		Username: c.cfg.User, Password: c.cfg.Pass,
		UDPAdvertise: c.cfg.UDPAdvertise,
		UDPPorts:     c.cfg.UDPPorts,
		UDPFrom:      c.cfg.UDPFrom,
		NoOffload:    c.cfg.NoOffload,
		Connect:      entrance.Connect,
		Associate:    entrance.Associate,
		Turn:         c.session.Turn(),
		Log:          c.cfg.Log,
	}
	c.cfg.Log.Info("SOCKS5 is listening", slog.String("address", ln.Addr().String()))
	if c.cfg.Started != nil {
		c.cfg.Started(ln.Addr())
	}

	var wg sync.WaitGroup
	wg.Go(func() { c.status.run(ctx, c.session) })
	for _, kind := range c.status.kinds {
		wg.Go(func() {
			if err := c.keep(ctx, kind); err != nil {
				cancel(err)
			}
		})
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
		c.session.Close(tunnel.CodeShutdown, "the client is shutting down")
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

// Session is the session that Run keeps attached.
func (c *Client) Session() *tunnel.Session { return c.session }

const (
	// dialTimeout bounds one attempt at one address, TLS included.
	dialTimeout = 5 * time.Second

	// entranceGrace is how long associations and streams have to end by themselves.
	entranceGrace = 300 * time.Millisecond

	firstBackoff = 250 * time.Millisecond
	lastBackoff  = 30 * time.Second

	// refusedBackoff is how long to wait after a refusal that will hardly change
	// by itself.
	refusedBackoff = 60 * time.Second

	// steadyAfter is how long a carrier must have lived for the next attempt to
	// come at once.
	steadyAfter = 10 * time.Second
)

// keep attaches carriers of one kind, one after the other, until ctx ends. It
// returns an error only if the server refuses us for good before it ever let us in.
func (c *Client) keep(ctx context.Context, kind tunnel.Kind) error {
	var b backoff
	for {
		lived, err := c.attachOnce(ctx, kind)
		if ctx.Err() != nil {
			return nil
		}
		why := explain(err, c.cfg.Link)
		if why.final && !c.status.everAttached() {
			return errors.New(why.sentence)
		}
		c.status.failed(kind, why.sentence)
		if lived > steadyAfter {
			b.reset()
		}
		wait := b.next()
		if why.final {
			wait = refusedBackoff
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// attachOnce dials, attaches and then waits for the end of the carrier. It
// returns how long the carrier lived, and why it ended or never began.
func (c *Client) attachOnce(ctx context.Context, kind tunnel.Kind) (lived time.Duration, err error) {
	p, err := c.dial(ctx, kind)
	if err != nil {
		return 0, err
	}
	a, err := c.session.Attach(ctx, p, tunnel.Credentials{User: c.cfg.Link.Name, Token: c.cfg.Link.Secret})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	c.status.attached(kind)
	select {
	case <-a.Done():
	case <-ctx.Done():
		<-a.Done() // Run closes the session
	}
	return time.Since(began), a.Err()
}

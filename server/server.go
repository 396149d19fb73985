// Package server is the far end: it listens, authenticates, keeps sessions and composes the
// exit. It must not know SOCKS.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/certs"
	"wmproxy/internal/admit"
	"wmproxy/internal/egress"
	"wmproxy/internal/link"
	"wmproxy/internal/notify"
	"wmproxy/internal/share"
	"wmproxy/internal/stats"
	"wmproxy/internal/status"
	"wmproxy/internal/transports"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/health"
)

// Server is a far end.
type Server struct {
	cfg   Config
	users user.Set
	first atomic.Pointer[link.Token] // the token in the link
	total stats.Total
	// Connections that have not authenticated, by transport, so that a flood over one does not
	// affect the other. opening counts QUIC connections that have not sent enough of TLS for
	// quic-go to accept them.
	tcp, quic, opening admit.Gate
	drain              chan struct{} // one slot: Drain was called
	drained            chan struct{} // closed at the end of the drain
	reload             notify.Signal // Reload was called

	events status.Events
}

const (
	// Half-open connections. Each of them uses some 40 KiB.
	maxTCP     = admit.DefaultTotal
	maxQUIC    = admit.DefaultTotal / 2
	maxOpening = admit.DefaultTotal / 2

	// minQUIC and perQUIC bound the half-open QUIC connections by the memory. A hostile one may
	// use 740 KiB: 64 KiB of STREAM frames of 128 bytes with gaps between them, for each of
	// which quic-go keeps 1,452.
	minQUIC = 64
	perQUIC = 1 << 20

	// QUIC clients have to prove their address by a Retry (RFC 9000 section 8.1.2) if there are
	// verifyAbove half-open QUIC connections, or verifyAddrAbove of their address that have sent
	// nothing yet. A flood with forged sources gets no further. Above verifyAbove a handshake
	// also has less time.
	verifyAbove     = 128
	verifyAddrAbove = 16

	// drainLook is the interval at which a draining server checks whether anything is open.
	drainLook = 100 * time.Millisecond
)

// New returns a server. Serve starts it. New reads the users, and makes the random one on the
// first start.
func New(cfg Config) (*Server, error) {
	if err := protect(cfg.State, cfg.Log); err != nil {
		return nil, err
	}
	given, err := cfg.tokens()
	if err != nil {
		return nil, err
	}
	tokens, err := loadTokens(given, cfg.State)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg,
		tcp: admit.Gate{Total: maxTCP}, quic: admit.Gate{Total: halfOpenQUIC(int64(cfg.Memory))}, opening: admit.Gate{Total: maxOpening, Refuse: true},
		drain: make(chan struct{}, 1), drained: make(chan struct{}), reload: notify.New(),
	}
	s.setTokens(tokens)
	return s, nil
}

// halfOpenQUIC returns the bound of half-open QUIC connections for a limit of memory in bytes,
// of which 0 is none.
func halfOpenQUIC(memory int64) int {
	if memory <= 0 {
		return maxQUIC
	}
	return min(max(int(memory/perQUIC), minQUIC), maxQUIC)
}

// Serve listens until ctx ends, then ends every session cleanly and returns nil.
func (s *Server) Serve(ctx context.Context) error {
	id, err := s.loadIdentity()
	if err != nil {
		return err
	}
	defer id.Close()
	room := share.For(s.cfg.Descriptors)
	s.tcp.Total = min(s.tcp.Total, room.HalfOpen())
	ls, err := s.listen(id)
	if err != nil {
		return err
	}
	defer ls.close()

	advertised, port := s.advertised(id, ls.port)
	elsewhere := advertised
	if _, err := netip.ParseAddr(advertised); err == nil && s.cfg.Advertise == "" {
		elsewhere = "" // an interface has the address
	}
	var registry *tunnel.Registry
	room.Spare = func(user string, may func(string) bool) bool { return registry.MakeRoom(user, may) }
	exits := egress.New(egress.Config{
		Exit: s.cfg.Exit, Advertised: elsewhere, Closed: ls.isOwn, NoOffload: s.cfg.NoOffload, Room: room, Log: s.cfg.Log,
		MakeRoom: func(user string) bool { return registry.MakeRoom(user, nil) },
	})
	defer exits.Close()
	registry = tunnel.NewRegistry(tunnel.RegistryConfig{
		Authenticate: func(c tunnel.Credentials) *user.User { return s.users.Authenticate(c.User, []byte(c.Token)) },
		Exit:         func(u *user.User) tunnel.Exit { return exits.For(u) },
		Admit:        func(ctx context.Context, c *tunnel.Connection) (func(), error) { return admitted(ctx, room, c) },
		Hold:         s.cfg.Hold,
		Timers:       health.Timers{Dead: s.cfg.Dead},
		Event:        func(user, sentence string) { s.events.Note(user + ": " + sentence) },
		Log:          s.cfg.Log,
	})
	budget := tunnel.NewBudget(int64(s.cfg.Memory), registry.Sessions, s.cfg.Log)
	defer budget.Close()
	defer s.serveStatus(ls, registry, exits, budget)()
	if err := s.publish(id, advertised, port); err != nil {
		return err
	}

	accepting, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	failed := make(chan error, len(ls.all))
	for _, l := range ls.all {
		wg.Go(func() {
			if err := s.accept(accepting, l, registry, room, &wg); err != nil {
				failed <- err
				stop()
			}
		})
	}
	wg.Go(func() { s.awaitDrain(accepting, registry) })
	relink := func() error { _, err := s.writeLink(id, advertised, port); return err }
	wg.Go(func() { s.serveReload(accepting, id, registry, relink) })
	wg.Go(func() { room.Run(accepting) })
	<-accepting.Done()
	// The sessions end before the sockets are closed, so that they can notify their clients.
	registry.Close(carrier.CodeShutdown, "the server is shutting down")
	s.tcp.Close()
	s.quic.Close()
	ls.close()
	stop()
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// Drain tells clients to use another server, because this one ends after Config.Drain, and
// refuses new ones. The channel is closed after that time, or when no client has anything open.
// Drain may be called only once.
func (s *Server) Drain() <-chan struct{} {
	s.drain <- struct{}{}
	return s.drained
}

// awaitDrain waits for Drain, and then for the clients to go.
func (s *Server) awaitDrain(ctx context.Context, registry *tunnel.Registry) {
	select {
	case <-s.drain:
	case <-ctx.Done():
		return
	}
	defer close(s.drained)
	s.cfg.Log.Info("draining: no new clients, and those that are here are told to go", slog.Duration("for", s.cfg.Drain))
	registry.Drain(s.cfg.Drain)
	over := time.NewTimer(s.cfg.Drain)
	defer over.Stop()
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-over.C:
			return
		case <-look.C:
			if registry.Idle() {
				return
			}
		}
	}
}

// listeners is all sockets on which the server listens, with one port number.
type listeners struct {
	all   []transports.Listener
	port  uint16
	close func()
}

// isOwn reports whether the server listens on the port of ap, an address of this host. The exit
// refuses it even if it is allowed.
func (ls *listeners) isOwn(ap netip.AddrPort) bool { return ap.Port() == ls.port }

// accept serves the connections of one listener until ctx ends.
func (s *Server) accept(ctx context.Context, l transports.Listener, registry *tunnel.Registry, room *share.Pool, wg *sync.WaitGroup) error {
	for {
		p, err := admit.Accept(ctx, func() (carrier.Pending, error) { return l.Accept(ctx) }, func(err error) {
			if admit.NoDescriptors(err) {
				s.makeRoom(room)
			}
		})
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("accepting connections: %w", err)
		}
		wg.Go(func() { s.admit(ctx, p, registry) })
		// In a flood Accept does not block: otherwise the new connection would be the
		// oldest before its goroutine runs for the first time.
		runtime.Gosched()
	}
}

// admit takes a connection through the handshake, as one of a bounded number.
func (s *Server) admit(ctx context.Context, p carrier.Pending, registry *tunnel.Registry) {
	remote := udpio.AddrPortOf(p.RemoteAddr())
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gate := &s.tcp
	if !p.Traits().OwnDescriptor {
		gate = &s.quic
	}
	leave, ok := gate.Enter(remote.Addr(), func() {
		cancel()
		p.Close(carrier.CodeLimit, "too many connections that have not authenticated")
	})
	if !ok {
		p.Close(carrier.CodeShutdown, "the server is shutting down")
		return
	}
	defer leave()
	a, err := registry.Attach(ctx, p)
	if err != nil {
		s.refused(remote, p.Traits().Kind, err)
		return
	}
	s.cfg.Log.Info("client attached", slog.String("user", a.Session().User().Name), slog.String("transport", p.Traits().Kind.String()),
		slog.String("client", remote.String()), slog.Bool("resumed", a.Resumed()))
}

// refused logs a refused connection.
func (s *Server) refused(remote netip.AddrPort, kind carrier.Kind, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) {
		return
	}
	s.cfg.Log.Warn("connection refused", slog.String("client", remote.String()),
		slog.String("transport", kind.String()), slog.String("reason", reason(err)))
}

func reason(err error) string {
	if e := (*carrier.CloseError)(nil); errors.As(err, &e) {
		return e.Reason
	}
	return err.Error()
}

// portTries is the number of free ports that listen tries for one that all transports can have.
const portTries = 10

// listen opens every socket. If the port is 0 the system chooses one for the first transport, and
// the others use the same; if another program has it there, all begin again.
func (s *Server) listen(id *identity) (*listeners, error) {
	host, port, err := net.SplitHostPort(s.cfg.Listen)
	if err != nil {
		return nil, err
	}
	var ls *listeners
	err = onFreePort(port, func() (err error) {
		ls, err = s.listenOn(id, host, port)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.cfg.Log.Info("listening", slog.String("address", net.JoinHostPort(host, strconv.Itoa(int(ls.port)))),
		slog.Any("transports", s.cfg.Transports))
	if udpio.IPv4Alone(s.cfg.Listen, ls.all[0].Addr()) {
		s.cfg.Log.Warn("this machine has no IPv6: clients reach the server over IPv4 alone")
	}
	for _, advice := range transports.Advice() {
		s.cfg.Log.Info(advice)
	}
	return ls, nil
}

// onFreePort calls open until it succeeds, at most portTries times; once if port is not 0.
func onFreePort(port string, open func() error) error {
	err := open()
	for try := 1; err != nil && port == "0" && try < portTries; try++ {
		err = open()
	}
	return err
}

func (s *Server) listenOn(id *identity, host, port string) (*listeners, error) {
	ls := &listeners{}
	ls.close = sync.OnceFunc(func() {
		for _, l := range ls.all {
			_ = l.Close()
		}
	})
	conf := certs.ServerConfig(id.certificate, carrier.ALPN)
	options := transports.ListenOptions{
		Options:             transports.Options{Dead: s.cfg.Dead, NoOffload: s.cfg.NoOffload},
		Windows:             carrier.WindowsFor(int64(s.cfg.Memory)),
		StatelessResetKey:   &id.resetKey,
		VerifySourceAddress: s.mustVerify,
		Hurry:               s.crowded,
		Admit: func(remote net.Addr) (leave func(), ok bool) {
			return s.opening.Enter(udpio.AddrPortOf(remote).Addr(), func() {})
		},
	}
	// TCP first: its ports are taken more often.
	for _, t := range slices.Backward(transports.All) {
		if !slices.Contains(s.cfg.Transports, t.Kind.String()) {
			continue
		}
		l, err := t.Listen(host, port, conf, options)
		if err != nil {
			ls.close()
			return nil, fmt.Errorf("listening for %s on %s: %w", t.Kind, s.cfg.Listen, err)
		}
		ls.all = append(ls.all, l)
		ls.port = udpio.AddrPortOf(l.Addr()).Port()
		port = strconv.Itoa(int(ls.port))
	}
	return ls, nil
}

// mustVerify reports whether a QUIC client has to prove its address.
func (s *Server) mustVerify(remote net.Addr) bool {
	return s.crowded() || s.opening.LenOf(udpio.AddrPortOf(remote).Addr()) >= verifyAddrAbove
}

// crowded reports whether there are many half-open connections of QUIC.
func (s *Server) crowded() bool { return s.quic.Len()+s.opening.Len() >= verifyAbove }

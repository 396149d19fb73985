// Package transports is the list of transports: the one place that names them all.
package transports

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"time"

	"wmproxy/internal/udpio"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/quic"
	"wmproxy/tunnel/tcp"
)

// A Transport is a way to carry a session.
type Transport struct {
	carrier.Traits

	// Dial connects to a server and returns once TLS has passed.
	Dial func(ctx context.Context, server netip.AddrPort, conf *tls.Config, o Options) (carrier.Pending, error)

	// Listen opens the socket of a server. An empty host is all addresses; the system chooses for port 0.
	Listen func(host, port string, conf *tls.Config, o ListenOptions) (Listener, error)

	// Advice is what an operator can do for the transport on this machine, or "". nil has none.
	Advice func() string
}

// A Listener accepts the connections of one transport. Accept returns once ctx ends.
type Listener interface {
	Accept(ctx context.Context) (carrier.Pending, error)
	Addr() net.Addr
	Close() error
}

// Options are what a connection needs beside its addresses and keys.
type Options struct {
	Dead      time.Duration // health.Timers.Dead: the connection outlives that much silence
	NoOffload bool          // see udpio.Config
}

// ListenOptions are what a listener needs beside its address and keys.
type ListenOptions struct {
	Options
	Windows carrier.Windows // bound the data that a client may send ahead

	// See quic.Config. They are for transports over UDP.
	StatelessResetKey   *[32]byte
	VerifySourceAddress func(remote net.Addr) bool
	Hurry               func() bool
	Admit               func(remote net.Addr) (leave func(), ok bool)
}

// All are the transports, in the order in which a client tries them.
var All = []Transport{
	{quic.Traits, dialQUIC, listenQUIC, nil},
	{tcp.Traits, dialYamux, listenYamux, tcp.CongestionAdvice},
}

// Traits returns those of all transports.
func Traits() (all []carrier.Traits) {
	for _, t := range All {
		all = append(all, t.Traits)
	}
	return all
}

// Advice returns that of all transports.
func Advice() (all []string) {
	for _, t := range All {
		if t.Advice != nil {
			if advice := t.Advice(); advice != "" {
				all = append(all, advice)
			}
		}
	}
	return all
}

// Named returns the kind of the transport that flags call name, or false.
func Named(name string) (carrier.Kind, bool) {
	for _, t := range All {
		if t.Kind.String() == name {
			return t.Kind, true
		}
	}
	return 0, false
}

// Dial connects by the transport of this kind, which is in All.
func Dial(ctx context.Context, kind carrier.Kind, server netip.AddrPort, conf *tls.Config, o Options) (carrier.Pending, error) {
	for _, t := range All {
		if t.Kind == kind {
			return t.Dial(ctx, server, conf, o)
		}
	}
	panic("no transport is " + kind.String())
}

// dialQUIC opens a socket of the server's family that reads and writes in batches.
func dialQUIC(ctx context.Context, server netip.AddrPort, conf *tls.Config, o Options) (carrier.Pending, error) {
	local := netip.IPv4Unspecified()
	if server.Addr().Is6() {
		local = netip.IPv6Unspecified()
	}
	socket, err := udpio.ListenPacket(netip.AddrPortFrom(local, 0), udpio.Config{NoOffload: o.NoOffload})
	if err != nil {
		return nil, err
	}
	return quic.Dial(ctx, socket, net.UDPAddrFromAddrPort(server), conf, o.Dead)
}

func dialYamux(ctx context.Context, server netip.AddrPort, conf *tls.Config, o Options) (carrier.Pending, error) {
	return tcp.Dial(ctx, net.TCPAddrFromAddrPort(server), conf, o.Dead)
}

func listenQUIC(host, port string, conf *tls.Config, o ListenOptions) (Listener, error) {
	local, err := net.ResolveUDPAddr("udp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Err: err}
	}
	bind := udpio.AddrPortOf(local)
	if local.IP == nil {
		bind = netip.AddrPortFrom(netip.IPv6Unspecified(), bind.Port())
	}
	socket, err := udpio.ListenPacket(bind, udpio.Config{NoOffload: o.NoOffload})
	if err != nil {
		return nil, err
	}
	l, err := quic.Listen(socket, conf, quic.Config{
		StatelessResetKey: o.StatelessResetKey, VerifySourceAddress: o.VerifySourceAddress, Hurry: o.Hurry, Admit: o.Admit,
		Dead: o.Dead, Windows: o.Windows,
	})
	if err != nil {
		return nil, err // not a nil *quic.Listener
	}
	return l, nil
}

func listenYamux(host, port string, conf *tls.Config, o ListenOptions) (Listener, error) {
	// Keep-alive begins after the handshake. Until then there is a deadline.
	lc := net.ListenConfig{KeepAlive: -1}
	ln, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, err
	}
	return tcp.Listen(ln, conf, o.Dead, o.Windows), nil
}

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
}

// Options are what a connection needs beside its addresses and keys.
type Options struct {
	Dead      time.Duration // health.Timers.Dead: the connection outlives that much silence
	NoOffload bool          // see udpio.Config
}

// All are the transports, in the order in which a client tries them.
var All = []Transport{
	{quic.Traits, dialQUIC},
	{tcp.Traits, dialYamux},
}

// Traits returns those of all transports.
func Traits() (all []carrier.Traits) {
	for _, t := range All {
		all = append(all, t.Traits)
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

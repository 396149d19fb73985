package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"wmproxy/certs"
	"wmproxy/internal/eyeballs"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
)

// dial resolves the server's name again and dials its addresses, a new one beside the others
// while none has answered. It returns the first connection, or the errors of all addresses.
func (u *upstream) dial(ctx context.Context, kind carrier.Kind) (carrier.Pending, error) {
	addrs, err := u.resolve(ctx)
	if err != nil {
		return nil, err
	}
	tlsConf := certs.ClientConfig(u.link.Pin, u.link.Host, carrier.ALPN)
	p, errs := eyeballs.Dial(ctx, addrs, func(ctx context.Context, addr netip.Addr) (carrier.Pending, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		target := netip.AddrPortFrom(addr, u.link.Port)
		if kind == carrier.KindQUIC {
			return u.dialQUIC(ctx, target, tlsConf)
		}
		return tunnel.DialYamux(ctx, net.TCPAddrFromAddrPort(target), tlsConf, u.dead)
	}, func(p carrier.Pending) { p.Close(carrier.CodeReplaced, "another address of the server answered first") })
	if p == nil {
		return nil, errors.Join(errs...)
	}
	return p, nil
}

// dialQUIC opens a socket of the target's family that reads and writes in batches.
func (u *upstream) dialQUIC(ctx context.Context, target netip.AddrPort, tlsConf *tls.Config) (carrier.Pending, error) {
	local := netip.IPv4Unspecified()
	if target.Addr().Is6() {
		local = netip.IPv6Unspecified()
	}
	socket, err := udpio.ListenPacket(netip.AddrPortFrom(local, 0), udpio.Config{NoOffload: u.noOffload})
	if err != nil {
		return nil, err
	}
	return tunnel.DialQUIC(ctx, socket, net.UDPAddrFromAddrPort(target), tlsConf, u.dead)
}

func (u *upstream) resolve(ctx context.Context) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(u.link.Host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addrs, err := eyeballs.Lookup(ctx, net.DefaultResolver.LookupNetIP, u.link.Host)
	if err != nil {
		return nil, fmt.Errorf("looking up the server: %w", err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return eyeballs.Order(addrs), nil
}

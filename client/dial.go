package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"wmproxy/certs"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel"
)

// maxAddrs bounds the addresses of the server's name that are tried in one go.
const maxAddrs = 8

// dial resolves the server's name anew and tries its addresses in turn. It
// returns the first connection, or what went wrong with each.
func (u *upstream) dial(ctx context.Context, kind tunnel.Kind) (tunnel.Pending, error) {
	addrs, err := u.resolve(ctx)
	if err != nil {
		return nil, err
	}
	tlsConf := certs.ClientConfig(u.link.Pin, u.link.Host, tunnel.ALPN)
	var errs []error
	for _, addr := range addrs {
		target := netip.AddrPortFrom(addr, u.link.Port)
		attempt, cancel := context.WithTimeout(ctx, dialTimeout)
		var p tunnel.Pending
		if kind == tunnel.KindQUIC {
			p, err = u.dialQUIC(attempt, target, tlsConf)
		} else {
			p, err = tunnel.DialYamux(attempt, net.TCPAddrFromAddrPort(target), tlsConf, u.dead)
		}
		cancel()
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// dialQUIC opens a socket of the target's family that reads and writes in batches.
func (u *upstream) dialQUIC(ctx context.Context, target netip.AddrPort, tlsConf *tls.Config) (tunnel.Pending, error) {
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
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.link.Host)
	if err != nil {
		return nil, fmt.Errorf("looking up the server: %w", err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs[:min(len(addrs), maxAddrs)], nil
}

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"wmproxy/certs"
	"wmproxy/internal/eyeballs"
	"wmproxy/internal/transports"
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
		return transports.Dial(ctx, kind, target, tlsConf, u.options)
	}, func(p carrier.Pending) { p.Close(carrier.CodeReplaced, "another address of the server answered first") })
	if p == nil {
		return nil, errors.Join(errs...)
	}
	return p, nil
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

//go:build linux

package netlab

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses of the link between a server and its neighbour.
const (
	besideServer4    = "10.66.0.1"
	besideNeighbour4 = "10.66.0.2"
	besideServer6    = "fd66::1"
	besideNeighbour6 = "fd66::2"
)

// BesideServer is the IPv6 address at which a server's neighbour reaches it.
var BesideServer = netip.MustParseAddr(besideServer6)

// Neighbour adds a host with a link of its own to Servers[i], without delay. It can send
// from every address of the networks.
func (n *Net) Neighbour(i int, networks ...netip.Prefix) *Host {
	n.t.Helper()
	const name = "beside"
	server, h := n.Servers[i], newHost(n.t, "neighbour")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := server.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: wan, PeerNamespace: netlink.NsFd(h.ns)}); err != nil {
		n.t.Fatalf("a link between %s and its neighbour: %v", server.Name, err)
	}
	server.address(name, besideServer4+"/30")
	server.address6(name, besideServer6+"/64")
	h.address(wan, besideNeighbour4+"/30")
	h.address6(wan, besideNeighbour6+"/64")
	h.defaultVia(besideServer4)
	for _, network := range networks {
		dst := &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), network.Addr().BitLen())}
		via := net.ParseIP(besideNeighbour4)
		if network.Addr().Is6() {
			via = net.ParseIP(besideNeighbour6)
		}
		if err := server.nl.RouteAdd(&netlink.Route{Dst: dst, Gw: via}); err != nil {
			n.t.Fatalf("a route to %v: %v", network, err)
		}
		lo := h.link("lo").Attrs().Index
		if err := h.nl.RouteAdd(&netlink.Route{Dst: dst, LinkIndex: lo, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}); err != nil {
			n.t.Fatalf("the addresses of %v: %v", network, err)
		}
	}
	return h
}

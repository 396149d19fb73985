//go:build linux

package netlab

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// IPv6 addresses of home, the router and Servers[0]. There is no NAT.
const (
	home6    = "2001:db8:7::2/64"
	gateway6 = "2001:db8:7::1/64"
	server6  = "2001:db8:203::2/64"
	router6  = "2001:db8:203::1/64"
)

// ServerAddr6 returns the IPv6 address of Servers[0].
func ServerAddr6() netip.Addr { return netip.MustParsePrefix(server6).Addr() }

// IPv6 adds IPv6 addresses to home, the router and Servers[0].
func (n *Net) IPv6() {
	n.t.Helper()
	n.Router.Set("ipv6/conf/all/forwarding", "1")
	server := n.Servers[0]
	n.Home.address6(wan, home6)
	n.Router.address6(home, gateway6)
	server.address6(wan, server6)
	n.Router.address6(server.Name, router6)
	n.Home.defaultVia6(gateway6)
	server.defaultVia6(router6)
}

// address6 is like address for IPv6. The address can be used at once, without duplicate
// address detection.
func (h *Host) address6(name, cidr string) {
	h.t.Helper()
	addr, err := netlink.ParseAddr(cidr)
	if err == nil {
		addr.Flags = unix.IFA_F_NODAD
		err = h.nl.AddrAdd(h.link(name), addr)
	}
	if err != nil {
		h.t.Fatalf("%s for %s of %s: %v", cidr, name, h.Name, err)
	}
}

func (h *Host) defaultVia6(gateway string) {
	h.t.Helper()
	_, all, _ := net.ParseCIDR("::/0")
	via := netip.MustParsePrefix(gateway).Addr()
	if err := h.nl.RouteReplace(&netlink.Route{Dst: all, Gw: via.AsSlice()}); err != nil {
		h.t.Fatalf("a route through %s on %s: %v", gateway, h.Name, err)
	}
}

// Narrow makes the router drop packets of more than mtu bytes between home and Servers[0].
// With icmp it answers them as RFC 1191 and RFC 8201 require.
func (n *Net) Narrow(mtu int, icmp bool) {
	n.t.Helper()
	if !icmp {
		n.Router.Run(silent, "nft", "-f", "-")
	}
	// Packets from home are routed by a table of their own, so that others reach the server as before.
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table = family, home, narrowTable
		if err := n.Router.nl.RuleAdd(rule); err != nil {
			n.t.Fatalf("a rule for packets from home: %v", err)
		}
	}
	n.narrowTo(home, unix.RT_TABLE_MAIN, mtu)
	n.narrowTo(n.Servers[0].Name, narrowTable, mtu)
}

// narrowTable is the number of the routing table for packets from home.
const narrowTable = 100

// narrowTo sets the MTU of the router's routes on a link, or adds routes with it to another table.
func (n *Net) narrowTo(name string, table, mtu int) {
	n.t.Helper()
	routes, err := n.Router.nl.RouteList(n.Router.link(name), netlink.FAMILY_ALL)
	if err != nil {
		n.t.Fatalf("the router's routes to %s: %v", name, err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() {
			continue
		}
		r.Table, r.MTU, r.MTULock = table, mtu, true
		if err := n.Router.nl.RouteReplace(&r); err != nil {
			n.t.Fatalf("a route of %d bytes to %s: %v", mtu, r.Dst, err)
		}
	}
}

// silent makes the router drop its ICMP messages about packets that are too large.
const silent = `table inet silent {
	chain output {
		type filter hook output priority filter;
		icmp type destination-unreachable icmp code frag-needed drop
		icmpv6 type packet-too-big drop
	}
}
`

//go:build linux

// Package netlab makes networks for tests, with events and faults: a link that is cut, a
// NAT that loses its mappings, a firewall that drops packets, loss, delay and a rate.
//
//	Home 10.7.0.2 ── 10.7.0.1 Router ── 203.0.113.2 Servers[0]
//	                    NAT          ── 203.0.113.6 Servers[1] …
//	                                 ── 198.51.100.2 Targets
//
// Faults occur on the link between home and the router.
package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Config configures a network.
type Config struct {
	Path    [2]Path // of home's link, index Up and Down; without one it is a plain cable
	Servers int     // default 1
}

// TB is the part of testing.TB that a network needs, so that programs make networks, too.
type TB interface {
	Helper()
	Cleanup(func())
	Fatal(...any)
	Fatalf(string, ...any)
}

// Net is a network.
type Net struct {
	Home    *Host // runs the application and the client
	Router  *Host
	Servers []*Host
	Targets *Host

	t     TB
	drops [2][2]Which
	link  *link // nil without a path
}

// Names of links and addresses of hosts.
const (
	wan  = "eth0" // of all hosts but the router
	home = "home" // of the router

	gateway     = "10.7.0.1"
	homeNetwork = "10.7.0.0/24"
	targets     = "198.51.100.2"

	// TargetNetwork is the network of Targets. A server must be allowed to reach it.
	TargetNetwork = "198.51.100.0/30"
)

// ServerAddr returns the address of Servers[i].
func ServerAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(4*i + 2)}) }

// TargetAddr returns the address of Targets.
func TargetAddr() netip.Addr { return netip.MustParseAddr(targets) }

// New makes a network that ends with the test. It fails the test if Missing returns an
// error.
func New(t TB, cfg Config) *Net {
	t.Helper()
	n := &Net{t: t, Home: newHost(t, "home"), Router: newHost(t, "router"), Targets: newHost(t, "targets")}
	n.Router.Set("ipv4/ip_forward", "1")
	if cfg.Path == ([2]Path{}) {
		n.join(n.Home, home)
	} else {
		n.joinPath()
		n.SetPath(cfg.Path)
	}
	n.Home.address(wan, "10.7.0.2/24")
	n.Router.address(home, gateway+"/24")
	n.Home.defaultVia(gateway)
	for i := range max(cfg.Servers, 1) {
		s := newHost(t, fmt.Sprintf("server%d", i))
		n.Servers = append(n.Servers, s)
		n.join(s, s.Name)
		n.attach(s, s.Name, ServerAddr(i))
	}
	n.join(n.Targets, "targets")
	n.attach(n.Targets, "targets", TargetAddr())
	n.Router.Run(table, "nft", "-f", "-")
	n.filter()
	return n
}

// join links a host to the router. Segmentation offload is off, so that single packets
// are counted and dropped.
func (n *Net) join(h *Host, name string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	err := n.Router.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: wan, PeerNamespace: netlink.NsFd(h.ns)})
	if err == nil {
		err = n.Router.nl.LinkSetGSOMaxSegs(n.Router.link(name), 1)
	}
	if err == nil {
		err = h.nl.LinkSetGSOMaxSegs(h.link(wan), 1)
	}
	if err != nil {
		n.t.Fatalf("a link between the router and %s: %v", h.Name, err)
	}
}

// attach sets the addresses of both ends of a host's link, in a network of their own.
func (n *Net) attach(h *Host, name string, addr netip.Addr) {
	n.t.Helper()
	router := addr.Prev().String()
	h.address(wan, addr.String()+"/30")
	n.Router.address(name, router+"/30")
	h.defaultVia(router)
}

// table is the router's NAT and its counters. A flow whose mapping was lost gets another
// port, as behind a NAT that was restarted.
const table = `table ip lab {
	counter up_udp_seen {}
	counter up_udp_dropped {}
	counter up_tcp_seen {}
	counter up_tcp_dropped {}
	counter down_udp_seen {}
	counter down_udp_dropped {}
	counter down_tcp_seen {}
	counter down_tcp_dropped {}
	chain up {}
	chain down {}
	chain forward {
		type filter hook forward priority filter;
		iifname "home" jump up
		oifname "home" jump down
	}
	chain unsolicited {
		type filter hook input priority filter;
		iifname != "home" meta l4proto { tcp, udp } drop
	}
	chain nat {
		type nat hook postrouting priority srcnat;
		ip saddr ` + homeNetwork + ` oifname != "home" masquerade fully-random
	}
}
`

// Direction is the direction of a packet: Up is from home to the servers.
type Direction int

const (
	Up Direction = iota
	Down
)

func (d Direction) String() string { return [...]string{"up", "down"}[d] }

// Both is both directions.
var Both = []Direction{Up, Down}

// Protocol is a protocol that the router distinguishes.
type Protocol int

const (
	UDP Protocol = iota
	TCP
)

func (p Protocol) String() string { return [...]string{"udp", "tcp"}[p] }

// Which selects packets. The zero value selects none.
type Which struct{ match string }

var (
	None = Which{}
	All  = Which{"meta length >= 0"}
)

// Share selects packets at random with probability p, 0 to 1.
func Share(p float64) Which {
	const whole = 1_000_000
	return Which{fmt.Sprintf("numgen random mod %d < %d", whole, int(p*whole))}
}

// Above selects IP packets of more than size bytes.
func Above(size int) Which { return Which{fmt.Sprintf("ip length > %d", size)} }

// Drop makes the router drop these packets of the protocol, and no others, from now on.
func (n *Net) Drop(directions []Direction, p Protocol, which Which) {
	n.t.Helper()
	for _, d := range directions {
		n.drops[d][p] = which
	}
	n.filter()
}

// Cut makes the router drop everything in both directions, as out of radio coverage.
func (n *Net) Cut() {
	n.t.Helper()
	n.Drop(Both, UDP, All)
	n.Drop(Both, TCP, All)
}

// Mend makes the router drop nothing.
func (n *Net) Mend() {
	n.t.Helper()
	n.drops = [2][2]Which{}
	n.filter()
}

func (n *Net) filter() {
	n.t.Helper()
	var b strings.Builder
	for _, d := range Both {
		fmt.Fprintf(&b, "flush chain ip lab %v\n", d)
		for _, p := range []Protocol{UDP, TCP} {
			rule := fmt.Sprintf("add rule ip lab %v meta l4proto %v", d, p)
			fmt.Fprintf(&b, "%s counter name %v_%v_seen\n", rule, d, p)
			if which := n.drops[d][p]; which != None {
				fmt.Fprintf(&b, "%s %s counter name %v_%v_dropped drop\n", rule, which.match, d, p)
			}
		}
	}
	n.Router.Run(b.String(), "nft", "-f", "-")
}

// Count is the number of packets that arrived at the router, and of those that it dropped.
type Count struct{ Seen, Dropped int }

// Counts returns the packets so far.
func (n *Net) Counts(d Direction, p Protocol) (c Count) {
	n.t.Helper()
	var list struct {
		Nftables []struct {
			Counter struct {
				Name    string
				Packets int
			}
		}
	}
	if err := json.Unmarshal([]byte(n.Router.Run("", "nft", "-j", "list", "counters", "table", "ip", "lab")), &list); err != nil {
		n.t.Fatal(err)
	}
	for _, e := range list.Nftables {
		switch e.Counter.Name {
		case fmt.Sprintf("%v_%v_seen", d, p):
			c.Seen = e.Counter.Packets
		case fmt.Sprintf("%v_%v_dropped", d, p):
			c.Dropped = e.Counter.Packets
		}
	}
	return c
}

// Wire returns the number of bytes that have passed home's link, with Ethernet headers if
// the link has them.
func (n *Net) Wire(d Direction) uint64 {
	n.t.Helper()
	s := n.Home.link(wan).Attrs().Statistics
	if d == Up {
		return s.TxBytes
	}
	return s.RxBytes
}

// Unplug sets a host's link down. The host notices it and loses its routes.
func (n *Net) Unplug(h *Host) {
	n.t.Helper()
	if err := h.nl.LinkSetDown(h.link(wan)); err != nil {
		n.t.Fatal(err)
	}
}

// Plug undoes Unplug.
func (n *Net) Plug(h *Host) {
	n.t.Helper()
	h.setUp(wan)
	addrs, err := h.nl.AddrList(h.link(wan), netlink.FAMILY_V4)
	if err != nil || len(addrs) == 0 {
		n.t.Fatalf("the address of %s: %v, %v", h.Name, addrs, err)
	}
	router := gateway
	if h != n.Home {
		addr, _ := netip.AddrFromSlice(addrs[0].IP.To4())
		router = addr.Prev().String()
	}
	h.defaultVia(router)
	n.awaitUp(h)
}

// awaitUp waits until both ends of a host's link are up, and clears the router's neighbour
// table: it would repeat a request that it sent while the link was down only a second later.
func (n *Net) awaitUp(h *Host) {
	n.t.Helper()
	near := h.link(wan).Attrs()
	deadline := time.Now().Add(linkTimeout)
	for {
		far, err := n.Router.nl.LinkByIndex(near.ParentIndex)
		if err != nil {
			n.t.Fatalf("the router's end of the link of %s: %v", h.Name, err)
		}
		near = h.link(wan).Attrs()
		if near.OperState == netlink.OperUp && far.Attrs().OperState == netlink.OperUp {
			break
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the link of %s is %v and %v after %v", h.Name, near.OperState, far.Attrs().OperState, linkTimeout)
		}
		time.Sleep(linkStep)
	}
	neighbours, err := n.Router.nl.NeighList(near.ParentIndex, netlink.FAMILY_V4)
	if err != nil {
		n.t.Fatalf("the router's neighbours: %v", err)
	}
	for _, neighbour := range neighbours {
		if err := n.Router.nl.NeighDel(&neighbour); err != nil && !errors.Is(err, unix.ENOENT) {
			n.t.Fatalf("forgetting %v: %v", neighbour.IP, err)
		}
	}
}

const (
	linkTimeout = 5 * time.Second
	linkStep    = 5 * time.Millisecond
)

// Rate limits a direction of home's link to this many bits a second, with a queue that
// takes this time to empty. 0 removes the limit.
func (n *Net) Rate(d Direction, bits int, queue time.Duration) {
	n.t.Helper()
	h, name := n.Home, wan
	if d == Down {
		h, name = n.Router, home
	}
	if bits == 0 {
		h.Run("", "tc", "qdisc", "del", "dev", name, "root")
		return
	}
	h.Run("", "tc", "qdisc", "replace", "dev", name, "root", "tbf",
		"rate", fmt.Sprintf("%dbit", bits), "burst", "8kb", "latency", fmt.Sprintf("%dms", queue.Milliseconds()))
}

// ForgetNAT deletes the router's mappings, as a restart does.
func (n *Net) ForgetNAT() {
	n.t.Helper()
	if err := n.Router.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		n.t.Fatalf("flushing the NAT's state: %v", err)
	}
}

// Move replaces the address of home by another one in its network, 10.7.0.last.
func (n *Net) Move(last byte) {
	n.t.Helper()
	before, err := n.Home.nl.AddrList(n.Home.link(wan), netlink.FAMILY_V4)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, addr := range before {
		if err := n.Home.nl.AddrDel(n.Home.link(wan), &addr); err != nil {
			n.t.Fatal(err)
		}
	}
	n.Home.address(wan, fmt.Sprintf("10.7.0.%d/24", last))
	n.Home.defaultVia(gateway)
}

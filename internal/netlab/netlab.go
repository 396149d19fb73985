//go:build linux

// Package netlab makes networks to test in, and what happens to them: a link that is
// cut, a NAT that forgets, a firewall that swallows, loss, delay and a rate.
//
//	Home 10.7.0.2 ── 10.7.0.1 Router ── 203.0.113.2 Servers[0]
//	                    NAT          ── 203.0.113.6 Servers[1] …
//	                                 ── 198.51.100.2 Targets
//
// Everything that can be done is done to the link between home and the router.
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

// Config is what a network is made with; it can all be zero.
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
	Home    *Host // application and client
	Router  *Host
	Servers []*Host
	Targets *Host

	t     TB
	drops [2][2]Which
	link  *link // nil without a path
}

// Names of links and addresses of hosts.
const (
	wan  = "eth0" // of everyone but the router
	home = "home" // of the router

	gateway     = "10.7.0.1"
	homeNetwork = "10.7.0.0/24"
	targets     = "198.51.100.2"

	// TargetNetwork is what a server has to be allowed to reach.
	TargetNetwork = "198.51.100.0/30"
)

// ServerAddr is the address of Servers[i].
func ServerAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(4*i + 2)}) }

// TargetAddr is the address of Targets.
func TargetAddr() netip.Addr { return netip.MustParseAddr(targets) }

// New makes a network that ends with the test. Where Missing says something, it fails.
func New(t TB, cfg Config) *Net {
	t.Helper()
	n := &Net{t: t, Home: newHost(t, "home"), Router: newHost(t, "router"), Targets: newHost(t, "targets")}
	n.Router.set("ipv4/ip_forward", "1")
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

// join lays a cable between a host and the router. What the sender's side would pass on
// in one piece for the receiver to cut is cut before, so that packets are what is
// counted and dropped.
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

// attach gives both ends of a cable their addresses, of a network of their own.
func (n *Net) attach(h *Host, name string, addr netip.Addr) {
	n.t.Helper()
	router := addr.Prev().String()
	h.address(wan, addr.String()+"/30")
	n.Router.address(name, router+"/30")
	h.defaultVia(router)
}

// table is the router's NAT and what it counts. A mapping that was forgotten does not
// get its port again, as behind a NAT that was restarted.
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

// Direction is from home up to the servers, or down.
type Direction int

const (
	Up Direction = iota
	Down
)

func (d Direction) String() string { return [...]string{"up", "down"}[d] }

// Both is both directions.
var Both = []Direction{Up, Down}

// Protocol is one that the router can tell from others.
type Protocol int

const (
	UDP Protocol = iota
	TCP
)

func (p Protocol) String() string { return [...]string{"udp", "tcp"}[p] }

// Which are the packets that a rule is about; the zero value is none.
type Which struct{ match string }

var (
	None = Which{}
	All  = Which{"meta length >= 0"}
)

// Share is so much of all packets at random, 0 to 1.
func Share(p float64) Which {
	const whole = 1_000_000
	return Which{fmt.Sprintf("numgen random mod %d < %d", whole, int(p*whole))}
}

// Above are IP packets of more bytes.
func Above(size int) Which { return Which{fmt.Sprintf("ip length > %d", size)} }

// Drop makes the router swallow these packets, and no others of the protocol, from now on.
func (n *Net) Drop(directions []Direction, p Protocol, which Which) {
	n.t.Helper()
	for _, d := range directions {
		n.drops[d][p] = which
	}
	n.filter()
}

// Cut swallows everything in both directions, as when the radio is out of reach.
func (n *Net) Cut() {
	n.t.Helper()
	n.Drop(Both, UDP, All)
	n.Drop(Both, TCP, All)
}

// Mend passes everything on again.
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

// Count is what came to the router and what it swallowed of that, in packets.
type Count struct{ Seen, Dropped int }

// Counts says what has come so far.
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

// Wire is how many bytes have passed home's link, Ethernet headers included where
// the link has them.
func (n *Net) Wire(d Direction) uint64 {
	n.t.Helper()
	s := n.Home.link(wan).Attrs().Statistics
	if d == Up {
		return s.TxBytes
	}
	return s.RxBytes
}

// Unplug takes a host's link down: its routes are gone and it sees that.
func (n *Net) Unplug(h *Host) {
	n.t.Helper()
	if err := h.nl.LinkSetDown(h.link(wan)); err != nil {
		n.t.Fatal(err)
	}
}

// Plug is the end of Unplug.
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

// awaitUp waits until both ends of a host's link carry, and has the router ask anew
// for who is there: what it asked while the link was down it repeats a second later.
func (n *Net) awaitUp(h *Host) {
	n.t.Helper()
	near := h.link(wan).Attrs()
	deadline := time.Now().Add(linkPatience)
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
			n.t.Fatalf("the link of %s is %v and %v after %v", h.Name, near.OperState, far.Attrs().OperState, linkPatience)
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
	linkPatience = 5 * time.Second
	linkStep     = 5 * time.Millisecond
)

// Rate caps a direction of home's link at so many bits a second, with a queue for as
// much as that is in the time; 0 takes the cap away.
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

// ForgetNAT makes the router forget all mappings, as when it restarts.
func (n *Net) ForgetNAT() {
	n.t.Helper()
	if err := n.Router.nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		n.t.Fatalf("flushing the NAT's state: %v", err)
	}
}

// Move gives home another address in its network, 10.7.0.last, in place of the one
// it has.
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

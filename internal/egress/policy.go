package egress

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
)

// verdict is the policy's judgement on an IP address.
type verdict uint8

const (
	refused  verdict = iota
	open             // at every port
	openHost         // at every port but those on which this process listens
)

// policy decides to which addresses an exit may send and from which it may receive. It judges
// addresses and not names, which may resolve to another address next time.
type policy struct {
	allow  []netip.Prefix
	deny   []netip.Prefix // wins over allow
	closed func(netip.AddrPort) bool
	host   atomic.Pointer[hostAddrs] // replaced only by a different one
}

// newPolicy makes a policy. The prefixes are masked and not IPv4-mapped, as config reads
// them. It refuses nothing of the host's own until refresh.
func newPolicy(allow, deny []netip.Prefix, closed func(netip.AddrPort) bool) *policy {
	p := &policy{allow: allow, deny: deny, closed: closed}
	p.host.Store(&hostAddrs{})
	return p
}

// permits reports whether datagrams and connections may go to ap, or come from it.
func (p *policy) permits(ap netip.AddrPort) bool {
	return p.permitsAt(p.judge(ap.Addr()), ap)
}

// permitsAt is like permits for an address with a known verdict.
func (p *policy) permitsAt(v verdict, ap netip.AddrPort) bool {
	switch v {
	case open:
		return true
	case openHost:
		return p.closed == nil || !p.closed(ap)
	}
	return false
}

// permitsConn is like permits for an established TCP connection. If both its ends have the same address, that is
// the host's own even if no interface has it (a route of type local).
func (p *policy) permitsConn(local, remote netip.AddrPort) bool {
	v := p.judge(remote.Addr())
	if ip := remote.Addr().Unmap(); v == open && local.Addr().Unmap() == ip {
		v = refused
		if contain(p.allow, ip) {
			v = openHost
		}
	}
	return p.permitsAt(v, remote)
}

// judge returns the verdict on ip. If ip embeds an IPv4 address it judges that one as well,
// since packets to ip end up there.
func (p *policy) judge(ip netip.Addr) verdict {
	if !ip.IsValid() || ip.Zone() != "" {
		return refused
	}
	ip = ip.Unmap()
	if p.denies(ip) {
		return refused
	}
	host := p.host.Load()
	if contain(p.allow, ip) {
		if reachesHost(ip, host) {
			return openHost
		}
		return open
	}
	if host.has(ip) {
		return refused
	}
	if ip.Is4() {
		if !global4(ip) {
			return refused
		}
		return open
	}
	switch to, via := embedded4(ip); {
	case via.IsValid():
		return min(p.judge(to), p.judge(via))
	case to.IsValid():
		return p.judge(to)
	case global6(ip):
		return open
	}
	return refused
}

// denies reports whether the operator has closed ip, or an IPv4 address that it embeds.
func (p *policy) denies(ip netip.Addr) bool {
	if len(p.deny) == 0 {
		return false
	}
	to, via := embedded4(ip)
	return contain(p.deny, ip) || contain(p.deny, to) || contain(p.deny, via)
}

// contain reports whether one of the prefixes contains ip. None contains the zero Addr.
func contain(ps []netip.Prefix, ip netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// IPv6 addresses that embed an IPv4 address.
//
//	0                   32                                       96         127
//	+--------------------+----------------------------------------+-----------+
//	| 0064:ff9b          | 0                                      | IPv4      |  NAT64, RFC 6052 section 2.1
//	+--------------------+----------------------------------------+-----------+
//	| 0                                                           | IPv4      |  IPv4-compatible, RFC 4291 section 2.5.5.1
//	+------+-------------+---+------------------------------------+-----------+
//	| 2002 | IPv4            | subnet, interface                              |  6to4, RFC 3056 section 2
//	+------+-------------+---+--------+--------+---------+--------+-----------+
//	| 2001:0000          | server IPv4         | flags   | ^port  | ^client   |  Teredo, RFC 4380 section 4
//	+--------------------+---------------------+---------+--------+-----------+
//
// The local-use NAT64 prefix 64:ff9b:1::/48 (RFC 8215) is not among them but refused as a
// whole: the position of the IPv4 address depends on a prefix length that only its network
// knows.
var (
	nat64Prefix  = [12]byte{0x00, 0x64, 0xff, 0x9b}
	compatPrefix = [12]byte{}
)

func isNAT64(a [16]byte) bool          { return [12]byte(a[:12]) == nat64Prefix }
func isIPv4Compatible(a [16]byte) bool { return [12]byte(a[:12]) == compatPrefix }
func is6to4(a [16]byte) bool           { return a[0] == 0x20 && a[1] == 0x02 }
func isTeredo(a [16]byte) bool         { return a[0] == 0x20 && a[1] == 0x01 && a[2] == 0 && a[3] == 0 }

// embedded4 returns the IPv4 address at which packets to ip end up and, if they may go through
// another one, that. It returns the zero Addr if ip embeds none.
func embedded4(ip netip.Addr) (to, via netip.Addr) {
	if ip.Is4() {
		return to, via
	}
	a := ip.As16()
	switch {
	case isNAT64(a), isIPv4Compatible(a) && !ip.IsUnspecified() && !ip.IsLoopback():
		to = netip.AddrFrom4([4]byte(a[12:16]))
	case is6to4(a):
		to = netip.AddrFrom4([4]byte(a[2:6]))
	case isTeredo(a):
		// Packets go to the client's mapped address, or through its server's.
		to = netip.AddrFrom4([4]byte{^a[12], ^a[13], ^a[14], ^a[15]})
		via = netip.AddrFrom4([4]byte(a[4:8]))
	}
	return to, via
}

// block4 is an IPv4 prefix, ready to compare.
type block4 struct{ base, mask uint32 }

// notGlobal4 is all addresses that are not a host on the public Internet: the IANA IPv4
// special-purpose registry (RFC 6890), multicast, the reserved ones, and other addresses at which
// a cloud serves, and trusts, only its own machines.
var notGlobal4 = blocks4(
	"0.0.0.0/8",        // this network; on Linux 0.0.0.0 is the host itself
	"10.0.0.0/8",       // private, RFC 1918
	"100.64.0.0/10",    // carrier-grade NAT, RFC 6598
	"127.0.0.0/8",      // loopback
	"161.26.0.0/16",    // IBM Cloud's infrastructure services
	"166.8.0.0/14",     // IBM Cloud's service endpoints
	"168.63.129.16/32", // Azure's host: DNS, WireServer
	"169.254.0.0/16",   // link-local, and the metadata service of clouds
	"172.16.0.0/12",    // private, RFC 1918
	"192.0.0.0/24",     // protocol assignments, RFC 6890
	"192.0.2.0/24",     // documentation, RFC 5737
	"192.88.99.0/24",   // 6to4 relays, RFC 7526
	"192.168.0.0/16",   // private, RFC 1918
	"198.18.0.0/15",    // benchmarks, RFC 2544
	"198.51.100.0/24",  // documentation, RFC 5737
	"203.0.113.0/24",   // documentation, RFC 5737
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, and the broadcast address
)

func blocks4(prefixes ...string) []block4 {
	var bs []block4
	for _, s := range prefixes {
		p := netip.MustParsePrefix(s)
		a := p.Addr().As4()
		bs = append(bs, block4{binary.BigEndian.Uint32(a[:]), ^uint32(0) << (32 - p.Bits())})
	}
	return bs
}

func global4(ip netip.Addr) bool {
	a := ip.As4()
	n := binary.BigEndian.Uint32(a[:])
	for _, b := range notGlobal4 {
		if n&b.mask == b.base {
			return false
		}
	}
	return true
}

// globalUnicast6 is the range for global unicast. ULA, link-local, site-local, multicast and all
// other special ranges but the following are outside.
var globalUnicast6 = netip.MustParsePrefix("2000::/3")

var notGlobal6 = []netip.Prefix{
	netip.MustParsePrefix("2001::/23"),     // protocol assignments, RFC 2928: benchmarks, ORCHID and more
	netip.MustParsePrefix("2001:db8::/32"), // documentation, RFC 3849
	netip.MustParsePrefix("3fff::/20"),     // documentation, RFC 9637
}

func global6(ip netip.Addr) bool {
	if !globalUnicast6.Contains(ip) {
		return false
	}
	for _, p := range notGlobal6 {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// reachesHost reports whether a socket of this host that is bound to the wildcard address
// receives packets to ip.
func reachesHost(ip netip.Addr, host *hostAddrs) bool {
	if host.has(ip) || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
		return true
	}
	if ip.Is4() {
		return ip.As4() == [4]byte{255, 255, 255, 255}
	}
	// To open a whole prefix of such addresses does not mean to open the host's own.
	to, _ := embedded4(ip)
	return to.IsValid() && reachesHost(to, host)
}

// hostAddrs is the addresses at which this host answers. A packet to one of them goes over lo,
// past the firewall, to any socket that is bound to the wildcard.
type hostAddrs struct {
	addrs    map[netip.Addr]struct{}
	prefixes []netip.Prefix // of loopback interfaces: Linux answers at all addresses of a prefix there
}

func (h *hostAddrs) has(ip netip.Addr) bool {
	if _, ok := h.addrs[ip]; ok {
		return true
	}
	for _, p := range h.prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// refresh sets the host's addresses.
func (p *policy) refresh(h *hostAddrs) {
	old := p.host.Load()
	if maps.Equal(old.addrs, h.addrs) && slices.Equal(old.prefixes, h.prefixes) {
		return // the same pointer keeps cached verdicts valid
	}
	p.host.Store(h)
}

// readHostAddrs returns the addresses of all interfaces.
func readHostAddrs() (*hostAddrs, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	h := &hostAddrs{addrs: make(map[netip.Addr]struct{})}
	for _, a := range all {
		if p, ok := prefixOf(a); ok {
			h.add(p)
		}
	}
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range ifaces {
		if i.Flags&net.FlagLoopback == 0 {
			continue
		}
		as, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range as {
			if p, ok := prefixOf(a); ok {
				h.prefixes = append(h.prefixes, p.Masked())
			}
		}
	}
	return h, nil
}

// add adds an interface's address and the others of its subnet at which the host answers: an
// IPv4 subnet's two broadcast addresses (RFC 919 section 7, RFC 1122 section 3.3.6), a
// router's IPv6 anycast address (RFC 4291 section 2.6.1).
func (h *hostAddrs) add(p netip.Prefix) {
	ip := p.Addr()
	h.addrs[ip] = struct{}{}
	if ip.BitLen()-p.Bits() < 2 {
		return // point to point, RFC 3021
	}
	first := p.Masked().Addr()
	h.addrs[first] = struct{}{}
	if ip.Is4() {
		a := first.As4()
		n := binary.BigEndian.Uint32(a[:]) | ^uint32(0)>>p.Bits()
		binary.BigEndian.PutUint32(a[:], n)
		h.addrs[netip.AddrFrom4(a)] = struct{}{}
	}
}

func prefixOf(a net.Addr) (netip.Prefix, bool) {
	n, ok := a.(*net.IPNet)
	if !ok {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ip = ip.Unmap()
	ones, bits := n.Mask.Size()
	if bits != ip.BitLen() { // a mask of the other family, or none: add the address alone
		ones = ip.BitLen()
	}
	return netip.PrefixFrom(ip, ones), true
}

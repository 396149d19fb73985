// Package probe measures what passes through a SOCKS5 server, whoever made it:
// the steps of one DNS query or echo over CONNECT and UDP ASSOCIATE, with the
// likely cause where one fails (Check), and round trips by datagram size, a
// stream and a look-up (Measure). It brings the targets for that, an echo and a
// DNS server. It knows nothing of what stands behind the SOCKS5 server.
package probe

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"wmproxy/socks"
)

// ParseTarget reads HOST:PORT, with a port from 1 to 65535, as a destination. A
// name stays a name, for the SOCKS5 server to resolve.
func ParseTarget(s string) (socks.Addr, error) {
	host, service, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return socks.Addr{}, fmt.Errorf("%q is not HOST:PORT", s)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 {
		return socks.Addr{}, fmt.Errorf("%q has no port from 1 to 65535", s)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return socks.Addr{IP: ip.Unmap().WithZone(""), Port: uint16(port)}, nil
	}
	if len(host) > 255 || strings.ContainsAny(host, " \t\r\n:/") {
		return socks.Addr{}, fmt.Errorf("%q is not a host name", host)
	}
	return socks.Addr{Name: host, Port: uint16(port)}, nil
}

// listenAttempts is how often a port that is free for UDP and taken for TCP is
// tried again, when the system chooses it.
const listenAttempts = 16

// listenBoth opens UDP and TCP on one address, HOST:PORT, and one port number;
// port 0 lets the system choose it.
func listenBoth(addr string) (*net.UDPConn, *net.TCPListener, error) {
	uaddr, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, nil, err
	}
	for attempt := 1; ; attempt++ {
		udp, err := net.ListenUDP("udp", uaddr)
		if err != nil {
			return nil, nil, err
		}
		at := udp.LocalAddr().(*net.UDPAddr)
		tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: at.IP, Port: at.Port, Zone: at.Zone})
		if err == nil {
			return udp, tcp, nil
		}
		udp.Close()
		if uaddr.Port != 0 || attempt == listenAttempts {
			return nil, nil, err
		}
	}
}

// bufferBytes is asked of the system for the sockets of the targets, so that a
// burst of the largest datagrams fits. Getting less is no error.
const bufferBytes = 4 << 20

func localAddr(udp *net.UDPConn) socks.Addr {
	return socks.AddrFrom(udp.LocalAddr().(*net.UDPAddr).AddrPort())
}

// visible is a for a terminal: a name comes from the network and could carry
// control characters.
func visible(a socks.Addr) string {
	if a.IP.IsValid() {
		return a.String()
	}
	quoted := strconv.QuoteToASCII(a.String())
	return quoted[1 : len(quoted)-1]
}

// Package probe tests any SOCKS5 server: the steps of a DNS query or echo over CONNECT
// and UDP ASSOCIATE, with the likely cause of a failure (Check), and round trips by
// datagram size, a stream and a look-up (Measure). It also has a DNS server as their
// target. It must not know the implementation of the SOCKS5 server.
package probe

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"wmproxy/socks"
)

// ParseTarget parses HOST:PORT, with a port from 1 to 65535, as a destination. It does
// not resolve a name, which the SOCKS5 server does.
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

// listenAttempts bounds the attempts if the system chooses a port for UDP that is in use
// for TCP.
const listenAttempts = 16

// listenBoth listens on UDP and TCP on the same address, HOST:PORT. The system chooses
// the port if it is 0.
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

// visible formats a for a terminal: a name comes from the network and may contain
// control characters.
func visible(a socks.Addr) string {
	if a.IP.IsValid() {
		return a.String()
	}
	quoted := strconv.QuoteToASCII(a.String())
	return quoted[1 : len(quoted)-1]
}

package udpio

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// lacksIPv6 reports whether err is the error for [::] of a kernel without IPv6 (ipv6.disable=1) or
// with IPv6 switched off.
func lacksIPv6(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// IPv4Alone reports whether a listener that was asked for all addresses of the machine, with address
// HOST:PORT, got only its IPv4 addresses.
func IPv4Alone(address string, got net.Addr) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host != "" && !allOfIPv6(host) {
		return false
	}
	ap, err := netip.ParseAddrPort(got.String())
	return err == nil && ap.Addr().Is4()
}

func allOfIPv6(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip == netip.IPv6Unspecified()
}

// listenUDP is net.ListenUDP on local, which is [::]:0 if it is zero. All of IPv6, which includes
// IPv4, becomes IPv4 alone on a machine without.
func listenUDP(local netip.AddrPort) (*net.UDPConn, error) {
	ip := local.Addr().Unmap()
	anywhere := &net.UDPAddr{Port: int(local.Port())}
	if !ip.IsValid() {
		return net.ListenUDP("udp", anywhere)
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, local.Port())))
	if ip == netip.IPv6Unspecified() && lacksIPv6(err) {
		return net.ListenUDP("udp4", anywhere)
	}
	return conn, err
}

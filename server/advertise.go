package server

import (
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	"wmproxy/internal/egress"
	"wmproxy/internal/link"
	"wmproxy/internal/udpio"
)

// publish writes the client's link to the state directory and passes it to Started.
func (s *Server) publish(id *identity, host string, port uint16) error {
	text, err := s.writeLink(id, host, port)
	if err == nil && s.cfg.Started != nil {
		s.cfg.Started(text)
	}
	return err
}

// writeLink writes the client's link to the state directory and returns it.
func (s *Server) writeLink(id *identity, host string, port uint16) (string, error) {
	if ip, err := netip.ParseAddr(host); err == nil && !egress.Public(ip) {
		s.cfg.Log.Warn("the link names an address that is not public; if clients are elsewhere, give --advertise HOST",
			slog.String("host", host))
	}
	first := s.first.Load()
	l := link.Link{Name: first.Name, Secret: first.Secret, Host: host, Port: port, Pin: id.pin}
	return l.Text(), s.cfg.State.WriteFile(LinkFile, []byte(l.Text()+"\n"))
}

// advertised returns the host and the port in the link.
func (s *Server) advertised(id *identity, port uint16) (string, uint16) {
	if text := s.cfg.Advertise; text != "" {
		host, given, err := net.SplitHostPort(text)
		if err != nil {
			return text, port
		}
		n, _ := strconv.ParseUint(given, 10, 16)
		return host, uint16(n)
	}
	if id.pin == nil {
		// Clients check the name in a certificate from a public CA.
		if leaf := id.certificate().Leaf; leaf != nil && len(leaf.DNSNames) > 0 && leaf.DNSNames[0][0] != '*' {
			return leaf.DNSNames[0], port
		}
	}
	host, _, _ := net.SplitHostPort(s.cfg.Listen)
	if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() || err != nil && host != "" {
		return host, port // an address or a name
	}
	return routeAddr(), port
}

// routeAddr returns the local address of the default route. It connects a UDP socket, which
// sends nothing.
func routeAddr() string {
	for _, target := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		c, err := net.Dial("udp", target)
		if err != nil {
			continue
		}
		ip := udpio.AddrPortOf(c.LocalAddr()).Addr()
		c.Close()
		if ip.IsValid() && !ip.IsUnspecified() {
			return ip.String()
		}
	}
	return "127.0.0.1"
}

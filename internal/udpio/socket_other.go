//go:build !linux

package udpio

import "net/netip"

// Socket is an unconnected UDP socket.
type Socket struct{ portable }

// Listen opens a socket on local. On an unspecified IPv6 address it carries
// IPv4 as well; on a host without IPv6 that becomes IPv4 alone. The zero local
// is [::]:0. With no descriptor left the error is syscall.EMFILE (errors.Is).
func Listen(local netip.AddrPort, cfg Config) (*Socket, error) {
	s := new(Socket)
	if err := s.open(local, cfg); err != nil {
		return nil, err
	}
	return s, nil
}

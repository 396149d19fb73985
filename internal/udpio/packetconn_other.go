//go:build !linux

package udpio

import "net"

// PacketConn is the UDP socket under QUIC; here, as the net package makes it.
type PacketConn struct{ *net.UDPConn }

func (c *PacketConn) open(Config) error { return nil }

package udpio

import (
	"fmt"
	"net"
	"net/netip"
)

// ListenPacket opens the socket that carries QUIC, to be given to
// quic.Transport.Conn. On Linux the result reads UDP_GRO trains in batches and
// hands quic-go the datagrams in them. local and cfg's buffers are as for
// Listen; quic-go itself asks for larger buffers if they are small.
//
// With NoOffload neither UDP_GRO nor UDP_SEGMENT is used: the trains that
// quic-go makes leave as single datagrams. (quic-go has no option for it, only
// QUIC_GO_DISABLE_GSO in the environment of the whole process; and to refuse a
// train with EIO makes it latch GSO off under a data race of its own, v0.65.0.)
func ListenPacket(local netip.AddrPort, cfg Config) (*PacketConn, error) {
	c, err := listenPacket(local, cfg)
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %v: %w", local, err)
	}
	return c, nil
}

func listenPacket(local netip.AddrPort, cfg Config) (*PacketConn, error) {
	conn, err := listenConn(local, cfg)
	if err != nil {
		return nil, err
	}
	c := &PacketConn{UDPConn: conn}
	if err := c.open(cfg); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

// listenConn opens a net.UDPConn.
func listenConn(local netip.AddrPort, cfg Config) (*net.UDPConn, error) {
	conn, err := listenUDP(local)
	if err != nil {
		return nil, err
	}
	if cfg.ReadBuffer > 0 {
		err = conn.SetReadBuffer(cfg.ReadBuffer)
	}
	if cfg.WriteBuffer > 0 && err == nil {
		err = conn.SetWriteBuffer(cfg.WriteBuffer)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

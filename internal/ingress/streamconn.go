package ingress

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"wmproxy/tunnel"
)

// A streamConn is a stream as a net.Conn. Its deadlines bound reads and writes together.
type streamConn struct {
	tunnel.Stream
	local netip.AddrPort // at the far end
	use   use

	mu     sync.Mutex
	closed bool
}

var _ net.Conn = (*streamConn)(nil)

// start makes st the stream, and reports whether c is still wanted.
func (c *streamConn) start(st tunnel.Stream, bound netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Stream, c.local = st, bound
	if c.closed {
		st.Reset(tunnel.CodeLimit)
		c.use.leave()
	}
	return !c.closed
}

// Close ends the stream. The peer gets what was written before.
func (c *streamConn) Close() error { return c.close(tunnel.CodeNone) }

// giveUp ends a stream, which may not be open yet, for others' sake.
func (c *streamConn) giveUp() { _ = c.close(tunnel.CodeLimit) }

func (c *streamConn) close(code tunnel.ErrorCode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if c.Stream != nil {
		if code == tunnel.CodeNone {
			_ = c.CloseWrite()
		}
		c.Reset(code)
		c.use.leave()
	}
	return nil
}

// LocalAddr returns the far end's address of the connection to the target.
func (c *streamConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the zero address: the far end knows the target's.
func (c *streamConn) RemoteAddr() net.Addr { return new(net.TCPAddr) }

func (c *streamConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *streamConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

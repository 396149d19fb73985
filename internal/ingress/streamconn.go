package ingress

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"wmproxy/tunnel/carrier"
)

// drainTime and drainBytes bound the wait for the end of the target's half of a stream that is closed.
const (
	drainTime  = time.Second
	drainBytes = 64 << 10
)

// A streamConn is a stream as a net.Conn. Its deadlines bound reads and writes together.
type streamConn struct {
	carrier.Stream
	local netip.AddrPort // at the far end
	use   use

	mu     sync.Mutex
	closed bool
}

var _ net.Conn = (*streamConn)(nil)

// start makes st the stream, and reports whether c is still wanted.
func (c *streamConn) start(st carrier.Stream, bound netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Stream, c.local = st, bound
	if c.closed {
		c.end(carrier.CodeLimit)
	}
	return !c.closed
}

// Close ends the stream. The peer gets what was written before.
func (c *streamConn) Close() error { return c.close(carrier.CodeNone) }

// giveUp resets a stream, which may not be open yet, for others' sake.
func (c *streamConn) giveUp() { _ = c.close(carrier.CodeLimit) }

func (c *streamConn) close(code carrier.ErrorCode) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	opened := c.Stream != nil
	c.mu.Unlock()
	switch {
	case !opened:
	case code == carrier.CodeNone && c.CloseWrite() == nil:
		go c.drain()
	default:
		c.end(code)
	}
	return nil
}

// drain waits a little for the end of the other half, so that the target sees no reset.
func (c *streamConn) drain() {
	_ = c.SetDeadline(time.Now().Add(drainTime))
	_, _ = io.CopyN(io.Discard, c.Stream, drainBytes)
	c.end(carrier.CodeNone)
}

func (c *streamConn) end(code carrier.ErrorCode) {
	c.Reset(code)
	c.use.leave()
}

// LocalAddr returns the far end's address of the connection to the target.
func (c *streamConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the zero address: the far end knows the target's.
func (c *streamConn) RemoteAddr() net.Addr { return new(net.TCPAddr) }

func (c *streamConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *streamConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

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

	// A stream has one reader and one writer at a time. They are taken before mu.
	reading, writing sync.Mutex

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

func (c *streamConn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *streamConn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	return c.Stream.Read(b)
}

func (c *streamConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.isClosed() {
		return 0, net.ErrClosed
	}
	return c.Stream.Write(b)
}

// Close ends the stream without waiting. The peer gets what was written before; if a Write is under way, the
// stream is reset.
func (c *streamConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if !c.writing.TryLock() {
		c.end(carrier.CodeConnectionReset)
		return nil
	}
	_ = c.Stream.SetDeadline(carrier.LongAgo) // a Read under way returns
	go c.finish()
	return nil
}

// finish ends our half and waits a little for the end of the other half, so that the target sees no reset. It has the
// writer's lock.
func (c *streamConn) finish() {
	defer c.writing.Unlock()
	c.reading.Lock()
	defer c.reading.Unlock()
	_ = c.Stream.SetDeadline(time.Now().Add(drainTime))
	if c.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c.Stream, drainBytes)
	}
	c.end(carrier.CodeNone)
}

// giveUp resets a stream, which may not be open yet or be closed already, for others' sake.
func (c *streamConn) giveUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.Stream != nil {
		c.end(carrier.CodeLimit)
	}
}

// end frees the stream. Further calls do nothing.
func (c *streamConn) end(code carrier.ErrorCode) {
	c.Reset(code)
	c.use.leave()
}

// SetDeadline bounds Read and Write. Once c is closed it returns net.ErrClosed.
func (c *streamConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return c.Stream.SetDeadline(t)
}

// LocalAddr returns the far end's address of the connection to the target.
func (c *streamConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr returns the zero address: the far end knows the target's.
func (c *streamConn) RemoteAddr() net.Addr { return new(net.TCPAddr) }

func (c *streamConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *streamConn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

//go:build !linux

package bench

import "net"

// discarder reads a stream and discards the data.
type discarder struct {
	c   *net.TCPConn
	buf []byte
}

func newDiscarder(c *net.TCPConn) *discarder {
	return &discarder{c, make([]byte, streamChunk)}
}

// discard blocks until there are bytes and returns their number, or io.EOF at the end.
func (d *discarder) discard() (int, error) { return d.c.Read(d.buf) }

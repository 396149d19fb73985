//go:build !linux

package bench

import "net"

// discarder reads a stream and forgets it.
type discarder struct {
	c   *net.TCPConn
	buf []byte
}

func newDiscarder(c *net.TCPConn) *discarder {
	return &discarder{c, make([]byte, streamChunk)}
}

// discard waits for bytes and returns how many there were; io.EOF at the end.
func (d *discarder) discard() (int, error) { return d.c.Read(d.buf) }

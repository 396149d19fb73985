//go:build unix

package tcp

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// canLimitSegments reports whether limitSegments does anything.
const canLimitSegments = true

// limitSegments sets the maximum segment size, in both directions, of a socket that is yet to
// connect: the SYN announces it to the peer.
func limitSegments(c syscall.RawConn, bytes int) (err error) {
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, bytes)
	}); e != nil {
		return e
	}
	return err
}

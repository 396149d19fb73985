package bench

import (
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// discardChunk bounds the bytes that are discarded at once.
const discardChunk = 1 << 20

// discarder reads a stream without copying it from the kernel (MSG_TRUNC, tcp(7)), so
// that the receiving end of the load costs nearly nothing.
type discarder struct {
	raw syscall.RawConn
	try func(fd uintptr) bool
	n   int
	err error
}

func newDiscarder(c *net.TCPConn) *discarder {
	d := &discarder{}
	d.raw, d.err = c.SyscallConn()
	d.try = func(fd uintptr) bool {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, 0, discardChunk, unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EAGAIN:
			return false
		case errno != 0:
			d.n, d.err = 0, os.NewSyscallError("recvfrom", errno)
		case n == 0:
			d.n, d.err = 0, io.EOF
		default:
			d.n = int(n)
		}
		return true
	}
	return d
}

// discard blocks until there are bytes and returns their number, or io.EOF at the end.
func (d *discarder) discard() (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	if err := d.raw.Read(d.try); err != nil {
		return 0, err
	}
	return d.n, d.err
}

package entrance

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listen listens on a TCP address for Serve. Its connections find clients that are
// gone without a word within a minute. They inherit that from the listener: asking
// for it on each would cost four system calls an association.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, c syscall.RawConn) error {
		// The system's own keep-alive is a worse one, but no reason to refuse.
		return c.Control(func(fd uintptr) { setInherited(int(fd)) })
	}}
	lc.SetMultipathTCP(false) // of no use here, and older kernels take no keep-alive times on it
	return lc.Listen(ctx, "tcp", address)
}

func setInherited(fd int) {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(keepAlive.Idle/time.Second))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(keepAlive.Interval/time.Second))
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepAlive.Count)
	// Replies are small, and a client that sends ahead gets several in a row.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

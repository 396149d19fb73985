//go:build unix

package udpio

import (
	"net"
	"syscall"
)

// waiter waits for a datagram without a buffer to put it in.
type waiter struct {
	raw  syscall.RawConn
	peek func(fd uintptr) bool
}

func newWaiter(conn *net.UDPConn) waiter {
	raw, err := conn.SyscallConn()
	if err != nil {
		return waiter{}
	}
	return waiter{raw, func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), nil, syscall.MSG_PEEK)
		return err != syscall.EAGAIN
	}}
}

// wait returns false when the socket is closed.
func (w waiter) wait() bool { return w.raw != nil && w.raw.Read(w.peek) == nil }

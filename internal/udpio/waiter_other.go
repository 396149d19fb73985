//go:build !unix

package udpio

import (
	"errors"
	"net"
	"syscall"
)

// waiter waits for a datagram without a buffer to put it in.
type waiter struct{ raw syscall.RawConn }

func newWaiter(conn *net.UDPConn) waiter {
	raw, err := conn.SyscallConn()
	if err != nil {
		return waiter{}
	}
	return waiter{raw}
}

// wait returns false when the socket is closed. Windows waits, after the first
// refusal, with a peek of zero bytes. That fails as reads do, on an ICMP
// message; the caller then reads, and learns more.
func (w waiter) wait() bool {
	if w.raw == nil {
		return false
	}
	looked := false
	err := w.raw.Read(func(uintptr) bool {
		ready := looked
		looked = true
		return ready
	})
	return !errors.Is(err, net.ErrClosed)
}

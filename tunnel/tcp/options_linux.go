package tcp

import (
	"net"
	"time"

	"golang.org/x/sys/unix"

	"wmproxy/tunnel/carrier"
)

// Bounds in bytes of what the kernel holds beyond what it has sent, because a bundle waits
// behind all of it. The first is for a connection that is slow, or has no stream that fills it. One that
// paces (BBR) sends 64 KiB at a time, and with less in stock waits for us between two of them.
const (
	notSentQuiet = 32 << 10
	notSentBusy  = 64 << 10
)

// tuneTCP sets what helps and does without what the system refuses. A connection
// whose bytes nobody acknowledges for longer than dead ends. It returns the congestion
// control that the connection has then.
func tuneTCP(conn net.Conn, dead time.Duration) (congestion string) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return ""
	}
	c.SetNoDelay(true)
	c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true})
	raw, err := c.SyscallConn()
	if err != nil {
		return ""
	}
	raw.Control(func(fd uintptr) {
		setNotSent(fd, notSentQuiet)
		congestion = setCongestion(int(fd))
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(carrier.IdleTimeout(dead).Milliseconds()))
	})
	return congestion
}

// notSentSetter returns what chooses between the two bounds for conn.
func notSentSetter(conn net.Conn) func(busy bool) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return func(bool) {}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return func(bool) {}
	}
	return func(busy bool) {
		bytes := notSentQuiet
		if busy {
			bytes = notSentBusy
		}
		raw.Control(func(fd uintptr) { setNotSent(fd, bytes) })
	}
}

func setNotSent(fd uintptr, bytes int) {
	unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
}

package tunnel

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// tcpNotSentLowat bounds in bytes what the kernel holds beyond what it has
// sent: a bundle waits behind all of it.
const tcpNotSentLowat = 32 << 10

// tuneTCP sets what helps and does without what the system refuses. A connection
// whose bytes nobody acknowledges for longer than dead ends.
func tuneTCP(conn net.Conn, dead time.Duration) {
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	c.SetNoDelay(true)
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, tcpNotSentLowat)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience(dead).Milliseconds()))
	})
}

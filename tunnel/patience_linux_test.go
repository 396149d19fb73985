package tunnel

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is how long the connection bears that nobody acknowledges its bytes.
func userTimeout(t *testing.T, c *net.TCPConn) time.Duration {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ms int
	if cerr := raw.Control(func(fd uintptr) {
		ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return time.Duration(ms) * time.Millisecond
}

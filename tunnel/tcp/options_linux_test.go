package tcp

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wmproxy/tunnel/carrier/carriertest"
)

// userTimeout is how long the connection bears that nobody acknowledges its bytes.
func userTimeout(t *testing.T, c *net.TCPConn) time.Duration {
	t.Helper()
	return time.Duration(tcpOption(t, c, unix.GetsockoptInt, unix.TCP_USER_TIMEOUT)) * time.Millisecond
}

// tcpOption returns an option of the connection's socket. get is one of unix.Getsockopt….
func tcpOption[V any](t *testing.T, c *net.TCPConn, get func(fd, level, option int) (V, error), option int) (value V) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		value, err = get(int(fd), unix.IPPROTO_TCP, option)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return value
}

// The advice and the sockets ask the same kernel.
func TestBothEndsHaveBBRIfTheKernelDoes(t *testing.T) {
	client, server := pendings(t)
	near, far := carriertest.Shake(t, client, server)
	for _, c := range []*connection{near.(*connection), far.(*connection)} {
		got := tcpOption(t, c.conn.raw.(*net.TCPConn), unix.GetsockoptString, unix.TCP_CONGESTION)
		if advice := CongestionAdvice(); (got == bbr) != (advice == "") {
			t.Errorf("congestion control %q with the advice %q", got, advice)
		}
		if told := c.Traits().Congestion; told != got {
			t.Errorf("the traits say %q, the kernel %q", told, got)
		}
	}
}

func TestKernelKeepsMoreForBusyStream(t *testing.T) {
	client, server := pendings(t)
	near, _ := carriertest.Shake(t, client, server)
	c := near.(*connection)
	held := func() int { return tcpOption(t, c.conn.raw.(*net.TCPConn), unix.GetsockoptInt, unix.TCP_NOTSENT_LOWAT) }
	write := func(wanted int) {
		c.conn.mu.Lock()
		c.conn.wanted = wanted
		c.conn.mu.Unlock()
		if _, err := c.Control().Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if got := held(); got != notSentQuiet {
		t.Errorf("%d bytes at first, want %d", got, notSentQuiet)
	}
	carriertest.Await(t, "bytes held for a stream", func() (int, bool) { write(maxFrame); n := held(); return n, n == notSentBusy })
	carriertest.Await(t, "bytes held after it", func() (int, bool) { write(0); n := held(); return n, n == notSentQuiet })
}

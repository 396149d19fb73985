//go:build unix

package e2e

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"wmproxy/socks"
)

// A listener with a full backlog drops SYNs.
func TestDialTimeoutIsReported(t *testing.T) {
	t.Parallel()
	addr := deafListener(t)
	c := startProxy(t)
	began := time.Now()
	if got := replyTo(t, c.Socks(), addr); got != socks.ReplyTTLExpired {
		t.Errorf("reply %d after %v, want %d", got, time.Since(began), socks.ReplyTTLExpired)
	}
}

// deafListener returns an address that does not answer SYNs.
func deafListener(t *testing.T) socks.Addr {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 8 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return address(addr)
		}
		t.Cleanup(func() { conn.Close() })
	}
	unable(t, "this system accepts connections beyond a listener's backlog")
	return socks.Addr{}
}

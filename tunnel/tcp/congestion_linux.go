package tcp

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const allowedCongestion = "/proc/sys/net/ipv4/tcp_allowed_congestion_control" // for users who are not root

// setCongestion gives the socket bbr if the kernel has it and allows it, and returns what the
// socket has then. For root the kernel loads the module.
func setCongestion(fd int) string {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, bbr)
	name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return ""
	}
	return name
}

// CongestionAdvice returns what an operator can do if the kernel does not let the connections
// have bbr, or "".
func CongestionAdvice() string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	name := setCongestion(fd)
	if name == "" || name == bbr {
		return ""
	}
	allowed, err := os.ReadFile(allowedCongestion)
	if err != nil {
		allowed = []byte(name)
	}
	return fmt.Sprintf("yamux uses the congestion control %s; over long or lossy paths bbr is many times faster: "+
		"modprobe tcp_bbr; sysctl -w net.ipv4.tcp_allowed_congestion_control='%s bbr'", name, bytes.TrimSpace(allowed))
}

package udpio

import (
	"os"

	"golang.org/x/sys/unix"
)

// setBuffer sets option to size bytes, past the host's limit if we may.
func setBuffer(fd, option, force, size int) error {
	if size <= 0 {
		return nil
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) == nil {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size))
}

// Buffers returns the SO_RCVBUF and SO_SNDBUF in bytes that a UDP socket gets when it asks for
// want bytes: less than want if net.core.rmem_max or wmem_max are smaller and the process
// may not exceed them. ok is false if that cannot be learned.
func Buffers(want int) (read, write int, ok bool) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0, 0, false
	}
	defer unix.Close(fd)
	if setBuffer(fd, unix.SO_RCVBUF, unix.SO_RCVBUFFORCE, want) != nil ||
		setBuffer(fd, unix.SO_SNDBUF, unix.SO_SNDBUFFORCE, want) != nil {
		return 0, 0, false
	}
	read, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0, 0, false
	}
	write, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	// Linux reports twice the size, and keeps half for its bookkeeping.
	return read / 2, write / 2, err == nil
}

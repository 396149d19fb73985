package udpio

import (
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/tune"
)

// Opening and closing a socket does not wait either. With thousands of associations a second
// the monitor thread that it woke took a sixth of all CPU (see tune.Syscall).

func openSocket(family uint16, kind, protocol int) (fd int, err error) {
	r, errno := tune.Syscall(unix.SYS_SOCKET, uintptr(family),
		uintptr(kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), uintptr(protocol), 0, 0, 0)
	return int(r), failure("socket", errno)
}

func bindSocket(fd int, name *sockaddr, size uint32) error {
	_, errno := tune.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(name)), uintptr(size), 0, 0, 0)
	return failure("bind", errno)
}

func setOption(fd, level, option, value int) error {
	v := int32(value)
	_, errno := tune.Syscall(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	return failure("setsockopt", errno)
}

// acceptConn accepts a TCP connection and sets from to its source.
func acceptConn(listener int, from *sockaddr) (fd int, errno unix.Errno) {
	for {
		size := uint32(unsafe.Sizeof(*from))
		r, errno := tune.Syscall(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(from)),
			uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno != unix.EINTR && errno != unix.ECONNABORTED {
			return int(r), errno
		}
	}
}

// localOf returns the address that fd is bound to, the zero AddrPort if that cannot be learned.
func localOf(fd int) netip.AddrPort {
	var name sockaddr
	size := uint32(unsafe.Sizeof(name))
	if _, errno := tune.Syscall(unix.SYS_GETSOCKNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&name)), uintptr(unsafe.Pointer(&size)), 0, 0, 0); errno != 0 {
		return netip.AddrPort{}
	}
	return name.get()
}

func closeSocket(fd int) error {
	_, errno := tune.Syscall(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0, 0, 0)
	return failure("close", errno)
}

func epollControl(epfd, op, fd int, ev *unix.EpollEvent) error {
	_, errno := tune.Syscall(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(ev)), 0, 0)
	return failure("epoll_ctl", errno)
}

// failure returns errno as an error, nil for 0.
func failure(call string, errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return os.NewSyscallError(call, errno)
}

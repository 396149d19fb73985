package egress

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// addrEvents reports changes of the host's addresses: rtnetlink announces each one, a new address before
// anything can be sent to it.
type addrEvents struct {
	file *os.File
	raw  syscall.RawConn
}

// eventRead is the number of bytes read of an event. Its content does not matter.
const eventRead = 64

func openAddrEvents() (*addrEvents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	groups := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}
	if err := unix.Bind(fd, groups); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &addrEvents{file, raw}, nil
}

// wait blocks until there is an event to take. It returns an error after close.
func (e *addrEvents) wait() error {
	return e.raw.Read(func(fd uintptr) bool { return e.receive(fd, unix.MSG_PEEK) != unix.EAGAIN })
}

// take removes all events and reports whether there were any.
func (e *addrEvents) take() (any bool) {
	_ = e.raw.Control(func(fd uintptr) {
		for err := e.receive(fd, 0); err != unix.EAGAIN; err = e.receive(fd, 0) {
			any = true
			if err != nil && err != unix.ENOBUFS && err != unix.EINTR { // ENOBUFS: some were lost
				return
			}
		}
	})
	return any
}

func (e *addrEvents) receive(fd uintptr, flags int) error {
	var b [eventRead]byte
	_, _, err := unix.Recvfrom(int(fd), b[:], flags|unix.MSG_DONTWAIT)
	return err
}

func (e *addrEvents) close() { _ = e.file.Close() }

package udpio

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/tune"
)

// NewAcceptor takes ln over.
func NewAcceptor(ln net.Listener) Acceptor {
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return portableAcceptor{ln}
	}
	file, err := tcp.File() // net lets nobody wait for a listener with a call of his own
	if err != nil {
		return portableAcceptor{ln}
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return portableAcceptor{ln}
	}
	a := &acceptor{Listener: ln, file: file, raw: raw, local: AddrPortOf(tcp.Addr())}
	a.accept = func(fd uintptr) bool {
		a.fd, a.errno = acceptConn(int(fd), &a.from)
		return a.errno != unix.EAGAIN
	}
	return a
}

// acceptor accepts without the runtime's poller learning of the connections, and
// without the scheduler being told of the call (see tune.Syscall).
type acceptor struct {
	net.Listener
	file  *os.File // a copy of the listener's descriptor
	raw   syscall.RawConn
	local netip.AddrPort // of the listener

	accept func(fd uintptr) bool
	from   sockaddr
	fd     int
	errno  unix.Errno
}

func (a *acceptor) Accept() (Conn, error) {
	if err := a.raw.Read(a.accept); err != nil {
		return nil, fmt.Errorf("%w: %w", net.ErrClosed, err)
	}
	if a.errno != 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", a.errno)}
	}
	c := &loopConn{fd: a.fd, remote: a.from.get(), local: a.local}
	if a.local.Addr().IsUnspecified() {
		c.local = localOf(a.fd)
	}
	return c, nil
}

func (a *acceptor) Close() error {
	_ = a.file.Close()
	return a.Listener.Close()
}

// loopConn is a Conn that an event loop reads.
type loopConn struct {
	remote, local netip.AddrPort
	receive       func(b []byte, err error)
	loop          *loop // nil before Start

	// These belong to the loop. ended: epoll has said that the far end, or HangUp,
	// has ended its side, so that reading goes on until that is found.
	queued, ended bool

	mu   sync.Mutex // held by system calls on fd that are not the owner's
	fd   int
	over bool // written by the owner, with mu held
}

func (c *loopConn) Start(receive func(b []byte, err error)) error {
	l, err := join()
	if err != nil {
		return err
	}
	c.receive, c.loop = receive, l
	// From here on the loop may be in receive, which may close.
	fd := c.fd
	if err := l.watch(fd, c, unix.EPOLLIN|unix.EPOLLRDHUP); err != nil {
		l.forget(fd)
		l.leave()
		c.loop = nil
		return err
	}
	return nil
}

func (c *loopConn) due(events uint32) bool {
	c.ended = c.ended || events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	if c.queued {
		return false
	}
	c.queued = true
	return true
}

func (c *loopConn) visit(l *loop) (more bool) {
	c.queued = false
	if c.over {
		return false
	}
	n, errno := tune.Syscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&l.words)), connRead, 0, 0, 0)
	switch {
	case errno == unix.EAGAIN:
		return false
	case errno == unix.EINTR:
		return true
	case errno != 0:
		c.receive(nil, os.NewSyscallError("read", errno))
		return false
	case n == 0:
		c.receive(nil, io.EOF)
		return false
	}
	c.receive(l.words[:n], nil)
	// A short read has emptied the buffer; epoll reports later arrivals.
	return !c.over && (n == connRead || c.ended)
}

func (c *loopConn) Write(b []byte) (int, error) {
	if c.over {
		return 0, net.ErrClosed
	}
	if len(b) == 0 {
		return 0, nil
	}
	n, errno := tune.Syscall(unix.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	switch {
	case errno == unix.EAGAIN:
		return 0, io.ErrShortWrite
	case errno != 0:
		return 0, os.NewSyscallError("sendto", errno)
	case int(n) < len(b):
		return int(n), io.ErrShortWrite
	}
	return len(b), nil
}

func (c *loopConn) CloseWrite() error {
	if c.over {
		return net.ErrClosed
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(c.fd, unix.SHUT_WR))
}

func (c *loopConn) HangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
}

func (c *loopConn) Detach() (net.Conn, error) {
	if c.over {
		return nil, net.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	c.leave(true)
	file := os.NewFile(uintptr(fd), "tcp")
	defer file.Close() // FileConn works on a copy: there is room for it now
	return net.FileConn(file)
}

func (c *loopConn) Close() error {
	if !c.leave(false) {
		return net.ErrClosed
	}
	return nil
}

// leave takes c from its loop and closes it, and reports whether it was the first to do so.
// Where there is a copy of the descriptor epoll would go on reporting it.
func (c *loopConn) leave(copied bool) bool {
	c.mu.Lock()
	if c.over {
		c.mu.Unlock()
		return false
	}
	c.over = true
	if c.loop != nil {
		c.loop.forget(c.fd)
		if copied {
			_ = c.loop.control(unix.EPOLL_CTL_DEL, c.fd, 0)
		}
	}
	_ = closeSocket(c.fd)
	c.mu.Unlock()
	if c.loop != nil {
		c.loop.leave()
	}
	return true
}

func (c *loopConn) RemoteAddr() netip.AddrPort { return c.remote }
func (c *loopConn) LocalAddr() netip.AddrPort  { return c.local }

package udpio

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/tune"
)

// RawConn returns conn with reads and writes by tune.Syscall, if it is a TCP connection; with
// tune.RawCalls off it returns conn. Writes should not be much longer than 128 KiB, so that none takes long.
func RawConn(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || !tune.RawCalls.On() {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	c := &rawConn{TCPConn: tcp, raw: raw}
	c.in.call = func(fd uintptr) bool {
		b := c.in.b
		return c.in.done(tune.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0))
	}
	c.out.call = func(fd uintptr) bool {
		b := c.out.b
		return c.out.done(tune.Syscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0))
	}
	return c
}

type rawConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer
}

// transfer is the read or the write that is under way.
type transfer struct {
	mu     sync.Mutex
	call   func(fd uintptr) bool
	b      []byte
	n      int
	errno  unix.Errno
	waited bool
}

// done notes the result of a system call and reports whether the transfer has ended.
func (t *transfer) done(n uintptr, errno unix.Errno) bool {
	t.n, t.errno = int(n), errno
	if errno == unix.EAGAIN {
		t.waited = true
		return false
	}
	return true
}

func (c *rawConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t := &c.in
	t.mu.Lock()
	defer t.mu.Unlock()
	tune.YieldToPoller()
	t.b, t.waited = p, false
	err := c.raw.Read(t.call)
	t.b = nil
	if t.waited {
		tune.NotePolled()
	}
	switch {
	case err != nil:
		return 0, err
	case t.errno != 0:
		return 0, os.NewSyscallError("read", t.errno)
	case t.n == 0:
		return 0, io.EOF
	}
	return t.n, nil
}

func (c *rawConn) Write(p []byte) (n int, err error) {
	t := &c.out
	t.mu.Lock()
	defer t.mu.Unlock()
	for n < len(p) {
		t.b = p[n:]
		err = c.raw.Write(t.call)
		t.b = nil
		if err == nil && t.errno != 0 {
			err = os.NewSyscallError("write", t.errno)
		}
		if err != nil {
			return n, err
		}
		n += t.n
	}
	return n, nil
}

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

// Quiet returns conn with reads and writes of which the Go scheduler is not told.
// They never sleep, and being told wakes the runtime's monitor thread whenever the
// process was idle, which at some thousand datagrams a second costs as much as
// the datagrams themselves. Writes should be of 128 KiB or little more, so that none takes long.
func Quiet(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	q := &quietConn{TCPConn: tcp, raw: raw}
	q.in.call = func(fd uintptr) bool {
		b := q.in.b
		return q.in.done(tune.Syscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0))
	}
	q.out.call = func(fd uintptr) bool {
		b := q.out.b
		return q.out.done(tune.Syscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0))
	}
	return q
}

type quietConn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer
}

// transfer is one read or write under way.
type transfer struct {
	mu     sync.Mutex
	call   func(fd uintptr) bool
	b      []byte
	n      int
	errno  unix.Errno
	waited bool
}

// done notes what a system call returned; false means wait and try again.
func (t *transfer) done(n uintptr, errno unix.Errno) bool {
	t.n, t.errno = int(n), errno
	if errno == unix.EAGAIN {
		t.waited = true
		return false
	}
	return true
}

func (c *quietConn) Read(p []byte) (int, error) {
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

func (c *quietConn) Write(p []byte) (n int, err error) {
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

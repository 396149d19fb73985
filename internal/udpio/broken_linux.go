package udpio

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// OnBroken calls broken once when the kernel has given conn up: the peer has reset it, or answers
// neither data nor keep-alive. Reads and writes return that error as well, but only if somebody calls them,
// and never after a read has returned io.EOF. broken must not wait. It may be called until stop returns, and
// once conn is closed also without a cause.
func OnBroken(conn *net.TCPConn, broken func()) (stop func()) {
	none := func() {}
	raw, err := conn.SyscallConn()
	if err != nil {
		return none
	}
	w := &breakWatch{broken: broken}
	if err := raw.Control(func(fd uintptr) { w.fd = int(fd) }); err != nil {
		return none
	}
	if w.loop, err = join(); err != nil {
		return none
	}
	// epoll always reports errors, and the end of both halves; nothing else is asked for.
	if err := w.loop.watch(w.fd, w, 0); err != nil {
		w.stop()
		return none
	}
	return w.stop
}

// TakeError returns the error with which the kernel has given conn up, or nil if there is none or a
// read or write has returned it. Later reads return io.EOF.
func TakeError(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil
	}
	var errno int
	_ = raw.Control(func(fd uintptr) { errno, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) })
	return failure("connection", unix.Errno(errno))
}

// breakWatch is a connection of which a loop awaits the error.
type breakWatch struct {
	loop   *loop
	fd     int
	queued bool // the loop's

	mu     sync.Mutex
	broken func() // nil once it was called, or stop was
}

func (w *breakWatch) due(uint32) bool {
	if w.queued {
		return false
	}
	w.queued = true
	return true
}

// visit looks for the error itself: both halves may have ended in order, or the event may belong to an
// earlier connection with the same descriptor.
func (w *breakWatch) visit(*loop) (more bool) {
	w.queued = false
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil || !hasError(w.fd) {
		return false
	}
	w.broken()
	w.broken = nil
	return false
}

func (w *breakWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = nil
	w.loop.forgetOnly(w.fd, w)
	w.loop.leave()
}

// hasError reports whether the kernel has an error for fd, and leaves it there.
func hasError(fd int) bool {
	fds := [1]unix.PollFd{{Fd: int32(fd)}}
	for {
		n, err := unix.Poll(fds[:], 0)
		if err != unix.EINTR {
			return n > 0 && fds[0].Revents&unix.POLLERR != 0
		}
	}
}

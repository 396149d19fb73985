//go:build unix

package udpio

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// sender writes the datagrams of a portable socket with sendto, since
// net.UDPConn would wait for room in the socket's buffer.
type sender struct {
	raw syscall.RawConn
	ip6 bool

	mu   sync.Mutex
	try  func(fd uintptr) bool // made once: a closure for each call would be an allocation
	buf  []byte                // Head and Body of the datagram when it has both
	body []byte
	to4  syscall.SockaddrInet4
	to6  syscall.SockaddrInet6
	to   syscall.Sockaddr
	err  error
}

func (w *sender) open(conn *net.UDPConn, bound netip.Addr) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return err
	}
	w.raw, w.ip6 = raw, bound.Is6()
	w.try = func(fd uintptr) bool {
		for {
			if w.err = sendto(fd, w.body, w.to); w.err != syscall.EINTR {
				return true // also when the buffer is full: we never wait
			}
		}
	}
	// The net package lets every socket broadcast; a relay must not.
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_BROADCAST, 0)
	})
	if err = errors.Join(err, failed); err != nil {
		_ = conn.Close()
	}
	return err
}

func (w *sender) write(ms []Message) (sent int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range ms {
		e := w.send(&ms[i])
		switch {
		case e == nil:
			sent++
		case e == syscall.EAGAIN || e == syscall.ENOBUFS:
			return sent, err
		case err == nil:
			err = e
		}
	}
	w.body, w.to = nil, nil
	return sent, err
}

func (w *sender) send(m *Message) error {
	switch {
	case m.tooLarge():
		return syscall.EMSGSIZE
	case m.Addr.Port() == 0:
		return syscall.EINVAL
	case !w.address(m.Addr):
		return syscall.EAFNOSUPPORT
	}
	w.body = m.Body
	if len(m.Head) > 0 {
		w.buf = append(append(w.buf[:0], m.Head...), m.Body...)
		w.body = w.buf
	}
	if w.raw.Write(w.try) != nil {
		return net.ErrClosed
	}
	return w.err
}

// address sets to, and reports whether this socket can reach such an address.
func (w *sender) address(addr netip.AddrPort) bool {
	ip := addr.Addr()
	switch {
	case !ip.IsValid():
		return false
	case w.ip6:
		w.to6.Port, w.to6.Addr, w.to6.ZoneId = int(addr.Port()), ip.As16(), scope(ip)
		w.to = &w.to6
		return true
	case ip.Is4() || ip.Is4In6():
		w.to4.Port, w.to4.Addr = int(addr.Port()), ip.Unmap().As4()
		w.to = &w.to4
		return true
	}
	return false
}

func sendto(fd uintptr, b []byte, to syscall.Sockaddr) error {
	return syscall.Sendto(int(fd), b, 0, to)
}

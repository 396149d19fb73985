//go:build !unix

package udpio

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// sendPatience bounds how long one Write may wait for room in the socket's
// buffer if the system has no other way.
const sendPatience = time.Millisecond

// sender writes the datagrams of a portable socket.
type sender struct {
	conn *net.UDPConn
	mu   sync.Mutex
	buf  []byte // Head and Body of the datagram when it has both
}

func (w *sender) open(conn *net.UDPConn, _ netip.Addr) error {
	w.conn = conn
	return nil
}

func (w *sender) write(ms []Message) (sent int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range ms {
		e := w.send(&ms[i])
		switch {
		case e == nil:
			sent++
		case errors.Is(e, os.ErrDeadlineExceeded):
			return sent, err
		case errors.Is(e, net.ErrClosed):
			return sent, net.ErrClosed
		case err == nil:
			err = e
		}
	}
	return sent, err
}

func (w *sender) send(m *Message) error {
	if m.tooLarge() {
		return syscall.EMSGSIZE
	}
	body := m.Body
	if len(m.Head) > 0 {
		w.buf = append(append(w.buf[:0], m.Head...), m.Body...)
		body = w.buf
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return err
	}
	_, err := w.conn.WriteToUDPAddrPort(body, m.Addr)
	return err
}

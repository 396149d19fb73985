package udpio

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// portableIdle is how long a socket without traffic keeps its buffer:
	// between one and two of these.
	portableIdle = time.Second
	// After readErrors failures in a row the reader pauses between attempts.
	readErrors = 100
	readPause  = 10 * time.Millisecond
)

// buffers is for one datagram each, with a byte to spare for systems that fail
// a read into less room than they might need.
var buffers = sync.Pool{New: func() any { return new([65536]byte) }}

// portable is a Socket on a net.UDPConn and a goroutine of its own. It runs on
// every system, and in the tests of this one.
type portable struct {
	conn    *net.UDPConn
	local   netip.AddrPort
	receive func([]Message)
	started sync.Mutex // orders Start against Close
	reader  sync.WaitGroup
	closed  atomic.Bool
	closing chan struct{} // ends a pause

	out sender
}

func (s *portable) open(local netip.AddrPort, cfg Config) error {
	conn, err := listenConn(local, cfg)
	if err != nil {
		return err
	}
	got := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	s.conn, s.closing = conn, make(chan struct{})
	s.local = Unmap(got)
	return s.out.open(conn, got.Addr())
}

// Start begins reading. receive is called with the datagrams read, by one goroutine
// at a time; the messages are valid until it returns, and it must not wait.
// Start is called once.
func (s *portable) Start(receive func(ms []Message)) {
	s.started.Lock()
	defer s.started.Unlock()
	if s.closed.Load() {
		return
	}
	s.receive = receive
	s.reader.Go(s.read)
}

// read is the socket's goroutine. It ends when the socket is closed.
func (s *portable) read() {
	readable := newWaiter(s.conn)
	for readable.wait() {
		if !s.busy() {
			return
		}
	}
}

// busy reads with a buffer until nothing has come for a while, or the socket is
// closed (false).
func (s *portable) busy() bool {
	buf := buffers.Get().(*[65536]byte)
	defer buffers.Put(buf)
	ms := make([]Message, 1)
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(portableIdle))
		used, open := s.readUntilDeadline(buf[:], ms)
		if !open {
			return false
		}
		if !used {
			// Past deadlines would end the wait for the next datagram.
			_ = s.conn.SetReadDeadline(time.Time{})
			return true
		}
	}
}

func (s *portable) readUntilDeadline(buf []byte, ms []Message) (used, open bool) {
	for failed := 0; ; {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		switch {
		case s.closed.Load():
			return used, false
		case err == nil:
			failed, used = 0, true
			ms[0] = Message{Body: buf[:n:n], Addr: Unmap(from)}
			s.receive(ms)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return used, true
		default:
			if failed++; !s.survive(err, failed) {
				return used, false
			}
		}
	}
}

// survive reports whether reading goes on. Only a closed socket ends it: Windows
// reports an ICMP message (WSAECONNRESET) or a datagram that is too large
// (WSAEMSGSIZE) as a failed read.
func (s *portable) survive(err error, failed int) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	if failed < readErrors {
		return true
	}
	pause := time.NewTimer(readPause)
	defer pause.Stop()
	select {
	case <-s.closing:
		return false
	case <-pause.C:
		return true
	}
}

// Write sends ms in order and returns how many the system took. It never waits:
// datagrams that do not fit into the socket's buffer are dropped, with no error. (On
// Windows it may wait up to a millisecond for each datagram.) A datagram that cannot
// be sent (too large, no route) does not stop those after it; err
// is the first such error. After Close it is net.ErrClosed. Any goroutine may
// call it.
func (s *portable) Write(ms []Message) (sent int, err error) {
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	return s.out.write(ms)
}

// LocalAddr is the address the socket is bound to, IPv4 unmapped.
func (s *portable) LocalAddr() netip.AddrPort { return s.local }

// Close closes the socket. It does not wait: receive may be running, and is called at most once
// more, until Wait returns. A second Close returns net.ErrClosed. Any goroutine may call it.
func (s *portable) Close() error {
	s.started.Lock()
	defer s.started.Unlock()
	if s.closed.Swap(true) {
		return net.ErrClosed
	}
	close(s.closing)
	return s.conn.Close()
}

// Wait blocks until receive has returned, which is then not called again. It comes after Close. It must be
// called neither from receive nor with a lock held that receive takes.
func (s *portable) Wait() { s.reader.Wait() }

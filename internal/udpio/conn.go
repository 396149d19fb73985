package udpio

import (
	"net"
	"net/netip"
	"sync"
)

// connRead is how many bytes of a Conn are read at once.
const connRead = 512

// Conn is a TCP connection with little traffic that calls back with the bytes it reads, such as the
// control connection of a UDP association. On Linux an event loop reads it:
// while nothing arrives it costs no goroutine.
type Conn interface {
	// Start begins reading. receive is called with the bytes read, valid until it
	// returns, and once, last, with the error that ended reading: io.EOF or the
	// system's. One goroutine at a time calls it, and it must not wait. When Start
	// fails receive will not be called.
	Start(receive func(b []byte, err error)) error

	// Write sends b. On Linux it never waits: a client that has not read the bytes
	// sent before gets no more (io.ErrShortWrite). Elsewhere HangUp ends the wait.
	Write(b []byte) (int, error)

	// CloseWrite ends our side, and goes on reading.
	CloseWrite() error

	// HangUp cuts the connection, so that receive finds the end. Any goroutine may
	// call it, at any time.
	HangUp()

	// Detach hands the connection over: the Conn is then as if it were closed, and
	// receive will not be called again. Where no descriptor is left for that, the Conn
	// stays as it was.
	Detach() (net.Conn, error)

	// Close closes the connection; receive will not be called again. Like Write,
	// CloseWrite and Detach it is for the owner of the connection: before Start the
	// caller of Start, then receive.
	Close() error

	// RemoteAddr and LocalAddr return its two ends; the zero AddrPort if that is not
	// an IP address. IPv4 is unmapped.
	RemoteAddr() netip.AddrPort
	LocalAddr() netip.AddrPort
}

// An Acceptor accepts connections of a listener as Conns. The listener is then its own:
// closing that alone does not end it.
type Acceptor interface {
	// Accept waits for the next connection. One goroutine at a time calls it. Its
	// errors are like those of net.Listener.
	Accept() (Conn, error)

	// Close closes the listener; Accept then returns net.ErrClosed (errors.Is).
	Close() error
}

// portableAcceptor works with any listener.
type portableAcceptor struct{ net.Listener }

func (a portableAcceptor) Accept() (Conn, error) {
	conn, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &portableConn{Conn: conn}, nil
}

// portableConn is a Conn on a net.Conn and a goroutine of its own.
type portableConn struct {
	net.Conn
	receive func(b []byte, err error)

	mu   sync.Mutex
	over bool // Close or Detach was called
}

func (c *portableConn) Start(receive func(b []byte, err error)) error {
	c.receive = receive
	go c.read()
	return nil
}

func (c *portableConn) read() {
	buf := portableReads.Get().(*[connRead]byte)
	defer portableReads.Put(buf)
	for !c.isOver() {
		n, err := c.Read(buf[:])
		if n > 0 {
			c.receive(buf[:n], nil)
		}
		if err != nil && !c.isOver() {
			c.receive(nil, err)
			return
		}
	}
}

func (c *portableConn) isOver() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

// end reports whether it was the first to end c.
func (c *portableConn) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.over
	c.over = true
	return first
}

var portableReads = sync.Pool{New: func() any { return new([connRead]byte) }}

func (c *portableConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return net.ErrClosed
}

func (c *portableConn) HangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		_ = c.Conn.Close()
	}
}

func (c *portableConn) Detach() (net.Conn, error) {
	if !c.end() {
		return nil, net.ErrClosed
	}
	return c.Conn, nil
}

func (c *portableConn) Close() error {
	if !c.end() {
		return net.ErrClosed
	}
	_ = c.Conn.Close() // HangUp may have done so
	return nil
}

func (c *portableConn) RemoteAddr() netip.AddrPort { return AddrPortOf(c.Conn.RemoteAddr()) }
func (c *portableConn) LocalAddr() netip.AddrPort  { return AddrPortOf(c.Conn.LocalAddr()) }

// AddrPortOf returns a TCP or UDP address, IPv4 unmapped, or the zero AddrPort for any other.
func AddrPortOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return Unmap(ap)
}

// Unmap returns ap with an IPv4-mapped IPv6 address as IPv4.
func Unmap(ap netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) }

package udpio

import (
	"net"
	"net/netip"
	"sync"
)

// Config is how a Socket is opened. The zero value is the default.
type Config struct {
	NoOffload   bool // no UDP_SEGMENT, no UDP_GRO
	ReadBuffer  int  // SO_RCVBUF in bytes; 0 leaves the system's
	WriteBuffer int  // SO_SNDBUF in bytes; 0 leaves the system's
}

// Socket is an unconnected UDP socket.
type Socket struct {
	conn  *net.UDPConn
	local netip.AddrPort
	wmu   sync.Mutex
	wbuf  []byte
	wg    sync.WaitGroup
}

// Listen opens a socket on local. On an unspecified IPv6 address it carries
// IPv4 as well; on a host without IPv6 that becomes IPv4 alone.
func Listen(local netip.AddrPort, cfg Config) (*Socket, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	la := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return &Socket{conn: c, local: netip.AddrPortFrom(la.Addr().Unmap(), la.Port())}, nil
}

// Start begins reading. receive is called with what was read, by one goroutine
// at a time; the messages are valid until it returns, and it must not wait.
// Start is called once.
func (s *Socket) Start(receive func(ms []Message)) {
	s.wg.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := s.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			receive([]Message{{Body: buf[:n], Addr: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}})
		}
	})
}

// Write sends ms in order and returns how many the system took. It never waits:
// what does not fit into the socket's buffer is dropped. A datagram that cannot
// be sent (too large, no route) does not stop those after it; err is the first
// such error. Any goroutine may call it.
func (s *Socket) Write(ms []Message) (sent int, err error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	for i := range ms {
		s.wbuf = append(append(s.wbuf[:0], ms[i].Head...), ms[i].Body...)
		if _, e := s.conn.WriteToUDPAddrPort(s.wbuf, ms[i].Addr); e != nil {
			if err == nil {
				err = e
			}
			continue
		}
		sent++
	}
	return sent, err
}

// LocalAddr is the address the socket is bound to, IPv4 unmapped.
func (s *Socket) LocalAddr() netip.AddrPort { return s.local }

// Close closes the socket. Once it returns, receive is not running and will not
// be called again, unless Close was called from receive itself.
func (s *Socket) Close() error {
	return s.conn.Close()
}

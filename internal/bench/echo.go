package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"wmproxy/internal/udpio"
)

const (
	// echoBuffer is the size of the UDP socket's buffers in bytes.
	echoBuffer = 16 << 20
	// maxEchoConns bounds the TCP connections of an Echo. More wait to be accepted.
	maxEchoConns = 2 * MaxStreams
	// echoIdle is the time without data after which a TCP connection is closed.
	echoIdle = 2 * time.Minute
	// acceptPause is the pause after a failed accept, such as for lack of descriptors.
	acceptPause = 50 * time.Millisecond
)

// Echo is the far end of the loads. It sends each datagram back to its source, and echoes
// TCP connections unless their first bytes ask for a load (see preface).
type Echo struct {
	udp *udpio.Socket
	tcp *net.TCPListener

	wg     sync.WaitGroup
	slots  chan struct{} // each connection takes one
	closed chan struct{}

	mu    sync.Mutex
	conns map[*net.TCPConn]bool // nil once closed
}

// ListenEcho starts an echo on addr, UDP and TCP. The system chooses the port if it is 0.
// With offload, several datagrams are passed to and from the kernel as one.
func ListenEcho(addr netip.AddrPort, offload bool) (*Echo, error) {
	cfg := udpio.Config{NoOffload: !offload, ReadBuffer: echoBuffer, WriteBuffer: echoBuffer}
	udp, tcp, err := listenBoth(addr, cfg)
	if err != nil {
		return nil, err
	}
	e := &Echo{
		udp: udp, tcp: tcp,
		slots: make(chan struct{}, maxEchoConns), closed: make(chan struct{}),
		conns: make(map[*net.TCPConn]bool),
	}
	// A message that was read can be written back as it is: Addr is its source. Those
	// that the system does not take are lost.
	udp.Start(func(ms []udpio.Message) { _, _ = udp.Write(ms) })
	e.wg.Go(e.accept)
	return e, nil
}

// portTries bounds the attempts if the system chooses a port for UDP that is in use for
// TCP.
const portTries = 10

func listenBoth(addr netip.AddrPort, cfg udpio.Config) (*udpio.Socket, *net.TCPListener, error) {
	for try := 1; ; try++ {
		udp, err := udpio.Listen(addr, cfg)
		if err != nil {
			return nil, nil, err
		}
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr(), udp.LocalAddr().Port())))
		if err == nil {
			return udp, tcp, nil
		}
		_ = udp.Close()
		if addr.Port() != 0 || try == portTries {
			return nil, nil, fmt.Errorf("listen on TCP: %w", err)
		}
	}
}

// Addr returns the echo's address.
func (e *Echo) Addr() netip.AddrPort { return e.udp.LocalAddr() }

// Close closes the echo and its connections, and waits for their end. It must be called
// only once.
func (e *Echo) Close() error {
	close(e.closed)
	err := errors.Join(e.udp.Close(), e.tcp.Close())
	e.mu.Lock()
	for c := range e.conns {
		_ = c.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.udp.Wait()
	e.wg.Wait()
	return err
}

func (e *Echo) accept() {
	for {
		select {
		case e.slots <- struct{}{}:
		case <-e.closed:
			return
		}
		c, err := e.tcp.AcceptTCP()
		if err == nil {
			e.wg.Go(func() { e.serve(c) })
			continue
		}
		<-e.slots
		select {
		case <-e.closed:
			return
		case <-time.After(acceptPause):
		}
	}
}

func (e *Echo) serve(c *net.TCPConn) {
	if e.add(c) {
		serveStream(c)
		e.remove(c)
	}
	_ = c.Close()
	<-e.slots
}

func (e *Echo) add(c *net.TCPConn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		return false
	}
	e.conns[c] = true
	return true
}

func (e *Echo) remove(c *net.TCPConn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

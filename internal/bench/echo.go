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
	// maxEchoConns bounds the TCP connections of an Echo; more wait to be accepted.
	maxEchoConns = 2 * MaxStreams
	// echoIdle ends a TCP connection that moves nothing.
	echoIdle = 2 * time.Minute
	// acceptPause follows a failed accept, such as one without descriptors.
	acceptPause = 50 * time.Millisecond
)

// Echo is the far end of the loads. It sends each datagram back to its source;
// TCP connections it echoes, drains or fills, as their first bytes say (see
// mode).
type Echo struct {
	udp *udpio.Socket
	tcp *net.TCPListener

	wg     sync.WaitGroup
	places chan struct{} // one taken by each connection
	closed chan struct{}

	mu    sync.Mutex
	conns map[*net.TCPConn]bool // nil once closed
}

// ListenEcho starts an echo on addr, UDP and TCP; port 0 lets the system choose
// one that is free for both. With offload the kernel gets and hands over several
// datagrams as one.
func ListenEcho(addr netip.AddrPort, offload bool) (*Echo, error) {
	cfg := udpio.Config{NoOffload: !offload, ReadBuffer: echoBuffer, WriteBuffer: echoBuffer}
	udp, tcp, err := listenBoth(addr, cfg)
	if err != nil {
		return nil, err
	}
	e := &Echo{
		udp: udp, tcp: tcp,
		places: make(chan struct{}, maxEchoConns), closed: make(chan struct{}),
		conns: make(map[*net.TCPConn]bool),
	}
	// Messages that were read are ready to be written: Addr is the source. What
	// the system does not take is lost, as anywhere.
	udp.Start(func(ms []udpio.Message) { _, _ = udp.Write(ms) })
	e.wg.Go(e.accept)
	return e, nil
}

// portTries is how many ports the system may choose until one is free for both.
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

// Addr is where the echo listens.
func (e *Echo) Addr() netip.AddrPort { return e.udp.LocalAddr() }

// Close ends the echo and its connections, and waits for their end. It must be
// called once.
func (e *Echo) Close() error {
	close(e.closed)
	err := errors.Join(e.udp.Close(), e.tcp.Close())
	e.mu.Lock()
	for c := range e.conns {
		_ = c.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.wg.Wait()
	return err
}

func (e *Echo) accept() {
	for {
		select {
		case e.places <- struct{}{}:
		case <-e.closed:
			return
		}
		c, err := e.tcp.AcceptTCP()
		if err == nil {
			e.wg.Go(func() { e.serve(c) })
			continue
		}
		<-e.places
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
	<-e.places
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

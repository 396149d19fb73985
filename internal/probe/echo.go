package probe

import (
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"wmproxy/socks"
)

const (
	// maxEchoConns bounds the TCP connections of an Echo; more wait to be accepted.
	maxEchoConns = 256
	// echoIdle ends a TCP connection that moves nothing.
	echoIdle = 2 * time.Minute
	// echoAcceptPause follows a failed accept, such as one without descriptors.
	echoAcceptPause = 50 * time.Millisecond
)

// Echo sends back what it gets: each UDP datagram, of 0 to 65,507 bytes, to its
// source, and each TCP stream until its end, which it then answers with its own.
type Echo struct {
	udp *net.UDPConn
	tcp net.Listener

	wg     sync.WaitGroup
	closed chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once closed
}

// ListenEcho starts an echo on addr, HOST:PORT, for UDP and TCP alike. Port 0
// lets the system choose one.
func ListenEcho(addr string) (*Echo, error) {
	udp, tcp, err := listenBoth(addr)
	if err != nil {
		return nil, err
	}
	udp.SetReadBuffer(bufferBytes)
	udp.SetWriteBuffer(bufferBytes)
	e := &Echo{udp: udp, tcp: netutil.LimitListener(tcp, maxEchoConns), closed: make(chan struct{}), conns: map[net.Conn]bool{}}
	e.wg.Go(e.serveUDP)
	e.wg.Go(e.serveTCP)
	return e, nil
}

// Addr is where the echo listens.
func (e *Echo) Addr() socks.Addr { return localAddr(e.udp) }

// Close ends the echo and its connections, and waits for their end. It must be
// called once.
func (e *Echo) Close() error {
	close(e.closed)
	err := errors.Join(e.udp.Close(), e.tcp.Close())
	e.mu.Lock()
	for c := range e.conns {
		c.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.wg.Wait()
	return err
}

func (e *Echo) serveUDP() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := e.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			// A datagram that cannot be sent back is one that was lost.
			e.udp.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func (e *Echo) serveTCP() {
	for {
		c, err := e.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !e.pause() {
				return
			}
			continue
		}
		if !e.add(c) {
			c.Close()
			return
		}
		e.wg.Go(func() {
			echoStream(c)
			e.remove(c)
		})
	}
}

// pause waits a little and says whether the echo is still open.
func (e *Echo) pause() bool {
	select {
	case <-e.closed:
		return false
	case <-time.After(echoAcceptPause):
		return true
	}
}

func (e *Echo) add(c net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		return false
	}
	e.conns[c] = true
	return true
}

func (e *Echo) remove(c net.Conn) {
	c.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

// echoStream returns at the stream's end; the caller's Close then sends ours,
// after everything that was written.
func echoStream(c net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		c.SetDeadline(time.Now().Add(echoIdle))
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

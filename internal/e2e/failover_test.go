package e2e

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wmproxy/socks"
)

// forwarder forwards TCP and UDP between client and server, on one port. Either can be cut.
type forwarder struct {
	server netip.AddrPort
	addr   netip.AddrPort
	udp    *net.UDPConn
	wg     sync.WaitGroup

	mu      sync.Mutex
	ln      *net.TCPListener // nil while TCP is cut
	conns   map[net.Conn]struct{}
	deaf    bool                            // UDP is cut
	silent  bool                            // TCP passes nothing on
	clients map[netip.AddrPort]*net.UDPConn // towards the server, by client
}

// startForwarder starts a forwarder to server.
func startForwarder(t testing.TB, server netip.AddrPort) *forwarder {
	t.Helper()
	f := &forwarder{server: server, conns: map[net.Conn]struct{}{}, clients: map[netip.AddrPort]*net.UDPConn{}}
	f.addr = netip.AddrPortFrom(server.Addr(), freePorts(t, 1))
	f.ln, f.udp = listenTCP(t, f.addr.String()), listenUDP(t, f.addr.String())
	f.wg.Go(func() { f.accept(f.ln) })
	f.wg.Go(f.up)
	t.Cleanup(func() {
		f.cutTCP()
		f.udp.Close()
		f.mu.Lock()
		for _, c := range f.clients {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

// cutTCP closes every connection and refuses new ones.
func (f *forwarder) cutTCP() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ln != nil {
		f.ln.Close()
		f.ln = nil
	}
	for c := range f.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// mendTCP accepts new connections again.
func (f *forwarder) mendTCP(t testing.TB) {
	t.Helper()
	ln := listenTCP(t, f.addr.String())
	f.mu.Lock()
	f.ln = ln
	f.mu.Unlock()
	f.wg.Go(func() { f.accept(ln) })
}

// swallowTCP drops the data of all connections without closing them.
func (f *forwarder) swallowTCP() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = true
}

// cutUDP drops datagrams in both directions, or forwards them again.
func (f *forwarder) cutUDP(cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf = cut
}

func (f *forwarder) accept(ln *net.TCPListener) {
	for {
		near, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		far, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(f.server))
		if err != nil {
			near.Close()
			continue
		}
		f.mu.Lock()
		if f.ln != ln { // cut meanwhile
			near.Close()
			far.Close()
		}
		f.conns[near], f.conns[far] = struct{}{}, struct{}{}
		f.mu.Unlock()
		f.wg.Go(func() { f.pass(near, far) })
		f.wg.Go(func() { f.pass(far, near) })
	}
}

func (f *forwarder) pass(from, to *net.TCPConn) {
	_, _ = io.Copy(struct{ io.Writer }{swallower{f, to}}, from)
	from.Close()
	to.Close()
	f.mu.Lock()
	delete(f.conns, from)
	f.mu.Unlock()
}

// swallower writes to a connection unless TCP is being swallowed.
type swallower struct {
	f  *forwarder
	to io.Writer
}

func (s swallower) Write(b []byte) (int, error) {
	s.f.mu.Lock()
	silent := s.f.silent
	s.f.mu.Unlock()
	if silent {
		return len(b), nil
	}
	return s.to.Write(b)
}

// up forwards datagrams to the server, with a socket for each client.
func (f *forwarder) up() {
	buf := make([]byte, 1<<16)
	for {
		n, client, err := f.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		f.mu.Lock()
		c := f.clients[client]
		if c == nil {
			if c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.server)); err == nil {
				f.clients[client] = c
				f.wg.Go(func() { f.down(c, client) })
			}
		}
		deaf := f.deaf
		f.mu.Unlock()
		if err == nil && !deaf {
			_, _ = c.Write(buf[:n])
		}
	}
}

func (f *forwarder) down(c *net.UDPConn, client netip.AddrPort) {
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		f.mu.Lock()
		deaf := f.deaf
		f.mu.Unlock()
		if err == nil && !deaf {
			_, _ = f.udp.WriteToUDPAddrPort(buf[:n], client)
		}
	}
}

// startThrough starts a server and a client with a forwarder between them.
func startThrough(t testing.TB, args ...string) (*forwarder, *socksProcess) {
	t.Helper()
	s := startServer(t)
	f := startForwarder(t, s.Addr)
	l := parsedLink(t, s.Link)
	l.Port = f.addr.Port()
	return f, startClient(t, l.Text(), args...)
}

func TestQUICAloneCarriesEverything(t *testing.T) {
	t.Parallel()
	f, c := startThrough(t)
	echo := startEcho(t)
	conn := associate(t, c.Socks())
	ping(t, conn, echo)
	old, _ := stream(t, c.Socks())

	f.cutTCP()
	if _, err := old.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the stream of a carrier that failed looks as if it had ended in order: %v", err)
	}
	ping(t, conn, echo)
	if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
		t.Errorf("a stream without TCP: reply %d", got)
	}
	_, next := c.WaitLogAfter(0, "the missing carrier", func(l logLine) bool {
		return strings.HasPrefix(l.Msg, "tunnel up: quic") && strings.Contains(l.Msg, "; without yamux: ")
	})

	began := time.Now()
	f.mendTCP(t)
	c.waitUpAfter(next)
	t.Logf("TCP is back in use %v after it works again", time.Since(began).Round(time.Millisecond))
	if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
		t.Errorf("a stream with TCP again: reply %d", got)
	}
}

// Neither side has noticed the silence when the stream is requested.
func TestStreamOpensOverQUICOnceTCPIsSilent(t *testing.T) {
	t.Parallel()
	f, c := startThrough(t)
	echo := startEcho(t)
	if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
		t.Fatalf("a stream over TCP: reply %d", got)
	}
	f.swallowTCP()
	began := time.Now()
	if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
		t.Errorf("a stream without TCP: reply %d", got)
	}
	took := time.Since(began)
	if took > 6*time.Second {
		t.Errorf("it took %v, want about the 2 s after which TCP is doubted", took)
	}
	t.Logf("a stream opens %v after it was asked for", took.Round(time.Millisecond))
}

func TestDatagramsMoveToTCPWhenUDPIsDropped(t *testing.T) {
	t.Parallel()
	f, c := startThrough(t, "--steady", "1s")
	echo := startEcho(t)
	conn := associate(t, c.Socks())
	ping(t, conn, echo)

	f.cutUDP(true)
	began := time.Now()
	ping(t, conn, echo)
	took := time.Since(began)
	t.Logf("datagrams pass over TCP %v after UDP went silent", took.Round(time.Millisecond))
	if took > 3*time.Second+slack {
		t.Errorf("datagrams pass %v after UDP went silent", took)
	}
	if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
		t.Errorf("a stream without UDP: reply %d", got)
	}
	moved := func(to string) func(logLine) bool {
		return func(l logLine) bool { return strings.HasSuffix(l.Msg, "datagrams moved to "+to) }
	}
	_, next := c.WaitLogAfter(0, "the move to yamux", moved("yamux"))

	began = time.Now()
	f.cutUDP(false)
	c.WaitLogWithin(2*waitTimeout, next, "the move back", moved("quic"))
	t.Logf("UDP is back in use %v after it works again", time.Since(began).Round(time.Millisecond))
	ping(t, conn, echo)
}

// A server may be reachable over one transport only.
func TestOneCarrierIsEnough(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{overQUIC, overYamux} {
		t.Run(kind, func(t *testing.T) {
			s := startServer(t, "--transport", kind)
			c := startClientAlone(t, s.Link)
			echo := startEcho(t)
			conn := associate(t, c.Socks())
			ping(t, conn, echo)
			if got := replyTo(t, c.Socks(), echo); got != socks.ReplySucceeded {
				t.Errorf("a stream: reply %d", got)
			}
			c.WaitLog("the missing carrier", func(l logLine) bool {
				return strings.HasPrefix(l.Msg, "tunnel up: "+kind) && strings.Contains(l.Msg, "; without ")
			})
		})
	}
}

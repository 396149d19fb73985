package probe

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wmproxy/socks"
)

// fakeSocks is a SOCKS5 server that relays, unless its fields make it misbehave. Names
// resolve to 127.0.0.1.
type fakeSocks struct {
	user, pass string // required if set

	greeting  []byte                               // sent instead of the method, before it closes
	silent    bool                                 // never answers the greeting
	hangUpAt  string                               // "authentication" or "reply"
	reply     byte                                 // the reply's code
	refuse    byte                                 // the reply's code to CONNECT alone
	rawReply  []byte                               // the reply as a whole
	bound     func(netip.AddrPort) socks.Addr      // BND
	dropUDP   bool                                 // datagrams vanish
	closedUDP bool                                 // the relay's socket is closed
	lose      int32                                // datagrams that vanish first
	stranger  bool                                 // replies leave another socket
	source    func(netip.AddrPort) socks.Addr      // the source in the reply's header
	frag      byte                                 // FRAG of replies
	spoil     func(seq int, payload []byte) []byte // changes a reply's payload
	endUDP    bool                                 // the first datagram ends the association
	cutStream bool                                 // a half-close closes both directions before the answer has arrived

	ln       *net.TCPListener
	wg       sync.WaitGroup
	mu       sync.Mutex
	open     map[io.Closer]bool
	received atomic.Int32 // datagrams from clients
}

// start listens on loopback until the test ends.
func (f *fakeSocks) start(t *testing.T) *fakeSocks {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	f.ln, f.open = ln, map[io.Closer]bool{}
	f.wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			f.wg.Go(func() {
				defer f.track(c)()
				f.serve(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.mu.Lock()
		for c := range f.open {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Wait()
	})
	return f
}

func (f *fakeSocks) addr() string { return f.ln.Addr().String() }

func (f *fakeSocks) client() *socks.Client {
	return &socks.Client{Server: f.addr(), Username: f.user, Password: f.pass}
}

// track registers c to be closed at the end of the test. The function that it returns closes
// c earlier.
func (f *fakeSocks) track(c io.Closer) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[c] = true
	return func() {
		c.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.open, c)
	}
}

func (f *fakeSocks) serve(c *net.TCPConn) {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var b [3 + socks.MaxAddrLen]byte
	io.ReadFull(c, b[:2])
	methods := b[2 : 2+b[1]]
	io.ReadFull(c, methods)
	switch {
	case f.silent:
		io.Copy(io.Discard, c)
		return
	case f.greeting != nil:
		c.Write(f.greeting)
		return
	case f.user == "":
		c.Write([]byte{5, 0})
	case !f.authenticate(c, methods):
		return
	}
	io.ReadFull(c, b[:5])
	n := map[byte]int{socks.TypeIPv4: 10, socks.TypeIPv6: 22, socks.TypeName: 7 + int(b[4])}[b[3]]
	if n == 0 || f.hangUpAt == "reply" {
		return
	}
	io.ReadFull(c, b[5:n])
	dst, _, _ := socks.ParseAddr(b[3:n])
	switch {
	case f.rawReply != nil:
		c.Write(f.rawReply)
	case f.reply != 0:
		c.Write([]byte{5, f.reply, 0, 1, 0, 0, 0, 0, 0, 0})
	case b[1] == 1 && f.refuse != 0:
		c.Write([]byte{5, f.refuse, 0, 1, 0, 0, 0, 0, 0, 0})
	case b[1] == 1:
		f.connect(c, dst)
	default:
		f.associate(c)
	}
}

func (f *fakeSocks) authenticate(c *net.TCPConn, methods []byte) bool {
	offered := false
	for _, m := range methods {
		offered = offered || m == 2
	}
	if !offered {
		c.Write([]byte{5, 0xff})
		return false
	}
	c.Write([]byte{5, 2})
	var b [256]byte
	field := func() string {
		io.ReadFull(c, b[:1])
		n := b[0]
		io.ReadFull(c, b[:n])
		return string(b[:n])
	}
	io.ReadFull(c, b[:1])
	user, pass := field(), field()
	if f.hangUpAt == "authentication" {
		return false
	}
	ok := user == f.user && pass == f.pass
	c.Write([]byte{1, map[bool]byte{true: 0, false: 1}[ok]})
	return ok
}

func resolve(dst socks.Addr) netip.AddrPort {
	if dst.Name != "" {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dst.Port)
	}
	return dst.AddrPort()
}

func (f *fakeSocks) connect(c *net.TCPConn, dst socks.Addr) {
	out, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(resolve(dst)))
	if err != nil {
		c.Write([]byte{5, socks.ReplyConnectionRefused, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	defer f.track(out)()
	c.Write(socks.AppendAddrPort([]byte{5, 0, 0}, out.LocalAddr().(*net.TCPAddr).AddrPort()))
	if f.cutStream {
		io.Copy(out, c)
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(out, c)
		out.CloseWrite()
	})
	io.Copy(c, out)
	c.CloseWrite()
	up.Wait()
}

func (f *fakeSocks) associate(c *net.TCPConn) {
	relay, out, stranger := f.socket(), f.socket(), f.socket()
	defer f.track(relay)()
	defer f.track(out)()
	defer f.track(stranger)()
	bound := socks.AddrFrom(relay.LocalAddr().(*net.UDPAddr).AddrPort())
	if f.bound != nil {
		bound = f.bound(bound.AddrPort())
	}
	if f.closedUDP {
		relay.Close()
	}
	c.Write(socks.AppendAddr([]byte{5, 0, 0}, bound))

	var from atomic.Pointer[netip.AddrPort]
	var loops sync.WaitGroup
	loops.Go(func() { f.relayUp(c, relay, out, &from) })
	loops.Go(func() {
		if f.stranger {
			f.relayDown(stranger, out, &from)
			return
		}
		f.relayDown(relay, out, &from)
	})
	io.Copy(io.Discard, c)
	relay.Close()
	out.Close()
	stranger.Close()
	loops.Wait()
}

func (f *fakeSocks) socket() *net.UDPConn {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	return udp
}

func (f *fakeSocks) relayUp(c *net.TCPConn, relay, out *net.UDPConn, from *atomic.Pointer[netip.AddrPort]) {
	buf := make([]byte, 1<<16)
	for {
		n, source, err := relay.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		dst, taken, err := socks.ParseAddr(buf[min(3, n):n])
		if err != nil {
			continue
		}
		seen := f.received.Add(1)
		if f.endUDP {
			c.Close()
			return
		}
		if f.dropUDP || seen <= f.lose {
			continue
		}
		from.Store(&source)
		out.WriteToUDPAddrPort(buf[3+taken:n], resolve(dst))
	}
}

func (f *fakeSocks) relayDown(relay, out *net.UDPConn, from *atomic.Pointer[netip.AddrPort]) {
	buf := make([]byte, 1<<16)
	for seq := 1; ; seq++ {
		n, remote, err := out.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		source, payload := socks.AddrFrom(remote), buf[:n]
		if f.source != nil {
			source = f.source(remote)
		}
		if f.spoil != nil {
			payload = f.spoil(seq, payload)
		}
		head := socks.AppendAddr([]byte{0, 0, f.frag}, source)
		relay.WriteToUDPAddrPort(append(head, payload...), *from.Load())
	}
}

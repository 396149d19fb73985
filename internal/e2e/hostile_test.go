package e2e

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	handshakeBound      = 5 * time.Second
	socksHandshakeBound = 10 * time.Second
	streamHeaderBound   = 10 * time.Second

	// slack is the addition to bounds for a busy machine.
	slack = 3 * time.Second

	// drip is the interval of bytes of a slow sender.
	drip = 100 * time.Millisecond
)

// garbage returns n bytes that begin no protocol of ours.
func garbage(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	b[0] = 0xff
	return b
}

// assault is data for a connection, and the time that the connection may stay open after it.
type assault struct {
	name  string
	bytes []byte
	slow  bool // one byte each drip
	bound time.Duration
}

// send sends the data until the end or until the other side closes.
func (a assault) send(w io.Writer) {
	if !a.slow {
		_, _ = w.Write(a.bytes)
		return
	}
	tick := time.NewTicker(drip)
	defer tick.Stop()
	for i := range a.bytes {
		if _, err := w.Write(a.bytes[i : i+1]); err != nil {
			return
		}
		<-tick.C
	}
}

// withstand makes the assaults on a TCP port concurrently and checks that each connection
// is closed in time.
func withstand(t *testing.T, addr netip.AddrPort, assaults []assault) {
	t.Helper()
	var wg sync.WaitGroup
	for _, a := range assaults {
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Errorf("%s: %v", a.name, err)
				return
			}
			defer conn.Close()
			began := time.Now()
			if err := conn.SetDeadline(began.Add(a.bound + slack)); err != nil {
				t.Error(err)
			}
			var sender sync.WaitGroup
			sender.Go(func() { a.send(conn) })
			n, err := io.Copy(io.Discard, conn)
			if isTimeout(err) {
				t.Errorf("%s: still open after %v", a.name, time.Since(began))
			}
			t.Logf("%-32s %d bytes back, closed after %v", a.name, n, time.Since(began).Round(time.Millisecond))
			conn.Close()
			sender.Wait()
		})
	}
	wg.Wait()
}

// roughly returns h with an allowance for heap that was not worth collecting.
func roughly(h holdings) holdings {
	h.Heap += 1 << 20
	return h
}

func TestEntranceSurvivesMalformedSOCKS(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	c := startClient(t, s.Link, withDebug...)
	echo := startEcho(t)
	ping(t, associate(t, c.Socks()), echo)
	rested(t, c.process)
	before := holdingsNow(t, c.process, false)
	greeting := "\x05\x01\x00"
	withstand(t, c.Addr, []assault{
		{name: "noise", bytes: garbage(2000)},
		{name: "much noise", bytes: garbage(1 << 20)},
		{name: "TLS", bytes: clientHello(t)},
		{name: "HTTP for the entrance itself", bytes: []byte("GET / HTTP/1.0\r\n\r\n")},
		{name: "malformed HTTP", bytes: []byte("GET http://example.com/ HTTP/1.1\r\nHost\r\n\r\n")},
		{name: "half an HTTP request", bytes: []byte("GET http://example.com/ HTTP/1.1\r\nHost: "), bound: socksHandshakeBound},
		{name: "SOCKS4", bytes: []byte("\x04\x01\x00\x50\x7f\x00\x00\x01me\x00")},
		{name: "silence", bound: socksHandshakeBound},
		{name: "half a greeting", bytes: []byte("\x05"), bound: socksHandshakeBound},
		{name: "255 methods, none sent", bytes: []byte("\x05\xff"), bound: socksHandshakeBound},
		{name: "no method", bytes: []byte("\x05\x00")},
		{name: "unknown method", bytes: []byte("\x05\x01\x80")},
		{name: "a password cut short", bytes: []byte("\x05\x01\x02\x01\xffme"), bound: socksHandshakeBound},
		{name: "no request", bytes: []byte(greeting), bound: socksHandshakeBound},
		{name: "half a request", bytes: []byte(greeting + "\x05\x01\x00\x03\xffexample"), bound: socksHandshakeBound},
		{name: "a request of version 6", bytes: []byte(greeting + "\x06\x01\x00\x01\x00\x00\x00\x00\x00\x00")},
		{name: "an unknown command", bytes: []byte(greeting + "\x05\x09\x00\x01\x00\x00\x00\x00\x00\x00")},
		{name: "an unknown address type", bytes: []byte(greeting + "\x05\x01\x00\x09\x00\x00\x00\x00\x00\x00")},
		{name: "an empty name", bytes: []byte(greeting + "\x05\x01\x00\x03\x00\x00\x50")},
		{name: "a slow greeting", bytes: append([]byte("\x05\xff"), make([]byte, 255)...), slow: true, bound: socksHandshakeBound},
		{name: "a slow request", bytes: append([]byte(greeting+"\x05\x01\x00\x03\xff"), make([]byte, 257)...), slow: true, bound: socksHandshakeBound},
		{name: "noise on an association", bytes: append([]byte(greeting+"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"), garbage(1<<20)...)},
	})
	after, _ := settled(t, c.process, roughly(before), settling)
	t.Logf("client:\nbefore %v\nafter  %v", before, after)
	ping(t, associate(t, c.Socks()), echo)
}

// clientHello returns the first flight of a TLS client of the tunnel.
func clientHello(t testing.TB) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	var client sync.WaitGroup
	client.Go(func() { _ = tls.Client(near, wireTLS(wireALPN)).Handshake() })
	defer client.Wait()
	defer near.Close()
	b := make([]byte, 16<<10)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestTunnelPortSurvivesMalformedTLS(t *testing.T) {
	t.Parallel()
	s := startServer(t, withDebug...)
	c := startClient(t, s.Link)
	echo := startEcho(t)
	conn := associate(t, c.Socks())
	ping(t, conn, echo)
	rested(t, s.process)
	before := holdingsNow(t, s.process, false)
	hello := clientHello(t)
	longRecord := append([]byte{22, 3, 1, 0xff, 0xff}, garbage(1<<16)...)
	longMessage := append([]byte{22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff}, garbage(1<<14-4)...)
	withstand(t, s.Addr, []assault{
		{name: "noise", bytes: garbage(2000)},
		{name: "much noise", bytes: garbage(1 << 20)},
		{name: "HTTP", bytes: []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")},
		{name: "SSH", bytes: []byte("SSH-2.0-OpenSSH_9.9\r\n"), bound: handshakeBound},
		{name: "silence", bound: handshakeBound},
		{name: "half a record header", bytes: hello[:3], bound: handshakeBound},
		{name: "half a ClientHello", bytes: hello[:len(hello)/2], bound: handshakeBound},
		{name: "a whole ClientHello alone", bytes: hello, bound: handshakeBound},
		{name: "a ClientHello and noise", bytes: append(append([]byte(nil), hello...), garbage(2000)...)},
		{name: "too long a record", bytes: longRecord},
		{name: "too long a handshake message", bytes: longMessage},
		{name: "a slow ClientHello", bytes: hello, slow: true, bound: handshakeBound},
	})
	after, _ := settled(t, s.process, roughly(before), settling)
	t.Logf("server:\nbefore %v\nafter  %v", before, after)
	ping(t, conn, echo)
}

// greetings returns assaults in place of a Hello.
func greetings(t testing.TB, s *serverProcess) []struct {
	assault
	code uint64
} {
	l := parsed(t, s)
	l.Secret = "not-it"
	known := newWireSession()
	attach(t, overYamux, s, known, wireHello{attach: 1, withSecret: true})
	stranger := &wireSession{id: known.id}
	bad := func(user, token string) []byte {
		b := wireText(wireText(varints(wireVersion, wireVersion), user), token)
		return wireMessage(typeHello, append(b, make([]byte, 16+1+32+1)...))
	}
	// Only a correct proof depends on the connection, and these have none.
	c := &connection{t: t, exporter: func() ([]byte, error) { return make([]byte, 32), nil }}
	good := parsed(t, s)
	return []struct {
		assault
		code uint64
	}{
		{assault{name: "silence", bound: handshakeBound}, codeTimeout},
		{assault{name: "noise", bytes: append([]byte{1}, garbage(2000)...)}, codeProtocol},
		{assault{name: "a yamux frame", bytes: []byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}}, codeProtocol},
		{assault{name: "an END", bytes: wireMessage(typeEnd, varints(0, 2, 0))}, codeProtocol},
		{assault{name: "a Welcome", bytes: wireMessage(typeWelcome, make([]byte, 24))}, codeProtocol},
		{assault{name: "an empty Hello", bytes: wireMessage(typeHello, nil)}, codeProtocol},
		{assault{name: "a Hello too long", bytes: varints(typeHello, wireMaxMessage+1)}, codeProtocol},
		{assault{name: "a Hello of 2^62-1 bytes", bytes: varints(typeHello, 1<<62-1)}, codeProtocol},
		{assault{name: "a user of 65 bytes", bytes: bad(strings.Repeat("u", 65), "t")}, codeProtocol},
		{assault{name: "a token of 257 bytes", bytes: bad("u", strings.Repeat("t", 257))}, codeProtocol},
		{assault{name: "a user of 2^62-1 bytes", bytes: wireMessage(typeHello, varints(wireVersion, wireVersion, 1<<62-1))}, codeProtocol},
		{assault{name: "a Hello cut short", bytes: wireMessage(typeHello, varints(wireVersion, wireVersion, 3))}, codeProtocol},
		{assault{name: "half a Hello", bytes: varints(typeHello, 100, 1), bound: handshakeBound}, codeTimeout},
		{assault{name: "a slow Hello", bytes: append(varints(typeHello, wireMaxMessage), garbage(wireMaxMessage)...), slow: true, bound: handshakeBound}, codeTimeout},
		{assault{name: "a wrong token", bytes: c.hello(l, newWireSession(), wireHello{withSecret: true})}, codeAuth},
		{assault{name: "a proof of nothing", bytes: c.hello(good, newWireSession(), wireHello{withSecret: true})}, codeSession},
		{assault{name: "another's session", bytes: c.hello(good, stranger, wireHello{withSecret: true})}, codeSession},
	}
}

func TestServerSurvivesMalformedHello(t *testing.T) {
	t.Parallel()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		t.Parallel()
		s := startServer(t, withDebug...)
		cases := greetings(t, s)
		rested(t, s.process)
		before := holdingsNow(t, s.process, false)
		var wg sync.WaitGroup
		for _, test := range cases {
			c := dialWire(t, kind, s.Addr, wireALPN)
			wg.Go(func() {
				began := time.Now()
				code, err := c.refusedAfter(test.assault)
				if err != nil || code != test.code && code != codeUntold {
					t.Errorf("%s: code %d, %v; want code %d", test.name, code, err, test.code)
				}
				if took := time.Since(began); took > test.bound+slack {
					t.Errorf("%s: refused after %v", test.name, took)
				}
			})
		}
		wg.Wait()
		after, _ := settled(t, s.process, roughly(before), settling)
		t.Logf("server:\nbefore %v\nafter  %v", before, after)
	})
}

// refusedAfter sends something else than a Hello and returns the code of the refusal. On
// TCP there may be none if the time has run out, or if the server closes the connection
// with unread data.
func (c *connection) refusedAfter(a assault) (code uint64, err error) {
	var sender sync.WaitGroup
	defer sender.Wait()
	if c.kind == 1 {
		s, err := c.quic.OpenStream()
		if err != nil {
			return 0, err
		}
		sender.Go(func() { a.send(s) })
		select {
		case <-c.quic.Context().Done():
		case <-time.After(waitTimeout):
			return 0, errors.New("still open")
		}
		code, ok := closeCode(context.Cause(c.quic.Context()))
		if !ok {
			err = context.Cause(c.quic.Context())
		}
		return code, err
	}
	sender.Go(func() { a.send(c.tls) })
	defer c.tls.NetConn().Close()
	if err := c.tls.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		return 0, err
	}
	kind, payload, err := readWire(c.tls)
	switch {
	case isTimeout(err):
		return 0, errors.New("still open")
	case err == nil && kind == typeRefuse:
		return refusal(payload)
	case err == nil:
		return 0, fmt.Errorf("a message of type %d", kind)
	case a.bound > 0 || len(a.bytes) > 1000:
		return codeUntold, nil
	}
	return 0, err
}

// codeUntold means that the server closed the connection without a code.
const codeUntold = 1 << 62

func TestQUICHasOneStreamUntilWelcome(t *testing.T) {
	t.Parallel()
	s := startServer(t, withDebug...)
	closes := func(name string, c *connection) {
		t.Helper()
		select {
		case <-c.quic.Context().Done():
		case <-time.After(waitTimeout):
			t.Fatalf("%s: still open", name)
		}
		if code, ok := closeCode(context.Cause(c.quic.Context())); !ok || code != codeProtocol {
			t.Errorf("%s: %v", name, context.Cause(c.quic.Context()))
		}
	}
	streams := func() {
		c := dialWire(t, overQUIC, s.Addr, wireALPN)
		began := time.Now()
		for range 1000 {
			st, err := c.quic.OpenStream()
			if err != nil {
				break // closed already
			}
			_, _ = st.Write(garbage(1000))
		}
		closes("1000 streams", c)
		if took := time.Since(began); took > slack {
			t.Errorf("1000 streams: closed after %v", took)
		}
	}
	datagrams := func() {
		c := dialWire(t, overQUIC, s.Addr, wireALPN)
		for range 1000 {
			if c.quic.SendDatagram(garbage(1000)) != nil {
				break
			}
		}
		closes("datagrams before Hello", c)
	}
	late := func() {
		c := dialWire(t, overQUIC, s.Addr, wireALPN)
		c.open()
		if _, err := c.stream.Write(varints(typeHello, 100)); err != nil {
			t.Fatal(err)
		}
		for c.quic.Context().Err() == nil && c.quic.SendDatagram(garbage(1000)) == nil {
		}
		closes("datagrams within Hello", c)
	}
	streams() // once to warm up
	rested(t, s.process)
	before := holdingsNow(t, s.process, false)
	streams()
	datagrams()
	late()
	after, _ := settled(t, s.process, roughly(before), settling)
	t.Logf("server:\nbefore %v\nafter  %v", before, after)
}

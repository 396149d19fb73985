package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// scriptedServer accepts one connection on loopback and hands it to script.
// The test ends when script has returned and nothing is left running, so it
// can have one such server.
func scriptedServer(t *testing.T, script func(c *net.TCPConn)) string {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.AcceptTCP()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		script(c)
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
		goleak.VerifyNone(t)
	})
	return ln.Addr().String()
}

// expectBytes reads exactly what the client must send.
func expectBytes(t *testing.T, c net.Conn, want ...byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("client sent % x (%v), want % x", got, err, want)
	}
}

var dstIPv4 = Addr{IP: netip.MustParseAddr("192.0.2.7"), Port: 53}

func TestConnectLeavesTheStreamUntouched(t *testing.T) {
	server := scriptedServer(t, func(c *net.TCPConn) {
		expectBytes(t, c, 5, 2, 0, 2)
		c.Write([]byte{5, 2})
		expectBytes(t, c, 1, 2, 'm', 'e', 3, 'k', 'e', 'y')
		c.Write([]byte{1, 0})
		expectBytes(t, c, append([]byte{5, 1, 0, 3, 4}, "host\x00\x50"...)...)
		// The destination's first bytes come in the same segment as the reply.
		c.Write(append([]byte{5, 0, 0, 1, 10, 0, 0, 1, 0x12, 0x34}, "hello"...))
		rest, err := io.ReadAll(c)
		if err != nil || string(rest) != "bye" {
			t.Errorf("server read %q, %v", rest, err)
		}
		c.Write([]byte("!"))
	})
	var steps []Step
	var bound Addr
	client := &Client{Server: server, Username: "me", Password: "key", OnStep: func(s Step, b Addr) {
		steps = append(steps, s)
		if s == StepReply {
			bound = b
		}
	}}
	conn, err := client.Connect(t.Context(), Addr{Name: "host", Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte("bye"))
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello!" {
		t.Errorf("read %q, %v; want hello!", got, err)
	}
	if want := []Step{StepDial, StepGreeting, StepAuth, StepReply}; !slices.Equal(steps, want) {
		t.Errorf("steps %v, want %v", steps, want)
	}
	if bound.String() != "10.0.0.1:4660" {
		t.Errorf("BND told as %v", bound)
	}
}

// A client's handshake as far as the request is asked for, without
// authentication.
func acceptRequest(t *testing.T, c net.Conn) {
	t.Helper()
	expectBytes(t, c, 5, 1, 0)
	c.Write([]byte{5, 0})
	var b [10]byte
	io.ReadFull(c, b[:])
}

func TestEachWayToFailNamesItsStepAndItsKind(t *testing.T) {
	greeting := func(answer ...byte) func(*testing.T, *net.TCPConn) {
		return func(t *testing.T, c *net.TCPConn) {
			expectBytes(t, c, 5, 1, 0)
			c.Write(answer)
		}
	}
	reply := func(answer ...byte) func(*testing.T, *net.TCPConn) {
		return func(t *testing.T, c *net.TCPConn) {
			acceptRequest(t, c)
			c.Write(answer)
		}
	}
	tests := []struct {
		name   string
		user   string
		script func(t *testing.T, c *net.TCPConn)
		step   Step
		is     error
		code   byte
	}{
		{"not SOCKS5", "", greeting('H', 'T'), StepGreeting, ErrNotSOCKS5, 0},
		{"a single strange byte", "", greeting(0), StepGreeting, ErrNotSOCKS5, 0},
		{"no method", "", greeting(5, 0xff), StepGreeting, ErrNoMethod, 0},
		{"a method that was not offered", "", greeting(5, 2), StepGreeting, ErrMalformed, 0},
		{"closed at the greeting", "", greeting(), StepGreeting, ErrHungUp, 0},
		{"greeting cut short", "", greeting(5), StepGreeting, ErrHungUp, 0},
		{"authentication refused", "u", func(t *testing.T, c *net.TCPConn) {
			expectBytes(t, c, 5, 2, 0, 2)
			c.Write([]byte{5, 2})
			expectBytes(t, c, 1, 1, 'u', 0)
			c.Write([]byte{1, 1})
		}, StepAuth, ErrAuth, 0},
		{"closed at authentication", "u", func(t *testing.T, c *net.TCPConn) {
			expectBytes(t, c, 5, 2, 0, 2)
			c.Write([]byte{5, 2})
			expectBytes(t, c, 1, 1, 'u', 0)
		}, StepAuth, ErrHungUp, 0},
		{"refused by rule", "", reply(5, 2, 0, 1, 0, 0, 0, 0, 0, 0), StepReply, nil, 2},
		{"a refusal of two bytes", "", reply(5, 5), StepReply, nil, 5},
		{"an unassigned code", "", reply(5, 200, 0), StepReply, nil, 200},
		{"reply of version 4", "", reply(4, 0, 0, 1), StepReply, ErrMalformed, 0},
		{"unknown address type", "", reply(5, 0, 0, 9, 1, 2, 3, 4), StepReply, ErrMalformed, 0},
		{"reply cut short", "", reply(5, 0, 0, 1, 1, 2, 3), StepReply, ErrHungUp, 0},
		{"no reply", "", reply(), StepReply, ErrHungUp, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := scriptedServer(t, func(c *net.TCPConn) { tt.script(t, c) })
			client := &Client{Server: server, Username: tt.user}
			conn, err := client.Connect(t.Context(), dstIPv4)
			if err == nil {
				conn.Close()
				t.Fatal("no error")
			}
			var at *StepError
			if !errors.As(err, &at) || at.Step != tt.step {
				t.Errorf("error %v, want one of step %v", err, tt.step)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v, want %v", err, tt.is)
			}
			var refused *ReplyError
			if errors.As(err, &refused) != (tt.code != 0) || refused != nil && refused.Code != tt.code {
				t.Errorf("error %v, want reply code %d", err, tt.code)
			}
		})
	}
}

func TestADialThatFailsIsAnErrorOfTheDialStep(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := ln.Addr().String()
	ln.Close()
	_, err = (&Client{Server: server}).Connect(t.Context(), dstIPv4)
	var at *StepError
	var op *net.OpError
	if !errors.As(err, &at) || at.Step != StepDial || !errors.As(err, &op) {
		t.Errorf("error %v, want a network error of the dial", err)
	}
}

func TestTheContextEndsASilentHandshake(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	_, err := (&Client{Server: scriptedServer(t, func(c *net.TCPConn) {
		acceptRequest(t, c)
		cancel()
		io.Copy(io.Discard, c)
	})}).Connect(ctx, dstIPv4)
	var at *StepError
	if !errors.Is(err, context.Canceled) || !errors.As(err, &at) || at.Step != StepReply {
		t.Errorf("error %v, want context.Canceled at the reply", err)
	}
}

func TestTheTimeoutEndsASilentHandshake(t *testing.T) {
	server := scriptedServer(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	_, err := (&Client{Server: server, Timeout: 50 * time.Millisecond}).Associate(t.Context())
	var at *StepError
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &at) || at.Step != StepGreeting {
		t.Errorf("error %v, want context.DeadlineExceeded at the greeting", err)
	}
}

func TestWhatHasNoFormOnTheWireIsRefusedBeforeTheDial(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, tt := range []struct {
		client Client
		dst    Addr
		want   error
	}{
		{Client{}, Addr{Name: long, Port: 1}, ErrLongName},
		{Client{}, Addr{Port: 1}, errEmptyName},
		{Client{Username: long}, dstIPv4, ErrLongName},
		{Client{Password: long}, dstIPv4, ErrLongName},
	} {
		tt.client.OnStep = func(s Step, _ Addr) { t.Errorf("reached %v", s) }
		if _, err := tt.client.Connect(t.Context(), tt.dst); !errors.Is(err, tt.want) {
			t.Errorf("error %v, want %v", err, tt.want)
		}
	}
}

// relaySocket is the UDP side of a scripted server.
func relaySocket(t *testing.T) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	udp.SetDeadline(time.Now().Add(10 * time.Second))
	return udp, udp.LocalAddr().(*net.UDPAddr).AddrPort()
}

// associate makes an association whose BND is bound. The server holds the
// control connection until the client ends it or hangUp is closed.
func associate(t *testing.T, bound Addr, hangUp <-chan struct{}) *PacketConn {
	t.Helper()
	server := scriptedServer(t, func(c *net.TCPConn) {
		expectBytes(t, c, 5, 1, 0)
		c.Write([]byte{5, 0})
		expectBytes(t, c, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0)
		if bound.Name == "" && !bound.IP.IsValid() {
			c.Write([]byte{5, 0, 0, TypeName, 0, byte(bound.Port >> 8), byte(bound.Port)})
		} else {
			c.Write(AppendAddr([]byte{5, 0, 0}, bound))
		}
		if hangUp != nil {
			<-hangUp
			return
		}
		io.Copy(io.Discard, c)
	})
	p, err := (&Client{Server: server}).Associate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	p.SetDeadline(time.Now().Add(10 * time.Second))
	return p
}

// answer sends a reply datagram for what the client at to sent.
func answer(t *testing.T, udp *net.UDPConn, to netip.AddrPort, b []byte) {
	t.Helper()
	if _, err := udp.WriteToUDPAddrPort(b, to); err != nil {
		t.Error(err)
	}
}

func localPort(p *PacketConn) netip.AddrPort {
	return p.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestDatagramsCarryTheirAddressBothWays(t *testing.T) {
	udp, relay := relaySocket(t)
	p := associate(t, AddrFrom(relay), nil)
	for _, tt := range []struct {
		name    string
		dst     net.Addr
		payload string
		header  []byte
		source  string
	}{
		{"IPv4", &net.UDPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 53}, "q", []byte{0, 0, 0, 1, 192, 0, 2, 7, 0, 53}, "192.0.2.7:53"},
		{"IPv6", &net.UDPAddr{IP: net.ParseIP("2001:db8::1"), Port: 258}, "", append(append([]byte{0, 0, 0, 4}, net.ParseIP("2001:db8::1")...), 1, 2), "[2001:db8::1]:258"},
		{"name", Addr{Name: "a.example", Port: 1}, "text", append([]byte{0, 0, 0, 3, 9}, "a.example\x00\x01"...), "a.example:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if n, err := p.WriteTo([]byte(tt.payload), tt.dst); n != len(tt.payload) || err != nil {
				t.Fatalf("WriteTo: %d, %v", n, err)
			}
			buf := make([]byte, 2048)
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil || from != localPort(p) {
				t.Fatalf("relay read from %v: %v", from, err)
			}
			if want := append(slices.Clone(tt.header), tt.payload...); !bytes.Equal(buf[:n], want) {
				t.Errorf("relay read % x, want % x", buf[:n], want)
			}
			answer(t, udp, from, buf[:n])
			n, source, err := p.ReadFrom(buf)
			if err != nil || string(buf[:n]) != tt.payload || source.String() != tt.source {
				t.Errorf("read %q from %v, %v", buf[:n], source, err)
			}
			if _, ok := source.(*net.UDPAddr); ok == (tt.name == "name") {
				t.Errorf("source is a %T", source)
			}
		})
	}
}

func TestAnUnusableBNDIsReplacedByTheServersAddress(t *testing.T) {
	unspecified := netip.IPv4Unspecified()
	for _, tt := range []struct {
		name        string
		told, bound Addr // without port
	}{
		{"0.0.0.0", Addr{IP: unspecified}, Addr{IP: unspecified}},
		{"::", Addr{IP: netip.IPv6Unspecified()}, Addr{IP: netip.IPv6Unspecified()}},
		{"a name", Addr{Name: "socks.invalid"}, Addr{Name: "socks.invalid"}},
		{"an empty name", Addr{}, Addr{IP: unspecified}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			udp, relay := relaySocket(t)
			tt.told.Port, tt.bound.Port = relay.Port(), relay.Port()
			p := associate(t, tt.told, nil)
			if p.BoundAddr() != tt.bound || p.RelayAddr() != relay {
				t.Errorf("BoundAddr %v, RelayAddr %v; want %v, %v", p.BoundAddr(), p.RelayAddr(), tt.bound, relay)
			}
			p.WriteToAddr([]byte("x"), dstIPv4)
			buf := make([]byte, 64)
			if n, _, err := udp.ReadFromUDPAddrPort(buf); err != nil || n != 11 {
				t.Errorf("relay read %d bytes, %v", n, err)
			}
		})
	}
}

func TestABNDPortOfZeroIsMalformed(t *testing.T) {
	server := scriptedServer(t, func(c *net.TCPConn) {
		acceptRequest(t, c)
		c.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 0})
		io.Copy(io.Discard, c)
	})
	if _, err := (&Client{Server: server}).Associate(t.Context()); !errors.Is(err, ErrMalformed) {
		t.Errorf("error %v, want ErrMalformed", err)
	}
}

func TestStrangeDatagramsAreCountedAndDropped(t *testing.T) {
	udp, relay := relaySocket(t)
	stranger, strangerAddr := relaySocket(t)
	p := associate(t, AddrFrom(relay), nil)
	to := localPort(p)
	good := []byte{0, 0, 0, 1, 192, 0, 2, 7, 0, 53, 'o', 'k'}
	answer(t, stranger, to, good)
	answer(t, udp, to, nil)
	answer(t, udp, to, []byte{0, 0, 0})
	answer(t, udp, to, []byte{0, 0, 0, 3, 0, 0, 53})
	answer(t, udp, to, []byte{0, 0, 0, 7, 1, 2, 3, 4, 0, 53})
	answer(t, udp, to, append([]byte{0, 0, 1}, good[3:]...))
	answer(t, udp, to, append([]byte{9, 9, 0}, good[3:]...)) // RSV is not judged
	buf := make([]byte, 64)
	n, from, err := p.ReadFromAddr(buf)
	if err != nil || string(buf[:n]) != "ok" || from != dstIPv4 {
		t.Fatalf("read %q from %v, %v", buf[:n], from, err)
	}
	wrong, last := p.WrongSource()
	if wrong != 1 || last != strangerAddr || p.Malformed() != 4 || p.Fragments() != 1 {
		t.Errorf("wrong source %d (%v), malformed %d, fragments %d; want 1 (%v), 4, 1",
			wrong, last, p.Malformed(), p.Fragments(), strangerAddr)
	}
}

func TestTheLargestDatagramPassesAndOneByteMoreDoesNot(t *testing.T) {
	udp, relay := relaySocket(t)
	p := associate(t, AddrFrom(relay), nil)
	payload := bytes.Repeat([]byte{7}, 65507-10)
	if _, err := p.WriteToAddr(append(payload, 7), dstIPv4); !errors.Is(err, ErrDatagramSize) {
		t.Errorf("65,498 bytes: error %v", err)
	}
	if n, err := p.WriteToAddr(payload, dstIPv4); n != len(payload) || err != nil {
		t.Fatalf("65,497 bytes: %d, %v", n, err)
	}
	buf := make([]byte, 1<<16)
	n, from, err := udp.ReadFromUDPAddrPort(buf)
	if err != nil || n != 65507 {
		t.Fatalf("relay read %d, %v", n, err)
	}
	answer(t, udp, from, buf[:n])
	n, _, err = p.ReadFromAddr(buf)
	if err != nil || !bytes.Equal(buf[:n], payload) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

func TestTheEndOfTheControlConnectionEndsTheAssociation(t *testing.T) {
	_, relay := relaySocket(t)
	hangUp := make(chan struct{})
	p := associate(t, AddrFrom(relay), hangUp)
	close(hangUp)
	_, _, err := p.ReadFrom(make([]byte, 1))
	if !errors.Is(err, ErrAssociationEnded) || errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v, want ErrAssociationEnded", err)
	}
	if _, err := p.WriteToAddr(nil, dstIPv4); !errors.Is(err, ErrAssociationEnded) {
		t.Errorf("write: %v, want ErrAssociationEnded", err)
	}
}

func TestCloseEndsTheControlConnectionAndWaitingReads(t *testing.T) {
	_, relay := relaySocket(t)
	p := associate(t, AddrFrom(relay), nil) // its server returns when the control connection ends
	read := make(chan error)
	go func() {
		_, _, err := p.ReadFromAddr(make([]byte, 1))
		read <- err
	}()
	p.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v, want net.ErrClosed", err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestARoundTripAllocatesNothing(t *testing.T) {
	udp, relay := relaySocket(t)
	p := associate(t, AddrFrom(relay), nil)
	payload, buf, raw := make([]byte, 512), make([]byte, 512), make([]byte, 1024)
	trip := func(read func()) float64 {
		return testing.AllocsPerRun(100, func() {
			p.WriteToAddr(payload, dstIPv4)
			n, from, _ := udp.ReadFromUDPAddrPort(raw)
			udp.WriteToUDPAddrPort(raw[:n], from)
			read()
		})
	}
	if n := trip(func() { p.ReadFromAddr(buf) }); n != 0 {
		t.Errorf("%v allocations with ReadFromAddr", n)
	}
	if n := trip(func() { p.ReadFrom(buf) }); n != 0 {
		t.Errorf("%v allocations with ReadFrom", n)
	}
}

func TestNothingHidesTheDestinationBehindTheSocketBelow(t *testing.T) {
	var p any = (*PacketConn)(nil)
	if _, ok := p.(interface{ SetReadBuffer(int) error }); ok {
		t.Error("PacketConn exposes SetReadBuffer")
	}
	if _, ok := p.(interface{ SyscallConn() (any, error) }); ok {
		t.Error("PacketConn exposes SyscallConn")
	}
}

func FuzzTheClientsReplyParsers(f *testing.F) {
	f.Add([]byte{5, 0})
	f.Add([]byte{5, 0xff})
	f.Add([]byte{5, 0, 0, 1, 10, 0, 0, 1, 0x12, 0x34, 'x'})
	f.Add(append([]byte{5, 0, 0, 4}, make([]byte, 18)...))
	f.Add([]byte{5, 0, 0, 3, 4, 'h', 'o', 's', 't', 0, 80})
	f.Add([]byte{5, 0, 0, 3, 0, 0, 80})
	f.Add([]byte{5, 5, 0, 1})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		readMethod(bytes.NewReader(b))
		readAuthStatus(bytes.NewReader(b))
		r := bytes.NewReader(b)
		bound, err := readReply(r)
		if err != nil {
			return
		}
		taken := len(b) - r.Len()
		if b[3] == TypeName {
			return // a name may be an address in text form, or empty
		}
		if again := AppendAddr([]byte{5, 0, b[2]}, bound); !mapped(b) && !bytes.Equal(again, b[:taken]) {
			t.Errorf("% x became %v, which is % x", b[:taken], bound, again)
		}
	})
}

// mapped says whether a reply carries an IPv4-mapped address, which does not
// stay as it was.
func mapped(b []byte) bool {
	return b[3] == TypeIPv6 && netip.AddrFrom16([16]byte(b[4:20])).Is4In6()
}

func FuzzReplyDatagrams(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 1, 192, 0, 2, 7, 0, 53, 'o', 'k'})
	f.Add([]byte{0, 0, 1, 1, 192, 0, 2, 7, 0, 53})
	f.Add([]byte{0, 0, 0, 3, 1, 'a', 0, 53})
	f.Add([]byte{0, 0, 0, 3, 0, 0, 53})
	f.Add(append([]byte{0, 0, 0, 4}, make([]byte, 18)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		from, body, err := splitReplyDatagram(b)
		if err != nil {
			return
		}
		if b[2] != 0 || from.encodable() != nil || !bytes.HasSuffix(b, body) {
			t.Errorf("% x became %v and % x", b, from, body)
		}
	})
}

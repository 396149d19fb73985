package socks

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"wmproxy/internal/udpio"
)

// scriptedConn is a udpio.Conn that a test feeds, and that keeps what is sent.
type scriptedConn struct {
	udpio.Conn
	remote  netip.AddrPort
	receive func(b []byte, err error)
	sent    []byte
	halved  bool
	over    bool
}

func (c *scriptedConn) Start(receive func(b []byte, err error)) error {
	c.receive = receive
	return nil
}

func (c *scriptedConn) Write(b []byte) (int, error) {
	c.sent = append(c.sent, b...)
	return len(b), nil
}

func (c *scriptedConn) CloseWrite() error { c.halved = true; return nil }
func (c *scriptedConn) HangUp()           {}
func (c *scriptedConn) Close() error      { c.over = true; return nil }

func (c *scriptedConn) Detach() (net.Conn, error) {
	c.over = true
	near, far := net.Pipe()
	far.Close()
	return near, nil
}

func (c *scriptedConn) RemoteAddr() netip.AddrPort { return c.remote }
func (c *scriptedConn) LocalAddr() netip.AddrPort  { return netip.MustParseAddrPort("127.0.0.1:1080") }

// outcome is what became of a handshake.
type outcome struct {
	sent    string
	dst     string // of a CONNECT
	ahead   string // what came behind the request
	refused bool
	closed  bool
}

// handshake feeds a server what a client sends, in the given pieces.
func handshake(username string, pieces ...[]byte) outcome {
	var o outcome
	s := &Server{
		Username: username,
		Connect: func(_ context.Context, r *ConnectRequest) {
			o.dst, o.ahead = string(r.DstWire), string(r.Ahead)
			r.replied = true
		},
	}
	sv := &serving{Server: s, ctx: context.Background()}
	c := &scriptedConn{}
	sv.visited(c)
	for _, piece := range pieces {
		if !c.over && len(piece) > 0 { // what is left stays in the connection
			c.receive(bytes.Clone(piece), nil)
		}
	}
	o.refused, o.closed = c.halved, c.over
	if !c.over {
		c.receive(nil, errors.New("the test is over"))
	}
	sv.wg.Wait()
	o.sent = string(c.sent)
	return o
}

// FuzzHandshake has a client send the same in one piece, in two and byte by byte.
func FuzzHandshake(f *testing.F) {
	f.Add(append([]byte{5, 1, 0}, connectTo(target4)...), false, uint16(3))
	f.Add(append(append([]byte{5, 1, 0}, connectTo(target4)...), "GET /"...), false, uint16(14))
	f.Add(append([]byte{5, 2, 0, 2, 1, 1, 'u', 0}, connectTo(wireName("example.org", 80))...), true, uint16(5))
	f.Add(append([]byte{5, 1, 2, 1, 1, 'u', 1, 'p'}, connectTo(target4)...), true, uint16(7))
	f.Add([]byte{5, 0}, true, uint16(1))
	f.Add([]byte{5, 0, '0'}, true, uint16(2))
	f.Add([]byte{4, 1, 0, 80, 1, 2, 3, 4, 0}, false, uint16(1))
	f.Add([]byte{5, 1, 2, 1, 0, 0, 5, 3, 0, 3, 0, 0, 0}, false, uint16(6))
	f.Add(append([]byte{5, 1, 0, 5, 1, 0, 4}, make([]byte, 18)...), false, uint16(9))
	f.Add([]byte{5, 1, 0, 5, 1, 0, 9, 0}, false, uint16(7))
	f.Fuzz(func(t *testing.T, in []byte, passwordSet bool, cut uint16) {
		if len(in) > 2048 {
			return
		}
		username := ""
		if passwordSet {
			username = "u"
		}
		whole := handshake(username, in)
		if whole.dst != "" {
			// What is connected to, and what comes ahead, is the end of what was sent.
			if !bytes.HasSuffix(in, []byte(whole.dst+whole.ahead)) {
				t.Fatalf("CONNECT to % x with % x ahead, after % x", whole.dst, whole.ahead, in)
			}
			if _, _, err := ParseAddr([]byte(whole.dst)); err != nil {
				t.Fatalf("CONNECT to % x: %v", whole.dst, err)
			}
		}
		if passwordSet && whole.dst != "" && !bytes.Contains(in, []byte{1, 1, 'u', 0}) {
			t.Fatalf("let in without the password: % x", in)
		}
		at := int(cut) % (len(in) + 1)
		single := make([][]byte, len(in))
		for i := range in {
			single[i] = in[i : i+1]
		}
		for what, pieces := range map[string][][]byte{"in two pieces": {in[:at], in[at:]}, "byte by byte": single} {
			got := handshake(username, pieces...)
			// Behind the request, only what comes with it has been read.
			if got.dst != whole.dst || len(got.ahead) > len(whole.ahead) || whole.ahead[:len(got.ahead)] != got.ahead {
				t.Fatalf("%s: CONNECT to % x with % x ahead, in one piece % x with % x", what, got.dst, got.ahead, whole.dst, whole.ahead)
			}
			if got.sent != whole.sent || got.refused != whole.refused || got.closed != whole.closed {
				t.Fatalf("%s: %+v, in one piece %+v", what, got, whole)
			}
		}
	})
}

// What a client sends is kept while a message is not whole, and that is bounded.
func TestANegotiationHoldsNoMoreThanOneMessage(t *testing.T) {
	password := append([]byte{1, 255}, make([]byte, 255)...)
	password = append(append(password, 255), make([]byte, 254)...) // one byte short
	sv := &serving{Server: &Server{Username: "u", Connect: refuseAll}, ctx: context.Background()}
	c := &scriptedConn{}
	sv.visited(c)
	c.receive([]byte{5, 1, 2}, nil)
	for _, b := range password {
		c.receive([]byte{b}, nil)
	}
	if string(c.sent) != "\x05\x02" {
		t.Errorf("sent % x before the password was whole", c.sent)
	}
	c.receive([]byte{0}, nil)
	if want := "\x05\x02\x01\x01"; string(c.sent) != want || !c.halved {
		t.Errorf("sent % x, half-closed: %v", c.sent, c.halved)
	}
	// A client that was refused may go on for 64 KiB.
	junk := make([]byte, 512)
	for n := 0; !c.over; n += len(junk) {
		if n > lingerBytes {
			t.Fatalf("still open after %d bytes", n)
		}
		c.receive(junk, nil)
	}
	done := make(chan struct{})
	go func() { sv.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("the visit does not end")
	}
}

package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/udpio"
)

// script is a connection whose other side sends pieces and then ends. It keeps what it is sent.
type script struct {
	net.Conn
	remote string
	pieces [][]byte

	mu     sync.Mutex
	sent   []byte
	halved bool // our side was ended
	ended  bool // the end of the pieces was read
	once   sync.Once
	closed chan struct{}
}

func (c *script) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.pieces) > 0 && len(c.pieces[0]) == 0 {
		c.pieces = c.pieces[1:]
	}
	if len(c.pieces) == 0 {
		c.ended = true
		return 0, io.EOF
	}
	n := copy(b, c.pieces[0])
	c.pieces[0] = c.pieces[0][n:]
	return n, nil
}

func (c *script) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent = append(c.sent, b...)
	return len(b), nil
}

func (c *script) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.halved = true
	return nil
}

func (c *script) SetReadDeadline(time.Time) error  { return nil }
func (c *script) SetWriteDeadline(time.Time) error { return nil }

func (c *script) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *script) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.remote))
}

func (c *script) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:1080"))
}

// oneConn is a listener with one connection.
type oneConn struct{ conns chan net.Conn }

func (l oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l oneConn) Close() error   { close(l.conns); return nil }
func (l oneConn) Addr() net.Addr { return &net.UnixAddr{} }

// serve has s serve c until it is closed.
func serve(s *Server, c *script) {
	c.closed = make(chan struct{})
	ln := oneConn{make(chan net.Conn, 1)}
	ln.conns <- c
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-c.closed
		cancel()
	}()
	_ = at(s).Serve(ctx, ln)
}

// outcome is what became of a handshake.
type outcome struct {
	sent    string
	dst     string // of a CONNECT
	ahead   string // what came behind the request
	refused bool
	closed  bool // before the other side ended
}

// handshake feeds a server what a client sends, in the given pieces.
func handshake(password string, pieces ...[]byte) outcome {
	var o outcome
	s := &Server{
		Users: oneUser("", password),
		Handler: handler{
			connect: func(_ context.Context, r *entrance.Request) {
				o.dst, o.ahead = r.Target.String(), string(r.Ahead)
				_ = r.Reply(entrance.OK, netip.AddrPort{})
			},
			associate: func(*Association) (entrance.Uplink, entrance.Result) { return nil, entrance.UnknownCommand },
		},
	}
	c := &script{remote: "192.0.2.1:4000", pieces: pieces}
	serve(s, c)
	o.sent, o.refused, o.closed = string(c.sent), c.halved, !c.ended
	return o
}

// FuzzHandshake has a client send the same in one piece, in two and byte by byte.
func FuzzHandshake(f *testing.F) {
	f.Add(append([]byte{5, 1, 0}, connectTo(target4)...), false, uint16(3))
	f.Add(append(append([]byte{5, 1, 0}, connectTo(target4)...), "GET /"...), false, uint16(14))
	f.Add(append([]byte{5, 2, 0, 2, 1, 0, 1, 'p'}, connectTo(wireName("example.org", 80))...), true, uint16(5))
	f.Add(append([]byte{5, 1, 2, 1, 1, 'u', 1, 'p'}, connectTo(target4)...), true, uint16(7))
	f.Add([]byte{5, 0}, true, uint16(1))
	f.Add([]byte{5, 0, '0'}, true, uint16(2))
	f.Add([]byte{4, 1, 0, 80, 1, 2, 3, 4, 0}, false, uint16(1))
	f.Add([]byte{4, 1, 0, 80, 0, 0, 0, 1, 'u', 0, 'n', 0, 'x'}, false, uint16(11))
	f.Add([]byte{4, 1, 0, 80, 1, 2, 3, 4, 0}, true, uint16(8))
	f.Add([]byte{5, 1, 2, 1, 0, 0, 5, 3, 0, 3, 0, 0, 0}, false, uint16(6))
	f.Add(append([]byte{5, 1, 0, 5, 1, 0, 4}, make([]byte, 18)...), false, uint16(9))
	f.Add([]byte{5, 1, 0, 5, 1, 0, 9, 0}, false, uint16(7))
	f.Fuzz(func(t *testing.T, in []byte, passwordSet bool, cut uint16) {
		if len(in) > 2048 {
			return
		}
		password := ""
		if passwordSet {
			password = "p"
		}
		whole := handshake(password, in)
		if whole.dst != "" && in[0] == version {
			// The target, and what comes ahead, is the end of what was sent.
			rest, ok := bytes.CutSuffix(in, []byte(whole.ahead))
			if !ok {
				t.Fatalf("CONNECT with % x ahead, after % x", whole.ahead, in)
			}
			found := false
			for i := range rest {
				dst, n, err := ParseAddr(rest[i:])
				found = found || err == nil && n == len(rest)-i && dst.target().String() == whole.dst
			}
			if !found {
				t.Fatalf("CONNECT to %s, after % x", whole.dst, in)
			}
		}
		if passwordSet && whole.dst != "" && !bytes.Contains(in, []byte{1, 0, 1, 'p'}) {
			t.Fatalf("let in without the password: % x", in)
		}
		at := int(cut) % (len(in) + 1)
		single := make([][]byte, len(in))
		for i := range in {
			single[i] = in[i : i+1]
		}
		for name, pieces := range map[string][][]byte{"in two pieces": {in[:at], in[at:]}, "byte by byte": single} {
			got := handshake(password, pieces...)
			// Behind the request, only what comes with it has been read.
			if got.dst != whole.dst || len(got.ahead) > len(whole.ahead) || whole.ahead[:len(got.ahead)] != got.ahead {
				t.Fatalf("%s: CONNECT to %q with % x ahead, in one piece %q with % x", name, got.dst, got.ahead, whole.dst, whole.ahead)
			}
			if got.sent != whole.sent || got.refused != whole.refused || got.closed != whole.closed {
				t.Fatalf("%s: %+v, in one piece %+v", name, got, whole)
			}
		}
	})
}

// held is a udpio.Conn that takes all that it is sent.
type held struct{ udpio.Conn }

func (held) Write(b []byte) (int, error) { return len(b), nil }

func TestNegotiationHoldsOneMessageAtMost(t *testing.T) {
	password := append([]byte{1, 255}, make([]byte, 255)...)
	password = append(append(password, 255), make([]byte, 254)...) // one byte short
	s := &Server{Users: oneUser("u", "p")}
	n := s.Begin(&entrance.Conn{Conn: held{}}, version).(*negotiation)
	for _, b := range append([]byte{5, 1, 2}, password...) {
		if err := n.Receive([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.held) != len(password) || cap(n.held) > 1024 {
		t.Errorf("%d bytes are held, with room for %d", len(n.held), cap(n.held))
	}
	if err := n.Receive([]byte{0}); !errors.Is(err, entrance.ErrCredentials) {
		t.Errorf("the whole password: %v", err)
	}
}

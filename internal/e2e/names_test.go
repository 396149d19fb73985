package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/socks"
)

// featureNamedAnswers and typeNameAnswered are the feature bit and the address type of
// docs/PROTOCOL.md.
const (
	featureNamedAnswers = 1
	typeNameAnswered    = 0x83
)

// localName is a name that every machine knows, in an unusual spelling.
const localName = "LocalHost"

// nameDatagram returns the body of a record to or from a name.
func nameDatagram(kind byte, name string, port uint16, payload string) []byte {
	b := append([]byte{kind, byte(len(name))}, name...)
	return append(append(b, byte(port>>8), byte(port)), payload...)
}

// asks sends the body of a datagram until an answer with its payload arrives, and returns it.
func (a *application) asks(c *net.UDPConn, body []byte, payload string) []byte {
	a.t.Helper()
	b := make([]byte, 2048)
	for began := time.Now(); time.Since(began) < waitTimeout; {
		if _, err := c.WriteToUDPAddrPort(append([]byte{0, 0, 0}, body...), a.relay); err != nil {
			a.t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(retryAfter))
		for {
			n, _, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				break
			}
			if bytes.HasSuffix(b[:n], []byte(payload)) && bytes.HasPrefix(b[:n], []byte{0, 0, 0}) {
				return bytes.Clone(b[3:n])
			}
		}
	}
	return nil
}

func TestRepliesToANameCarryTheName(t *testing.T) {
	target := startMemo(t)
	port := target.addr.Port()
	for _, kind := range []string{overProxy, overQUIC, overYamux} {
		for _, answers := range []string{"", "name", "address"} {
			t.Run(kind+" "+answers, func(t *testing.T) {
				t.Parallel()
				var flags []string
				if answers != "" {
					flags = []string{"--udp-answers", answers}
				}
				a := associateFrom(t, startOver(t, kind, nil, flags).Entry.Addr.String(), "", nowhere, false)
				c := udpAt(t, "127.0.0.1")
				byName := nameDatagram(socks.TypeName, localName, port, "by name")
				want := byName
				if answers == "address" {
					want = datagram(target.addr, []byte("by name"))
				}
				if got := a.asks(c, byName, "by name"); !bytes.Equal(got, want) {
					t.Errorf("by name: got %q, want %q", got, want)
				}
				byAddress := datagram(target.addr, []byte("by address"))
				if got := a.asks(c, byAddress, "by address"); !bytes.Equal(got, byAddress) {
					t.Errorf("by address: got %q, want %q", got, byAddress)
				}
			})
		}
	}
}

// An old client announces no features and gets addresses.
func TestNamesAreSentOnlyIfRequested(t *testing.T) {
	target := startMemo(t)
	port := target.addr.Port()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t)
		for _, c := range []struct {
			what     string
			features []byte
			up, down []byte
		}{
			{"old client", nil, nameDatagram(3, localName, port, "old"), datagram(target.addr, []byte("old"))},
			{"new client that does not ask", varints(featureNamedAnswers), nameDatagram(3, localName, port, "plain"), datagram(target.addr, []byte("plain"))},
			{"new client", varints(featureNamedAnswers), nameDatagram(typeNameAnswered, localName, port, "new"), nameDatagram(3, localName, port, "new")},
		} {
			sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true, features: c.features})
			if sp.features&featureNamedAnswers == 0 {
				t.Errorf("%s: WELCOME has the features %x", c.what, sp.features)
			}
			for _, got := range sp.echoed([][]byte{wireRecord(2, c.up)}, c.down) {
				if got[0] != c.down[0] {
					t.Errorf("%s: got %q", c.what, got)
				}
			}
		}
	})
}

// wireServer is a server over yamux, written from docs/PROTOCOL.md, as far as one datagram needs
// it. It echoes each datagram, except for its ATYP.
type wireServer struct {
	features []byte // at the end of WELCOME; nil for an old server
	kinds    chan byte
}

func (w *wireServer) serve(conn net.Conn) {
	_ = conn.SetDeadline(time.Time{}) // until the client ends
	if kind, _, err := readWire(conn); err != nil || kind != typeHello {
		return
	}
	welcome := append(varints(wireVersion), make([]byte, 17)...)
	welcome = append(append(welcome, varints(1000, 1000, 1000)...), w.features...)
	if _, err := conn.Write(wireMessage(typeWelcome, welcome)); err != nil {
		return
	}
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false
	cfg.LogOutput = io.Discard
	y, err := yamux.Server(conn, cfg)
	if err != nil {
		return
	}
	defer y.Close()
	var three [3]*yamux.Stream
	for i := range three {
		if three[i], err = y.AcceptStream(); err != nil {
			return
		}
	}
	go func() { _, _ = io.Copy(io.Discard, three[0]) }()
	r := bufio.NewReader(three[1])
	for {
		n, err := quicvarint.Read(r)
		if err != nil || n > wireMaxBundle {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		flow, m, err := quicvarint.Parse(b)
		if err != nil || flow == 0 { // a probe, which it does not answer
			continue
		}
		length, k, err := quicvarint.Parse(b[m:])
		if err != nil || uint64(len(b)) < uint64(m+k)+length>>1 {
			return
		}
		body := b[m+k:][:length>>1]
		select {
		case w.kinds <- body[0]:
		default:
		}
		answer := wireRecord(flow, append([]byte{socks.TypeName}, body[1:]...))
		if _, err := three[1].Write(append(varints(uint64(len(answer))), answer...)); err != nil {
			return
		}
	}
}

func TestNamesAreRequestedOnlyIfSupported(t *testing.T) {
	for _, c := range []struct {
		what     string
		features []byte
		want     byte
	}{
		{"old server", nil, socks.TypeName},
		{"server with other features", varints(1 << 20), socks.TypeName},
		{"new server", varints(1<<20 | featureNamedAnswers), typeNameAnswered},
	} {
		t.Run(c.what, func(t *testing.T) {
			id, ln := newIdentity(t), listenTCP(t, "127.0.0.1:0")
			w := &wireServer{features: c.features, kinds: make(chan byte, 1)}
			conf := &tls.Config{Certificates: []tls.Certificate{*id.Certificate()}, NextProtos: []string{wireALPN}}
			serveEach(t, tls.NewListener(ln, conf), w.serve)
			l := linkTo(id, ln.Addr())
			client := startClientAlone(t, l.Text(), "--transport", "yamux")
			client.waitUp()
			a := associateFrom(t, client.Addr.String(), "", nowhere, false)
			if a.asks(udpAt(t, "127.0.0.1"), nameDatagram(socks.TypeName, "game.test", 7000, "x"), "x") == nil {
				t.Fatal("no answer")
			}
			if got := <-w.kinds; got != c.want {
				t.Errorf("the name goes up as type %#x, want %#x", got, c.want)
			}
		})
	}
}

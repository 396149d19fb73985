package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/internal/link"
	"wmproxy/socks"
)

// This file is a second implementation of the client's side of the protocol, written from
// docs/PROTOCOL.md without package tunnel. It can send what an honest client sends, and what
// it never sends.

// Message types, codes and bounds of docs/PROTOCOL.md.
const (
	wireALPN = "wmproxy/1"

	typeEnd, typePing, typeEndAck, typePong = 1, 2, 3, 4
	typeHello, typeWelcome, typeRefuse      = 65, 67, 69
	typeRenew                               = 71

	codeProtocol, codeAuth, codeTimeout, codeLimit, codeSession = 2, 5, 6, 7, 8

	wireVersion     = 2
	wireMaxMessage  = 4096
	wireMaxBundle   = 16384
	wireMaxSentence = 256
	wireWindow      = 4 << 20 // of a yamux stream

	// hangUpAfter is the time for the server to hang up after a close.
	hangUpAfter = 300 * time.Millisecond
)

func wireMessage(kind uint64, payload []byte) []byte {
	b := quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(payload)))
	return append(b, payload...)
}

func wireText(b []byte, s string) []byte {
	return append(quicvarint.Append(b, uint64(len(s))), s...)
}

// wireSession is the state of a session in a client.
type wireSession struct {
	id     [16]byte
	secret [32]byte
}

func newWireSession() *wireSession {
	s := new(wireSession)
	_, _ = rand.Read(s.id[:])
	_, _ = rand.Read(s.secret[:])
	return s
}

// wireHello is the fields of a Hello. hello replaces zero fields by valid values.
type wireHello struct {
	min, max    uint64
	user, token string
	attach      uint64
	withSecret  bool
	proof       []byte // instead of the valid one
	features    []byte // a varint; nil for an old client
}

// connection is a connection after TLS, and its stream for the handshake.
type connection struct {
	t        testing.TB
	kind     byte // 1 QUIC, 2 yamux
	stream   io.ReadWriter
	exporter func() ([]byte, error)
	quic     *quic.Conn // of QUIC
	first    *quic.Stream
	tls      *tls.Conn // of yamux
}

// wireTLS returns a configuration that accepts any certificate, as an attacker would.
func wireTLS(alpn ...string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: alpn}
}

// dialWire connects over a transport, up to the end of TLS.
func dialWire(t testing.TB, kind string, addr netip.AddrPort, alpn ...string) *connection {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if kind == overQUIC {
		conn, err := quic.DialAddr(ctx, addr.String(), wireTLS(alpn...), &quic.Config{EnableDatagrams: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.CloseWithError(0, "") })
		state := conn.ConnectionState().TLS
		return &connection{t: t, kind: 1, quic: conn, exporter: func() ([]byte, error) {
			return state.ExportKeyingMaterial("EXPORTER-wmproxy-attach", nil, 32)
		}}
	}
	d := tls.Dialer{Config: wireTLS(alpn...)}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	conn := c.(*tls.Conn)
	t.Cleanup(func() { conn.NetConn().Close() })
	state := conn.ConnectionState()
	return &connection{t: t, kind: 2, tls: conn, stream: conn, exporter: func() ([]byte, error) {
		return state.ExportKeyingMaterial("EXPORTER-wmproxy-attach", nil, 32)
	}}
}

// open opens the handshake's stream, which on TCP is the connection itself.
func (c *connection) open() {
	c.t.Helper()
	if c.kind == 1 && c.first == nil {
		s, err := c.quic.OpenStream()
		if err != nil {
			c.t.Fatal(err)
		}
		c.first, c.stream = s, s
	}
}

// hello returns a Hello for this connection.
func (c *connection) hello(l link.Link, s *wireSession, h wireHello) []byte {
	c.t.Helper()
	if h.min == 0 {
		h.min = wireVersion
	}
	if h.max == 0 {
		h.max = wireVersion
	}
	if h.user == "" {
		h.user = l.Name
	}
	if h.token == "" {
		h.token = l.Secret
	}
	exporter, err := c.exporter()
	if err != nil {
		c.t.Fatal(err)
	}
	if h.proof == nil {
		m := hmac.New(sha256.New, s.secret[:])
		m.Write([]byte("wmproxy attach"))
		m.Write([]byte{c.kind})
		m.Write(binary.BigEndian.AppendUint64(nil, h.attach))
		m.Write(s.id[:])
		m.Write(exporter)
		h.proof = m.Sum(nil)
	}
	b := quicvarint.Append(quicvarint.Append(nil, h.min), h.max)
	b = wireText(wireText(b, h.user), h.token)
	b = quicvarint.Append(append(b, s.id[:]...), h.attach)
	b = append(b, h.proof...)
	if h.withSecret {
		b = append(append(b, 1), s.secret[:]...)
	} else {
		b = append(b, 0)
	}
	return wireMessage(typeHello, append(b, h.features...))
}

// readWire reads a message byte by byte, so that it leaves the rest of the stream.
func readWire(r io.Reader) (kind uint64, payload []byte, err error) {
	one := bufio.NewReaderSize(oneByte{r}, 16)
	if kind, err = quicvarint.Read(one); err != nil {
		return 0, nil, err
	}
	n, err := quicvarint.Read(one)
	if err != nil {
		return 0, nil, err
	}
	if n > wireMaxMessage {
		return 0, nil, fmt.Errorf("a message of %d bytes", n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(one, payload)
	return kind, payload, err
}

// oneByte reads a byte at a time.
type oneByte struct{ r io.Reader }

func (i oneByte) Read(p []byte) (int, error) { return i.r.Read(p[:min(1, len(p))]) }

// refusal returns the code of a REFUSE.
func refusal(payload []byte) (uint64, error) {
	code, n, err := quicvarint.Parse(payload)
	if err != nil {
		return 0, err
	}
	length, m, err := quicvarint.Parse(payload[n:])
	if err != nil || length > wireMaxSentence || int(length) != len(payload)-n-m {
		return 0, fmt.Errorf("malformed refusal %x", payload)
	}
	return code, nil
}

// speaker is a client that the server has accepted.
type speaker struct {
	*connection
	resumed  bool
	features uint64
	control  *bufio.Reader // reads from it
	write    io.Writer     // writes to the control stream
	send     func(bundle []byte) error
	receive  func() ([]byte, error)
	stream   func() (wireStream, error)
	closed   func() error // waits for the end of the carrier and returns the reason
	bundles  io.Writer    // the second yamux stream
	signals  io.Writer    // the third one
}

// wireStream is a stream for data, without its framing.
type wireStream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// greet sends a Hello and returns the answer.
func (c *connection) greet(l link.Link, s *wireSession, h wireHello) (kind uint64, payload []byte) {
	c.t.Helper()
	c.open()
	if _, err := c.stream.Write(c.hello(l, s, h)); err != nil {
		c.t.Fatal(err)
	}
	kind, payload, err := readWire(c.stream)
	if err != nil {
		c.t.Fatalf("waiting for the answer to Hello: %v", err)
	}
	return kind, payload
}

// attach connects, authenticates and opens the streams of the carrier.
func attach(t testing.TB, kind string, srv *serverProcess, s *wireSession, h wireHello) *speaker {
	t.Helper()
	l := parsed(t, srv)
	c := dialWire(t, kind, srv.Addr, wireALPN)
	answer, payload := c.greet(l, s, h)
	if answer != typeWelcome {
		t.Fatalf("Hello was answered by a message of type %d: %q", answer, payload)
	}
	version, n, err := quicvarint.Parse(payload)
	if err != nil || version != wireVersion || len(payload) < n+17 {
		t.Fatalf("malformed Welcome %x", payload)
	}
	sp := &speaker{connection: c, resumed: payload[n+16] == 1}
	// Three limits, and then the features, if there are any.
	for rest, i := payload[n+17:], 0; len(rest) > 0 && i < 4; i++ {
		v, m, err := quicvarint.Parse(rest)
		if err != nil {
			t.Fatalf("malformed Welcome %x", payload)
		}
		if rest = rest[m:]; i == 3 {
			sp.features = v
		}
	}
	if kind == overQUIC {
		sp.startQUIC()
	} else {
		sp.startYamux()
	}
	return sp
}

func parsed(t testing.TB, srv *serverProcess) link.Link {
	t.Helper()
	l, err := link.Parse(srv.Link)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (sp *speaker) startQUIC() {
	conn := sp.quic
	sp.control, sp.write = bufio.NewReader(sp.first), sp.first
	sp.send = conn.SendDatagram
	sp.receive = func() ([]byte, error) {
		ctx, cancel := context.WithTimeout(sp.t.Context(), waitTimeout)
		defer cancel()
		return conn.ReceiveDatagram(ctx)
	}
	sp.stream = func() (wireStream, error) { return conn.OpenStream() }
	sp.closed = func() error {
		select {
		case <-conn.Context().Done():
			return context.Cause(conn.Context())
		case <-time.After(waitTimeout):
			return errors.New("the connection is still open")
		}
	}
}

func (sp *speaker) startYamux() {
	t := sp.t
	t.Helper()
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive = false
	cfg.Logger, cfg.LogOutput = log.New(io.Discard, "", 0), nil
	y, err := yamux.Client(sp.tls, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { y.Close() })
	var three [3]*yamux.Stream
	for i := range three {
		if three[i], err = y.OpenStream(); err != nil {
			t.Fatal(err)
		}
	}
	bundles := bufio.NewReaderSize(three[1], 64<<10)
	sp.control, sp.write, sp.signals = bufio.NewReader(three[0]), three[0], three[2]
	sp.bundles = three[1]
	sp.send = func(b []byte) error {
		_, err := three[1].Write(append(quicvarint.Append(nil, uint64(len(b))), b...))
		return err
	}
	sp.receive = func() ([]byte, error) {
		if err := three[1].SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
			return nil, err
		}
		n, err := quicvarint.Read(bundles)
		if err != nil {
			return nil, err
		}
		if n > wireMaxBundle {
			return nil, fmt.Errorf("a bundle of %d bytes", n)
		}
		b := make([]byte, n)
		_, err = io.ReadFull(bundles, b)
		return b, err
	}
	sp.stream = func() (wireStream, error) { return y.OpenStream() }
	sp.closed = func() error {
		signal := bufio.NewReader(three[2])
		if err := three[2].SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
			return err
		}
		kind, err := signal.ReadByte()
		if err != nil {
			return err
		}
		code, err := quicvarint.Read(signal)
		if err != nil || kind != 0 {
			return fmt.Errorf("signal %d, %v", kind, err)
		}
		select {
		case <-y.CloseChan():
		case <-time.After(hangUpAfter): // as the protocol says
			y.Close()
		}
		return wireClose(code)
	}
}

// wireClose is the code with which a carrier was closed.
type wireClose uint64

func (c wireClose) Error() string { return fmt.Sprintf("closed with code %d", uint64(c)) }

// closeCode returns the code in an error of closed.
func closeCode(err error) (uint64, bool) {
	var app *quic.ApplicationError
	if errors.As(err, &app) {
		return uint64(app.ErrorCode), app.Remote
	}
	var code wireClose
	return uint64(code), errors.As(err, &code)
}

// say sends a message on the control stream.
func (sp *speaker) say(kind uint64, payload []byte) {
	sp.t.Helper()
	if _, err := sp.write.Write(wireMessage(kind, payload)); err != nil {
		sp.t.Fatal(err)
	}
}

// hear reads messages until one of the type and returns its varints.
func (sp *speaker) hear(want uint64) []uint64 {
	sp.t.Helper()
	cut := time.AfterFunc(waitTimeout, sp.hangUp)
	defer cut.Stop()
	for {
		kind, payload, err := readWire(sp.control)
		if err != nil {
			sp.t.Fatalf("waiting for a message of type %d: %v", want, err)
		}
		if kind != want {
			continue
		}
		var values []uint64
		for len(payload) > 0 {
			v, n, err := quicvarint.Parse(payload)
			if err != nil {
				sp.t.Fatal(err)
			}
			values, payload = append(values, v), payload[n:]
		}
		return values
	}
}

// hangUp closes the connection without a message.
func (sp *speaker) hangUp() {
	if sp.quic != nil {
		sp.quic.CloseWithError(0, "")
	} else {
		sp.tls.NetConn().Close()
	}
}

// answers checks that the carrier is alive by a PING.
func (sp *speaker) answers(id uint64) {
	sp.t.Helper()
	sp.say(typePing, varints(id, 0, 0))
	for {
		if got := sp.hear(typePong); got[0] == id {
			return
		}
	}
}

func varints(values ...uint64) (b []byte) {
	for _, v := range values {
		b = quicvarint.Append(b, v)
	}
	return b
}

// datagram returns the body of a record: address, port and payload.
func datagram(to netip.AddrPort, payload []byte) []byte {
	return append(socks.AppendAddrPort(nil, to), payload...)
}

// wireRecord returns the record of a whole datagram.
func wireRecord(flow uint64, body []byte) []byte {
	return append(varints(flow, uint64(len(body))<<1), body...)
}

// wireFragment returns the record of a fragment.
func wireFragment(flow uint64, message uint16, index, count byte, body []byte) []byte {
	b := varints(flow, uint64(len(body))<<1|1)
	b = append(binary.BigEndian.AppendUint16(b, message), index, count)
	return append(b, body...)
}

// records returns the whole datagrams in a bundle.
func records(t testing.TB, b []byte) (found [][]byte) {
	t.Helper()
	for len(b) > 0 {
		flow, n, err := quicvarint.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		if b = b[n:]; flow == 0 && (len(b) == 0 || b[0] == 0) {
			return found // padding
		}
		v, n, err := quicvarint.Parse(b)
		if err != nil || v&1 == 1 || uint64(len(b)-n) < v>>1 {
			t.Fatalf("record of flow %d: %v, length %d", flow, err, v>>1)
		}
		found = append(found, b[n:n+int(v>>1)])
		b = b[n+int(v>>1):]
	}
	return found
}

// echoed sends bundles, again if one is lost, until the datagram that they contain comes back
// from the echo. It returns all datagrams that arrive until then.
func (sp *speaker) echoed(bundles [][]byte, want []byte) (all [][]byte) {
	sp.t.Helper()
	back := make(chan struct{})
	var sender sync.WaitGroup
	defer sender.Wait()
	defer close(back)
	sender.Go(func() {
		again := time.NewTicker(retryAfter)
		defer again.Stop()
		for {
			for _, b := range bundles {
				if err := sp.send(b); err != nil {
					sp.t.Error(err)
					return
				}
			}
			select {
			case <-again.C:
			case <-back:
				return
			}
		}
	})
	for {
		b, err := sp.receive()
		if err != nil {
			sp.t.Fatal(err)
		}
		for _, body := range records(sp.t, b) {
			all = append(all, body)
			if bytes.Equal(body, want) {
				return all
			}
		}
	}
}

// wireKinds are the transports of the tunnel.
var wireKinds = []string{overQUIC, overYamux}

func TestClientWrittenFromDocumentWorks(t *testing.T) {
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t)
		echo := startEcho(t)
		session := newWireSession()
		sp := attach(t, kind, srv, session, wireHello{attach: 1, withSecret: true})
		if sp.resumed {
			t.Error("a new session was resumed")
		}
		sp.answers(77)

		whole := datagram(echo.AddrPort(), []byte("through a record"))
		sp.echoed([][]byte{wireRecord(2, whole)}, whole)
		small := datagram(echo.AddrPort(), bytes.Repeat([]byte("fragments "), 90))
		sp.echoed([][]byte{
			wireFragment(2, 9, 2, 3, small[700:]),
			wireFragment(2, 9, 0, 0, small[:300]),
			wireFragment(2, 9, 1, 0, small[300:700]),
		}, small)
		sp.say(typeEnd, varints(0, 2, 0))
		if got := sp.hear(typeEndAck); got[0] != 1 {
			t.Errorf("END_ACK %v, want 1", got)
		}

		st, err := sp.stream()
		if err != nil {
			t.Fatal(err)
		}
		sp.talk(st, echo)

		// The same session again, without the secret, and an unknown session.
		again := attach(t, kind, srv, session, wireHello{attach: 2})
		if !again.resumed {
			t.Error("a known session was not resumed")
		}
		again.answers(78)
		c := dialWire(t, kind, srv.Addr, wireALPN)
		if answer, _ := c.greet(parsed(t, srv), newWireSession(), wireHello{attach: 3}); answer != typeRenew {
			t.Fatalf("an unknown session was answered by a message of type %d", answer)
		}
		if answer, payload := c.greet(parsed(t, srv), newWireSession(), wireHello{attach: 3, withSecret: true}); answer != typeWelcome {
			t.Fatalf("the renewed session was answered by a message of type %d: %q", answer, payload)
		}
	})
}

// talk connects a stream to the echo, sends data on it and half-closes it.
func (sp *speaker) talk(st wireStream, echo socks.Addr) {
	t := sp.t
	t.Helper()
	if err := st.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	addr := socks.AppendAddrPort(nil, echo.AddrPort())
	text := "streamed"
	out := append([]byte{1, byte(len(addr))}, addr...)
	if sp.kind == 1 {
		out = append(out, text...)
	} else {
		// The header, the data and the end in chunks of their own.
		out = append(append(append([]byte{byte(len(out))}, out...), byte(len(text))), text...)
		out = append(out, 0)
	}
	if _, err := st.Write(out); err != nil {
		t.Fatal(err)
	}
	var in io.Reader = st
	if sp.kind == 1 {
		st.Close() // FIN of our half
	} else {
		in = &chunked{r: bufio.NewReader(st)}
	}
	got, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < 2 || got[0] != 0 || len(got) < 2+int(got[1]) || string(got[2+int(got[1]):]) != text {
		t.Errorf("the stream answered %q", got)
	}
}

// chunked reads the chunks of a yamux stream.
type chunked struct {
	r    *bufio.Reader
	left uint64
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.left == 0 {
		n, err := quicvarint.Read(c.r)
		if err != nil {
			return 0, io.ErrUnexpectedEOF // an end without a chunk of length 0
		}
		if n == 0 {
			return 0, io.EOF
		}
		c.left = n
	}
	n, err := c.r.Read(p[:min(uint64(len(p)), c.left)])
	c.left -= uint64(n)
	return n, err
}

// abandoned returns nil once the server has reset a stream. On yamux the stream then ends
// without a chunk of length 0.
func (sp *speaker) abandoned(st wireStream) error {
	if sp.kind == 1 {
		_, err := io.Copy(io.Discard, st)
		if reset := (*quic.StreamError)(nil); errors.As(err, &reset) && reset.Remote {
			return nil
		}
		return fmt.Errorf("the stream ended with %v", err)
	}
	if _, err := io.Copy(io.Discard, &chunked{r: bufio.NewReader(st)}); !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the stream ended with %v", err)
	}
	return nil
}

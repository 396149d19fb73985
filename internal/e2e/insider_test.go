package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/socks"
)

// A client with a valid token must not be able to harm others.

// refusedDestination is a destination that the policy refuses despite the flags of startServer.
var refusedDestination = netip.MustParseAddrPort("10.255.255.1:9")

func TestRecordsDoNotReviveAnEndedFlow(t *testing.T) {
	t.Parallel()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t, withDebug...)
		echo := startEcho(t)
		sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		body := datagram(echo.AddrPort(), []byte("before"))
		sp.echoed([][]byte{wireRecord(2, body)}, body)
		sp.say(typeEnd, varints(0, 2, 0))
		sp.hear(typeEndAck)
		rested(t, srv.process)
		before := holdingsNow(t, srv.process, false)
		ghost := datagram(echo.AddrPort(), []byte("ghost"))
		for range 1000 {
			if err := sp.send(wireRecord(2, ghost)); err != nil {
				t.Fatal(err)
			}
		}
		body = datagram(echo.AddrPort(), []byte("after"))
		for _, got := range sp.echoed([][]byte{wireRecord(4, body)}, body) {
			if bytes.Equal(got, ghost) {
				t.Fatal("an ended flow sent a datagram on")
			}
		}
		sp.say(typeEnd, varints(1, 4, 0))
		sp.hear(typeEndAck)
		settled(t, srv.process, roughly(before), settling)
	})
}

func TestMalformedBundlesHarmOnlyTheirSender(t *testing.T) {
	t.Parallel()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t, withoutHold...)
		echo := startEcho(t)
		beside := associate(t, startClient(t, srv.Link).Socks())
		ping(t, beside, echo)
		rested(t, srv.process)
		before := holdingsNow(t, srv.process, false)

		sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		for i := range 2000 {
			b := garbage(1 + i%1000)
			b[0] = byte(i) // flows of one byte and others
			if err := sp.send(b); err != nil {
				t.Fatal(err)
			}
		}
		for _, b := range [][]byte{
			varints(2, 1<<62-1), // an absurd length
			varints(2, 2000<<1), // a length beyond the bundle
			varints(2, 1),       // a fragment without its header
			{0x40},
			{0xff, 0xff},
			{2, 0x80}, // a truncated varint
			append(wireFragment(2, 1, 200, 0, nil), 1), // an index above the maximum
			wireFragment(2, 1, 5, 3, []byte("x")),      // a count that contradicts the others
			wireRecord(2, nil), wireRecord(3, []byte("of the server's own side")),
			wireRecord(4, []byte{9, 9, 9}), wireRecord(4, []byte{3, 0, 0, 80}),
		} {
			if err := sp.send(b); err != nil {
				t.Fatal(err)
			}
		}
		sp.answers(1)
		ping(t, beside, echo)
		sp.hangUp()
		settled(t, srv.process, roughly(before), settling)
	})
}

func TestIncompleteFragmentsAreBounded(t *testing.T) {
	t.Parallel()
	// 64 incomplete datagrams of the maximal length and a window of yamux, twice for
	// buffers that were replaced by larger ones.
	const bound = 2 * (64*(64<<10) + wireWindow)
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t, withDebug...)
		sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		sp.answers(1)
		before := holdingsNow(t, srv.process, false)
		body := garbage(1000)
		for i := range 10_000 {
			// All fragments of each datagram but the last.
			message, index := uint16(i/60), byte(i%60)
			if err := sp.send(wireFragment(2+2*uint64(i/60), message, index, 0, body)); err != nil {
				t.Fatal(err)
			}
		}
		sp.answers(2)
		during := holdingsNow(t, srv.process, false)
		t.Logf("before %v\nduring %v", before, during)
		if during.Heap > before.Heap+bound || during.Goroutines > before.Goroutines+1 || during.Descriptors > before.Descriptors {
			t.Errorf("before %v\nduring %v", before, during)
		}
	})
}

func TestFlowsAreBounded(t *testing.T) {
	t.Parallel()
	// The server opens 16,384 flows for one user if it has the descriptors. Here it has
	// fewer, because a test should not take so many ports of the machine.
	const (
		flows     = 100_000
		perBundle = 50
		limit     = 2048
	)
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		t.Parallel()
		srv := startServerWithin(t, limit, withoutHold...)
		echo := startEcho(t)
		beside := associate(t, startClient(t, srv.Link).Socks())
		ping(t, beside, echo)
		rested(t, srv.process)
		before := holdingsNow(t, srv.process, false)

		sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		body := datagram(refusedDestination, []byte("x"))
		began := time.Now()
		for first := 0; first < flows; first += perBundle {
			var b []byte
			for i := range perBundle {
				b = append(b, wireRecord(2*uint64(first+i+1), body)...)
			}
			if err := sp.send(b); err != nil {
				t.Fatal(err)
			}
		}
		sp.answers(1)
		took := time.Since(began)
		rested(t, srv.process)
		during := holdingsNow(t, srv.process, false)
		t.Logf("before %v\nduring %v, after %v", before, during, took.Round(time.Millisecond))
		if during.Descriptors > limit-limit/8+before.Descriptors {
			t.Errorf("%d descriptors for one user's flows", during.Descriptors-before.Descriptors)
		}
		ping(t, beside, echo)
		// There is still a descriptor for a new connection.
		attach(t, overYamux, srv, newWireSession(), wireHello{attach: 2, withSecret: true}).answers(2)
		sp.hangUp()
		after, took := settled(t, srv.process, before.loosely(), waitTimeout)
		t.Logf("after  %v, %v later", after, took.Round(time.Millisecond))
	})
}

// loosely returns h with an allowance for tables that do not shrink, and for connections
// that the test itself has open.
func (h holdings) loosely() holdings {
	h.Heap += 16 << 20
	h.Goroutines += 20
	h.Descriptors += 2
	return h
}

func TestControlMessagesAreBounded(t *testing.T) {
	t.Parallel()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t, withDebug...)
		rested(t, srv.process)
		before := holdingsNow(t, srv.process, false)
		for _, test := range []struct {
			name  string
			bytes []byte
		}{
			{"an unknown critical message", wireMessage(9, nil)},
			{"another one", wireMessage(1<<61+1, []byte("x"))},
			{"a message too long", append(varints(200, wireMaxMessage+1), garbage(wireMaxMessage+1)...)},
			{"a message of 2^62-1 bytes", varints(200, 1<<62-1)},
			{"a Hello", wireMessage(typeHello, make([]byte, 100))},
			{"an empty PING", wireMessage(typePing, nil)},
			{"an empty END", wireMessage(typeEnd, nil)},
			{"half an END", wireMessage(typeEnd, varints(0, 2))},
			{"an empty PREFER", wireMessage(5, nil)},
			{"a GO_AWAY too long", wireMessage(7, append(varints(1, 257), make([]byte, 257)...))},
		} {
			sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
			sp.say(200, garbage(wireMaxMessage)) // optional, unknown, and of the maximal length
			sp.answers(1)
			provoke(sp.write, test.bytes)
			err := sp.closed()
			if code, ok := closeCode(err); !ok || code != codeProtocol {
				t.Errorf("%s: %v", test.name, err)
			}
			sp.hangUp()
		}
		settled(t, srv.process, roughly(before), settling)
	})
}

func TestControlFloodUsesBoundedMemory(t *testing.T) {
	t.Parallel()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		srv := startServer(t, withDebug...)
		sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		sp.answers(1)
		before := holdingsNow(t, srv.process, false)
		var flood []byte
		for i := range uint64(200) {
			flood = append(flood, wireMessage(typePing, varints(i, 0, 0))...)
			flood = append(flood, wireMessage(typeEnd, varints(i, 2*i*100_000, 0))...) // each one fills a page of ended flows
			flood = append(flood, wireMessage(5, varints(i, 1, 1))...)
			flood = append(flood, wireMessage(typeEndAck, varints(1<<60))...)
		}
		for range 500 {
			if _, err := sp.write.Write(flood); err != nil {
				t.Fatal(err)
			}
		}
		sp.answers(1 << 40)
		during := holdingsNow(t, srv.process, false)
		t.Logf("before %v\nduring %v", before, during)
		if during.Heap > before.Heap+3*wireWindow || during.Goroutines > before.Goroutines+1 {
			t.Errorf("before %v\nduring %v", before, during)
		}
	})
}

func TestStreamHeadersAreBounded(t *testing.T) {
	t.Parallel()
	overEach(t, wireKinds, func(t *testing.T, kind string) {
		t.Parallel()
		srv := startServer(t, withoutHold...)
		rested(t, srv.process)
		before := holdingsNow(t, srv.process, false)
		sp := attach(t, kind, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		target := socks.AppendAddrPort(nil, refusedDestination)
		began := time.Now()
		answered := func(name string, header []byte, end bool, want byte) {
			t.Helper()
			st := sp.opened(header, end)
			got := make([]byte, 1)
			var in io.Reader = st
			if kind == overYamux {
				in = &chunked{r: bufio.NewReader(st)}
			}
			if _, err := io.ReadFull(in, got); err != nil || got[0] != want {
				t.Errorf("%s: %v, %v; want %d", name, got, err, want)
			}
			st.Close()
		}
		reset := func(name string, header []byte, end bool, bound time.Duration) {
			t.Helper()
			st := sp.opened(header, end)
			if err := sp.abandoned(st); err != nil || time.Since(began) > bound+slack {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
			st.Close()
		}
		answered("an unknown kind", append([]byte{99, byte(len(target))}, target...), false, socks.ReplyCommandUnsupported)
		answered("a refused destination", append([]byte{1, byte(len(target))}, target...), false, socks.ReplyNotAllowed)
		answered("an empty address", []byte{1, 0}, false, socks.ReplyGeneralFailure)
		answered("an unknown address type", []byte{1, 3, 9, 9, 9}, false, socks.ReplyAddrUnsupported)
		reset("nothing but an end", nil, true, 0)
		reset("half a header", []byte{1}, true, 0)
		reset("half an address", []byte{1, 7, 1, 10}, true, 0)
		reset("an address too long", append(varints(1, 260), make([]byte, 260)...), false, 0)
		reset("an address of 2^62-1 bytes", varints(1, 1<<62-1), false, 0)
		for range 500 {
			sp.opened([]byte{1}, false) // and nothing more
		}
		reset("a header that never comes", []byte{1, 7, 1}, false, streamHeaderBound)
		sp.answers(3)
		sp.hangUp()
		settled(t, srv.process, roughly(before), settling)
	})
}

// opened opens a stream and writes header to it, and the end of our half if end is set.
func (sp *speaker) opened(header []byte, end bool) wireStream {
	sp.t.Helper()
	st, err := sp.stream()
	if err != nil {
		sp.t.Fatal(err)
	}
	if err := st.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		sp.t.Fatal(err)
	}
	if sp.kind == 2 {
		if len(header) > 0 {
			header = append(varints(uint64(len(header))), header...)
		}
		if end {
			header = append(header, 0)
		}
	}
	if _, err := st.Write(header); err != nil {
		sp.t.Fatal(err)
	}
	if sp.kind == 1 && end {
		st.Close()
	}
	return st
}

func TestMalformedYamuxEndsTheCarrier(t *testing.T) {
	t.Parallel()
	header := func(version, kind byte, flags uint16, stream, length uint32) []byte {
		b := binary.BigEndian.AppendUint16([]byte{version, kind}, flags)
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, stream), length)
	}
	const syn = 1
	srv := startServer(t, withDebug...)
	rested(t, srv.process)
	before := holdingsNow(t, srv.process, false)
	for _, test := range []struct {
		name  string
		bytes []byte
	}{
		{"noise", garbage(2000)},
		{"another version", header(9, 0, 0, 1, 0)},
		{"more than the window", header(0, 0, syn, 1, 1<<31)},
		{"an even stream", append(append(append(header(0, 1, syn, 1, 0), header(0, 1, syn, 3, 0)...), header(0, 1, syn, 5, 0)...), header(0, 1, syn, 8, 0)...)},
		{"streams in falling order", append(append(append(append(header(0, 1, syn, 1, 0), header(0, 1, syn, 3, 0)...), header(0, 1, syn, 5, 0)...), header(0, 1, syn, 9, 0)...), header(0, 1, syn, 7, 0)...)},
		{"a stream twice", append(header(0, 1, syn, 1, 0), header(0, 1, syn, 1, 0)...)},
	} {
		c := dialWire(t, overYamux, srv.Addr, wireALPN)
		if answer, _ := c.greet(parsed(t, srv), newWireSession(), wireHello{withSecret: true}); answer != typeWelcome {
			t.Fatalf("message of type %d", answer)
		}
		if _, err := c.tls.Write(test.bytes); err != nil {
			t.Fatal(err)
		}
		if err := c.tls.SetReadDeadline(time.Now().Add(slack)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c.tls); isTimeout(err) {
			t.Errorf("%s: still open", test.name)
		}
	}
	settled(t, srv.process, roughly(before), settling)
}

func TestYamuxBundlesAndSignalsAreBounded(t *testing.T) {
	t.Parallel()
	srv := startServer(t, withDebug...)
	rested(t, srv.process)
	before := holdingsNow(t, srv.process, false)
	longClose := quicvarint.AppendWithLen([]byte{0}, codeAuth, 8)
	longClose = append(quicvarint.AppendWithLen(longClose, 512, 8), make([]byte, 600)...)
	for _, test := range []struct {
		name    string
		signal  bool
		bytes   []byte
		refused bool
	}{
		{"an empty bundle", false, []byte{0}, true},
		{"a bundle too long", false, varints(wireMaxBundle + 1), true},
		{"a bundle of 2^62-1 bytes", false, varints(1<<62 - 1), true},
		{"an unknown signal", true, []byte{7}, true},
		{"a reason too long", true, varints(0, 0, 513), true},
		{"a reset of no stream", true, varints(1, 1<<40, 0), true},
		{"resets of streams to come", true, resets(1000), true},
		{"a close of the longest", true, longClose, false},
	} {
		sp := attach(t, overYamux, srv, newWireSession(), wireHello{attach: 1, withSecret: true})
		sp.answers(1)
		w := sp.bundles
		if test.signal {
			w = sp.signals
		}
		provoke(w, test.bytes)
		err := sp.closed()
		if code, ok := closeCode(err); test.refused && (!ok || code != codeProtocol) {
			t.Errorf("%s: %v", test.name, err)
		}
		sp.hangUp()
	}
	settled(t, srv.process, roughly(before), settling)
}

// provoke writes bytes for which the peer closes the connection, possibly before it has read
// all of them, so that an error means nothing: speaker.closed returns how the connection ended.
func provoke(w io.Writer, b []byte) { _, _ = w.Write(b) }

func resets(n uint64) (b []byte) {
	for i := range n {
		b = append(b, varints(1, 1001+2*i, 0)...)
	}
	return b
}

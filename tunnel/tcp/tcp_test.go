package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/carrier/carriertest"
)

// hostileYamux returns a server's carrier and the bare yamux session of its client,
// with control, bundles and signals open.
func hostileYamux(t *testing.T) (carrier.Carrier, *yamux.Session, [3]*yamux.Stream) {
	t.Helper()
	return bareYamux(t, func(tls net.Conn) net.Conn { return tls })
}

// bareYamux has the client's yamux on what over makes of its connection.
func bareYamux(t *testing.T, over func(tls net.Conn) net.Conn) (carrier.Carrier, *yamux.Session, [3]*yamux.Stream) {
	t.Helper()
	client, server := pendings(t)
	started := make(chan carrier.Carrier, 1)
	go func() {
		c, err := carriertest.ServeHandshake(carriertest.Context(t), server)
		if err != nil {
			t.Error(err)
		}
		started <- c
	}()
	conn := client.(*pending).tls
	conn.Write([]byte("hello"))
	io.ReadFull(conn, make([]byte, 7))
	config := newConfig(0, carrier.Windows{})
	config.AcceptBacklog = 1 << 14 // it does not restrain itself
	y, err := yamux.Client(over(conn), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { y.Close() })
	var streams [3]*yamux.Stream
	for i := range streams {
		if streams[i], err = y.OpenStream(); err != nil {
			t.Fatal(err)
		}
	}
	c := <-started
	if c == nil {
		t.FailNow()
	}
	t.Cleanup(func() { c.Close(carrier.CodeNone, "") })
	return c, y, streams
}

// wantViolation checks that the carrier ended for a breach of the protocol and that
// the peer was told so.
func wantViolation(t *testing.T, c carrier.Carrier, signals *yamux.Stream, cause error) {
	t.Helper()
	<-c.Done()
	if !errors.Is(c.Err(), cause) || errors.Is(c.Err(), net.ErrClosed) {
		t.Errorf("ended with %v, want %v", c.Err(), cause)
	}
	told := make([]byte, maxSignal)
	n, _ := signals.Read(told)
	signals.Session().Close()
	s, _, err := parseSignal(told[:n])
	if err != nil || s.kind != signalClose || s.code != carrier.CodeProtocol {
		t.Errorf("the peer was told %+v, %v", s, err)
	}
}

func TestABundleLengthOutOfBoundsEndsTheCarrier(t *testing.T) {
	for _, length := range []uint64{0, carrier.MaxBundleSize + 1, 1 << 40} {
		c, _, streams := hostileYamux(t)
		streams[1].Write(quicvarint.Append(nil, length))
		if _, err := c.ReceiveBundles(make([][]byte, 4)); !errors.Is(err, errBundleLength) {
			t.Errorf("length %d: %v", length, err)
		}
		wantViolation(t, c, streams[2], errBundleLength)
	}
}

func TestAChunkLengthOutOfBoundsEndsTheCarrier(t *testing.T) {
	for i, header := range [][]byte{{0x80, 2, 0, 1}, {0x80, 2, 0, 1}, {0xbf, 0xff, 0xff, 0xff}, {0xff}} {
		c, y, streams := hostileYamux(t)
		s, err := y.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		s.Write(header)
		in, err := c.AcceptStream(carriertest.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Read(make([]byte, []int{10, carrier.SmallWrite}[i%2])); !errors.Is(err, errChunkTooLong) {
			t.Errorf("header %x: %v", header, err)
		}
		wantViolation(t, c, streams[2], errChunkTooLong)
	}
}

func TestMalformedSignalsEndTheCarrier(t *testing.T) {
	c, _, streams := hostileYamux(t)
	streams[2].Write([]byte{7})
	wantViolation(t, c, streams[2], errSignal)
}

func TestResetsOfStreamsNeverOpenedAreBounded(t *testing.T) {
	c, _, streams := hostileYamux(t)
	var b []byte
	for id := uint32(1001); len(b) < 8000; id += 2 {
		b = appendSignal(b, signal{kind: signalReset, stream: id})
	}
	streams[2].Write(b)
	<-c.Done()
	streams[2].Session().Close()
	if !strings.Contains(c.Err().Error(), "never opened") {
		t.Errorf("ended with %v", c.Err())
	}
}

func TestGarbageInsteadOfYamuxEndsTheCarrier(t *testing.T) {
	client, server := pendings(t)
	go func() {
		conn := client.(*pending).tls
		conn.Write([]byte("hello"))
		io.ReadFull(conn, make([]byte, 7))
		conn.Write(bytes.Repeat([]byte{0xa5}, 1000))
		io.Copy(io.Discard, conn)
	}()
	if c, err := carriertest.ServeHandshake(carriertest.Context(t), server); err == nil {
		<-c.Done()
		t.Errorf("garbage became a carrier, which ended with %v", c.Err())
	}

	c, y, _ := hostileYamux(t)
	y.Close()
	<-c.Done()
	if err := c.Err(); !errors.Is(err, errEnded) || errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection that ends without a close: %v", err)
	}
}

func TestACloseIsNotLostToTheEndBehindIt(t *testing.T) {
	for range 30 {
		c, y, streams := hostileYamux(t)
		streams[2].Write(appendSignal(nil, signal{kind: signalClose, code: carrier.CodeReplaced, reason: "newer"}))
		y.Close()
		<-c.Done()
		if closed, ok := errors.AsType[*carrier.CloseError](c.Err()); !ok || closed.Code != carrier.CodeReplaced || closed.Reason != "newer" {
			t.Fatalf("ended with %v", c.Err())
		}
	}
}

func TestStreamsThatNobodyAcceptsAreBounded(t *testing.T) {
	c, y, streams := hostileYamux(t)
	const flood = 8 * backlog
	for range flood {
		if _, err := y.OpenStream(); err != nil {
			t.Fatal(err)
		}
	}
	streams[1].Write([]byte{1, 'b'})
	if _, err := c.ReceiveBundles(make([][]byte, 1)); err != nil { // all have arrived
		t.Fatal(err)
	}
	if n := c.(*connection).y.NumStreams(); n > backlog+3 {
		t.Fatalf("%d of %d streams are held", n, flood)
	}
}

func TestStreamsBeyondTheLimitAreResetAndTheOthersLive(t *testing.T) {
	c, y, _ := hostileYamux(t)
	ctx := carriertest.Context(t)
	for range maxStreams {
		s, err := y.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte{1, 'x'})
		if _, err := c.AcceptStream(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := y.OpenStream(); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := c.AcceptStream(brief); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one stream too many: %v", err)
	}
	if c.Err() != nil {
		t.Fatalf("the carrier ended: %v", c.Err())
	}
}

func TestAStreamThatEndsWithoutItsEndWasCutOff(t *testing.T) {
	c, y, _ := hostileYamux(t)
	s, err := y.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte{5, 'h', 'a', 'l'})
	s.Close()
	in, err := c.AcceptStream(carriertest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(in)
	if string(got) != "hal" || !errors.Is(err, errCutOff) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestASilentClientDoesNotHoldUpOthers(t *testing.T) {
	ctx := carriertest.Context(t)
	ln := listen(t)
	silent, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	first, err := ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close(carrier.CodeNone, "")
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	result := make(chan error, 1)
	go func() {
		_, err := first.Handshake(brief)
		result <- err
	}()
	clientTLS, _ := carriertest.TLS()
	dialed := make(chan error, 1)
	go func() {
		p, err := Dial(ctx, ln.Addr().(*net.TCPAddr), clientTLS, 0)
		if err == nil {
			p.Close(carrier.CodeNone, "")
		}
		dialed <- err
	}()
	second, err := ln.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close(carrier.CodeNone, "")
	if _, err := second.Handshake(ctx); err != nil {
		t.Error(err)
	}
	if err := <-dialed; err != nil {
		t.Error(err)
	}
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the silent client's handshake: %v", err)
	}
}

// deafPeer returns a server's carrier whose client takes nothing off its connection.
func deafPeer(t *testing.T) carrier.Carrier {
	t.Helper()
	client, server := pendings(t)
	client.(*pending).raw.(*net.TCPConn).SetReadBuffer(16 << 10)
	opened := make(chan error, 1)
	stop := make(chan struct{})
	var peer sync.WaitGroup
	peer.Go(func() {
		conn := client.(*pending).tls
		conn.Write([]byte("hello"))
		io.ReadFull(conn, make([]byte, 7))
		y, err := yamux.Client(deaf{conn, stop}, newConfig(0, carrier.Windows{}))
		for i := 0; i < 3 && err == nil; i++ {
			_, err = y.OpenStream()
		}
		opened <- err
		<-stop
		y.Close()
	})
	t.Cleanup(peer.Wait)
	t.Cleanup(func() { close(stop) })
	c, err := carriertest.ServeHandshake(carriertest.Context(t), server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(carrier.CodeNone, "") })
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCloseDoesNotWaitForAPeerThatTakesNothing(t *testing.T) {
	c := deafPeer(t)
	sent := make(chan error, 1)
	go func() {
		for {
			if err := c.SendBundle(make([]byte, carrier.MaxBundleSize)); err != nil {
				sent <- err
				return
			}
		}
	}()
	start := time.Now()
	c.Close(carrier.CodeNone, "")
	if took := time.Since(start); took > closeBound+time.Second {
		t.Errorf("Close took %v", took)
	}
	if err := <-sent; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the blocked SendBundle: %v", err)
	}
}

func TestFramesHaveTheSizeOfOneWrite(t *testing.T) {
	c := deafPeer(t).(*connection)
	for _, step := range []struct{ bound, n, want int }{
		{coalesceLeast, maxFrame, slowFrame},
		{coalesceLeast, 100, 100},
		{coalesceQuiet, coalesceQuiet, coalesceQuiet - yamuxHead},
		{coalesceQuiet, coalesceQuiet - yamuxHead, coalesceQuiet - yamuxHead},
		{coalesceBuffer, maxFrame, maxFrame},
	} {
		c.conn.mu.Lock()
		c.conn.limit.bytes, c.conn.wanted = step.bound, 0
		c.conn.mu.Unlock()
		got := c.frame(step.n)
		c.conn.mu.Lock()
		if got != step.want || c.conn.wanted != yamuxHead+step.n {
			t.Errorf("where %d bytes may wait a frame of %d has %d, want %d; %d are asked for", step.bound, step.n, got, step.want, c.conn.wanted)
		}
		c.conn.mu.Unlock()
	}
	c.Close(carrier.CodeNone, "")
}

// frameLengths is a connection that notes the lengths of the data frames that are read from it.
type frameLengths struct {
	net.Conn
	frames frameFilter

	mu  sync.Mutex
	all []int
}

func (c *frameLengths) Read(p []byte) (int, error) { return c.frames.read(c.Conn, p) }

// note is the filter's arriving.
func (c *frameLengths) note(_, n uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, int(n))
	return true
}

// take returns the lengths since the last call.
func (c *frameLengths) take() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

func TestAStreamWritesFramesOfWhatTheConnectionTakes(t *testing.T) {
	var frames frameLengths
	frames.frames.arriving = frames.note
	server, y, _ := bareYamux(t, func(tls net.Conn) net.Conn { frames.Conn = tls; return &frames })
	c := server.(*connection)
	out, err := c.OpenStream(carriertest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	in, err := y.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	plain := func(s carrier.Stream) (int, error) { return s.Write(make([]byte, carrier.MaxWrite)) }
	framed := func(s carrier.Stream) (int, error) {
		return s.WriteFramed(make([]byte, carrier.Headroom+carrier.MaxWrite))
	}
	for _, step := range []struct {
		bound int
		write func(carrier.Stream) (int, error)
		first int
	}{
		{coalesceLeast, plain, slowFrame},
		{coalesceLeast, framed, slowFrame},
		{coalesceBuffer, plain, maxFrame},
		{coalesceBuffer, framed, maxFrame},
	} {
		c.conn.mu.Lock()
		c.conn.limit = coalesceLimit{bytes: step.bound}
		c.conn.mu.Unlock()
		if _, err := step.write(out); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(in, make([]byte, maxFrame)); err != nil {
			t.Fatal(err)
		}
		if got := frames.take(); got[0] != step.first || slices.Max(got) > maxFrame {
			t.Errorf("where %d bytes may wait the frames have %v bytes, want %d in the first", step.bound, got, step.first)
		}
	}
	out.Reset(carrier.CodeNone)
}

// With its chunk's header it looks like the head of a frame, whose content would come next.
func TestElevenBytesThatBeginWithZeroArriveAtOnce(t *testing.T) {
	client, server := transport.Start(t)
	a, b := carriertest.OpenPair(t, client, server)
	want := []byte("\x00abcdefghij")
	if _, err := a.Write(want); err != nil {
		t.Fatal(err)
	}
	b.SetDeadline(time.Now().Add(carriertest.Patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// An end behind a hole would look clean to the peer.
func TestNothingFollowsAWriteThatFailed(t *testing.T) {
	client, server := transport.Start(t)
	c := client.(*connection)
	a, _ := carriertest.OpenPair(t, client, server)
	c.turn <- struct{}{}
	result := make(chan error)
	go func() {
		_, err := a.WriteFramed(make([]byte, carrier.Headroom+1))
		result <- err
	}()
	c.end(net.ErrClosed, &signal{kind: signalClose}) // yamux lives until the peer hangs up
	var reset *carrier.ResetError
	if err := <-result; !errors.As(err, &reset) {
		t.Errorf("the write: %v", err)
	}
	<-c.turn
	for name, next := range map[string]func() error{
		"CloseWrite": a.CloseWrite,
		"Write":      func() error { _, err := a.Write([]byte("x")); return err },
	} {
		if err := next(); !errors.As(err, &reset) {
			t.Errorf("%s behind it: %v", name, err)
		}
	}
}

// Afterwards the buffer is the relay's, to give to another.
func TestAWholeWriteKeepsNothingOfTheCallersBuffer(t *testing.T) {
	client, server := transport.Start(t)
	a, _ := carriertest.OpenPair(t, client, server)
	if _, err := a.WriteFramed(make([]byte, carrier.Headroom+carrier.SmallWrite)); err != nil {
		t.Fatal(err)
	}
	if s := a.(*chunkStream); s.unsent != nil || s.frame != nil {
		t.Errorf("it keeps %d bytes of %d", len(s.unsent), cap(s.unsent))
	}
}

// Where the connection stalls, one stream's frame is inside yamux, in front of the
// next bundle; the other streams wait outside and can be called off.
func TestOneStreamAtATimeStandsInFrontOfABundle(t *testing.T) {
	const streams = 20
	c := deafPeer(t)
	results := make(chan error, streams)
	var all []carrier.Stream
	for range streams {
		s, err := c.OpenStream(carriertest.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	for _, s := range all {
		go func() { results <- carriertest.WriteUntilError(s) }()
	}
	stacks := make([]byte, 1<<20)
	carriertest.Await(t, "streams outside yamux", func() (int, bool) {
		n := bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte(".takeTurn("))
		return n, n == streams-1
	})
	for i, s := range all {
		if i%2 == 0 {
			s.SetDeadline(time.Now())
		} else {
			s.Reset(55)
		}
	}
	for range streams - 1 {
		err := <-results
		if reset, ok := errors.AsType[*carrier.ResetError](err); !errors.Is(err, os.ErrDeadlineExceeded) && (!ok || reset.Code != 55) {
			t.Errorf("a waiting writer: %v", err)
		}
	}
	c.Close(carrier.CodeNone, "")
	<-results
}

// deaf reads nothing until it is stopped.
type deaf struct {
	*tls.Conn
	stop chan struct{}
}

func (d deaf) Read([]byte) (int, error) {
	<-d.stop
	return 0, io.EOF
}

// received is the size of the buffer in bytes that yamux keeps for what a stream receives.
func received(s carrier.Stream) int {
	buffer := reflect.ValueOf(s.(*chunkStream).y).Elem().FieldByName("recvBuf")
	if buffer.IsNil() {
		return 0
	}
	return buffer.Elem().FieldByName("buf").Cap()
}

func TestAStreamThatIsReadEmptyKeepsNoBuffer(t *testing.T) {
	client, server := transport.Start(t)
	out, err := client.OpenStream(carriertest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	in, err := server.AcceptStream(carriertest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 12<<10) // of a window of 256 KiB
	if _, err := out.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(sent))
	half := len(sent) / 2
	if _, err := io.ReadFull(in, got[:half]); err != nil {
		t.Fatal(err)
	}
	server.(*connection).freeNow() // what is unread stays
	if _, err := io.ReadFull(in, got[half:]); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%v, the same bytes: %v", err, bytes.Equal(got, sent))
	}
	if received(in) == 0 {
		t.Error("nothing is kept before it was asked for")
	}
	server.(*connection).freeNow()
	if n := received(in); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
	out.Reset(carrier.CodeNone)
	in.Reset(carrier.CodeNone)
}

func TestAPingOfYamuxsOwnEndsTheCarrier(t *testing.T) {
	c, y, _ := hostileYamux(t)
	go y.Ping()
	<-c.Done()
	if !strings.Contains(c.Err().Error(), errPing.Error()) {
		t.Errorf("ended with %v", c.Err())
	}
}

// fakeFrames is frames of data with their stream's number as content, and window updates between.
func fakeFrames(sizes []int) (all []byte, ids []uint32) {
	for i, size := range sizes {
		id := uint32(i%5 + 1)
		head := make([]byte, yamuxHead)
		binary.BigEndian.PutUint16(head[2:], uint16(i)) // flags
		binary.BigEndian.PutUint32(head[4:], id)
		binary.BigEndian.PutUint32(head[8:], uint32(size))
		all = append(append(all, head...), bytes.Repeat([]byte{byte(id)}, size)...)
		head[1] = 1
		binary.BigEndian.PutUint32(head[8:], 1<<31) // of a window, no length of content
		all = append(all, head...)
		ids = append(ids, id)
	}
	return all, ids
}

// filtered passes b through f in reads of n bytes.
func filtered(t *testing.T, f *frameFilter, b []byte, n int) (out []byte) {
	t.Helper()
	for len(b) > 0 {
		p := make([]byte, f.held+min(n, len(b)))
		b = b[copy(p[f.held:], b):]
		got, err := f.pass(p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p[:got]...)
	}
	return out
}

func TestFramesPassButForTheContentThatNobodyWants(t *testing.T) {
	all, ids := fakeFrames([]int{0, 1, 11, 12, 13, 500, 0, 40, 7})
	const unwanted = 2
	wanted := bytes.Clone(all)
	for at := 0; at < len(wanted); {
		end := at + yamuxHead
		if wanted[at+1] == yamuxTypeData {
			end += int(binary.BigEndian.Uint32(wanted[at+8:]))
			if binary.BigEndian.Uint32(wanted[at+4:]) == unwanted {
				binary.BigEndian.PutUint32(wanted[at+8:], 0)
				wanted = slices.Delete(wanted, at+yamuxHead, end)
				end = at + yamuxHead
			}
		}
		at = end
	}
	if len(wanted) >= len(all) {
		t.Fatal("nothing is unwanted")
	}
	for n := 1; n <= len(all); n++ {
		var told []uint32
		keep := frameFilter{arriving: func(id, _ uint32) bool { told = append(told, id); return true }}
		if got := filtered(t, &keep, all, n); !bytes.Equal(got, all) {
			t.Fatalf("in reads of %d bytes frames came out changed", n)
		}
		ids := slices.Clone(ids)
		if ids = slices.Delete(slices.Delete(ids, 6, 7), 0, 1); !slices.Equal(told, ids) { // two are empty
			t.Fatalf("in reads of %d bytes it told of %v, want %v", n, told, ids)
		}
		cut := frameFilter{arriving: func(id, _ uint32) bool { return id != unwanted }}
		if got := filtered(t, &cut, all, n); !bytes.Equal(got, wanted) {
			t.Fatalf("in reads of %d bytes % x came out, want % x", n, got, wanted)
		}
	}
}

func FuzzFrames(f *testing.F) {
	all, _ := fakeFrames([]int{0, 1, 11, 12, 13, 40})
	f.Add(all, uint8(5))
	f.Add([]byte{0, yamuxTypePing, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		even := func(id, n uint32) bool {
			if n == 0 {
				t.Error("it was told of nothing")
			}
			return id%2 == 0
		}
		whole, cut := frameFilter{arriving: even}, frameFilter{arriving: even}
		p := bytes.Clone(b)
		n, broken := whole.pass(p)
		var out []byte
		var err error
		for rest := b; len(rest) > 0 && err == nil; {
			q := make([]byte, cut.held+min(int(step)+1, len(rest)))
			rest = rest[copy(q[cut.held:], rest):]
			var k int
			k, err = cut.pass(q)
			out = append(out, q[:k]...)
		}
		if err != broken || !bytes.Equal(out, p[:n]) || n > len(b) {
			t.Errorf("% x: whole % x, %v; in pieces of %d % x, %v", b, p[:n], broken, int(step)+1, out, err)
		}
	})
}

func TestWhatArrivesForAStreamThatIsDoneWithIsNotKept(t *testing.T) {
	client, server := transport.Start(t)
	for _, way := range [][2]carrier.Carrier{{client, server}, {server, client}} {
		a, b := carriertest.OpenPair(t, way[0], way[1])
		id := a.(*chunkStream).y.StreamID()
		for _, way := range way {
			if c := way.(*connection); !c.arriving(id, 1) || !c.arriving(id+100, 1) || !c.arriving(lastOwn, 1) {
				t.Error("what is wanted is not kept")
			}
		}
		for i, s := range []carrier.Stream{a, b} {
			s.Reset(7)
			if way[i].(*connection).arriving(id, 1) {
				t.Errorf("it is kept for stream %d", id)
			}
		}
	}
}

func TestWaitingReadersDoNotSpinWhileTheSessionCloses(t *testing.T) {
	client, server := transport.Start(t)
	_, b := carriertest.OpenPair(t, client, server)
	c := server.(*connection)
	hold, read := make(chan struct{}), make(chan error, 1)
	closing := c.conn.closing
	c.conn.closing = func() { closing(); <-hold } // yamux has woken its readers, and has not closed them yet
	go func() {
		_, err := b.Read(make([]byte, 1))
		read <- err
	}()
	var ending sync.WaitGroup
	ending.Go(func() { server.Close(carrier.CodeNone, "") })
	select {
	case err := <-read:
		if reset := (*carrier.ResetError)(nil); !errors.As(err, &reset) {
			t.Errorf("the reader got %v, want a reset", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the reader waits for the session")
	}
	close(hold)
	ending.Wait()
}

// wantHeld waits until the carrier holds want bytes beside its streams' own.
func wantHeld(t *testing.T, c carrier.Carrier, want int64) {
	t.Helper()
	carriertest.Await(t, "bytes that the carrier holds", func() (int, bool) {
		heap, _ := c.(*connection).Held()
		return int(heap), heap == want
	})
}

func TestCarrierHoldsWhatItsStreamsDoNot(t *testing.T) {
	const each, streams = 100_000, 3
	c, y, own := hostileYamux(t)
	write := func() {
		for range streams {
			s, err := y.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			s.Write(make([]byte, each))
		}
		wantHeld(t, c, streams*each) // nobody has accepted them
	}
	reset := func() {
		for range streams {
			st, err := c.AcceptStream(carriertest.Context(t))
			if err != nil {
				t.Fatal(err)
			}
			st.Reset(carrier.CodeLimit)
		}
	}
	write()
	reset()
	wantHeld(t, c, 0)

	write()
	// The peer takes no more signals, so that no reset reaches it.
	go c.(*connection).signals.Write(make([]byte, 2*carrier.MaxStreamWindow))
	if _, err := io.ReadFull(own[2], make([]byte, streams*maxSignal)); err != nil {
		t.Fatal(err)
	}
	reset()
	wantHeld(t, c, streams*each)
}

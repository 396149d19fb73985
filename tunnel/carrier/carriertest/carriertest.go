// Package carriertest tests implementations of package carrier: one suite holds all of them
// to the same contract.
package carriertest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"wmproxy/tunnel/carrier"
)

// A Transport is an implementation of the contract of package carrier.
type Transport struct {
	// Pair returns the two ends of a connection, which is closed with the test.
	Pair func(t testing.TB) (client, server carrier.Pending)

	// Cut ends both carriers as a dead network does, without a word.
	Cut func(client, server carrier.Carrier)

	// Left, if set, fails the test if the carrier still holds streams once all have ended.
	Left func(t *testing.T, c carrier.Carrier)
}

// Start returns the two ends of a connection that has passed its handshake.
func (tr Transport) Start(t testing.TB) (client, server carrier.Carrier) {
	t.Helper()
	c, s := tr.Pair(t)
	return Shake(t, c, s)
}

// Run tests that the transport keeps the contract.
func Run(t *testing.T, tr Transport) {
	t.Run("HandshakeContext", tr.testHandshakeContext)
	t.Run("ExportedKeys", tr.testExportedKeys)
	t.Run("ClosedCarriersLeaveNoDescriptors", tr.testDescriptors)
	for _, tt := range []struct {
		name string
		test func(t *testing.T, client, server carrier.Carrier)
	}{
		{"BundlesArriveUnchangedAndInOrder", testBundles},
		{"ReceiveTakesAllThatIsThere", testReceiveDrains},
		{"ALargerBundleIsRefusedAndTheCarrierLivesOn", testTooLarge},
		{"ControlGoesBothWays", testControl},
		{"StreamsCarryEightMiBEachWay", testStreamBulk},
		{"HalfCloseLeavesTheOtherHalf", testHalfClose},
		{"TheTailSurvivesResetAfterACleanEnd", testTail},
		{"ResetUnblocksReaderAndWriterOnBothSides", testReset},
		{"ResetUnblocksAWriterWhosePeerReadsNothing", testResetWriterAlone},
		{"AWriterWaitsForItsReader", testBackPressure},
		{"DeadlinesBoundReadsAndWrites", testDeadlines},
		{"AWriteCutShortByADeadlineGoesOnLater", testDeadlineResumes},
		{"CloseUnblocksEverythingAndTellsThePeer", testClose},
		{"AStreamOfADeadCarrierIsResetNotEnded", tr.testDeathResets},
		{"OpenAndAcceptEndWithTheirContext", testContexts},
		{"AStreamsContextEndsWithTheStream", testStreamContext},
		{"AThousandStreamsLeaveNothing", tr.testManyStreams},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := tr.Start(t)
			tt.test(t, client, server)
		})
	}
}

func (tr Transport) testHandshakeContext(t *testing.T) {
	client, server := tr.Pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	rw, err := client.Handshake(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rw.Write([]byte("h"))
	result := make(chan error, 1)
	go func() {
		_, err := rw.Read(make([]byte, 1))
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	if _, err := client.Start(context.Background()); err == nil {
		t.Error("Start after the handshake's end passed")
	}
	if _, err := server.Start(context.Background()); err == nil {
		t.Error("Start without Handshake passed")
	}
}

func (tr Transport) testExportedKeys(t *testing.T) {
	client, server := tr.Pair(t)
	a, err := client.ExportKey("EXPORTER-test", 32)
	if err != nil || len(a) != 32 {
		t.Fatalf("%d bytes, %v", len(a), err)
	}
	b, err := server.ExportKey("EXPORTER-test", 32)
	if err != nil || string(a) != string(b) {
		t.Errorf("the ends differ, %v", err)
	}
	if c, _ := client.ExportKey("EXPORTER-other", 32); string(a) == string(c) {
		t.Error("the label makes no difference")
	}
	other, _ := tr.Pair(t)
	if c, _ := other.ExportKey("EXPORTER-test", 32); string(a) == string(c) {
		t.Error("another connection has the same key")
	}
	if client.Protocol() != carrier.ALPN || server.Protocol() != carrier.ALPN {
		t.Errorf("ALPN %q and %q", client.Protocol(), server.Protocol())
	}
}

// Numbered fills b with its number and what follows from it.
func Numbered(b []byte, i int) {
	r := mrand.NewPCG(uint64(i), 7)
	for j := range b {
		b[j] = byte(r.Uint64())
	}
}

func testBundles(t *testing.T, client, server carrier.Carrier) {
	size := func(i int) int { return 1 + i*37%client.MaxBundle() }
	var sizes []int
	for i := range 400 {
		sizes = append(sizes, size(i))
	}
	sizes = append(sizes, 1, client.MaxBundle(), 1)
	const inFlight = 32 // below the 128 frames that quic-go holds for a reader
	acks := make(chan struct{}, inFlight)
	for range inFlight {
		acks <- struct{}{}
	}
	sent := make(chan error, 1)
	go func() {
		for i, n := range sizes {
			<-acks
			b := make([]byte, n)
			Numbered(b, i)
			if err := client.SendBundle(b); err != nil {
				sent <- err
				return
			}
			clear(b) // it is ours again
		}
		sent <- nil
	}()
	dst := make([][]byte, 8)
	for i := 0; i < len(sizes); {
		n, err := server.ReceiveBundles(dst)
		if err != nil || n == 0 {
			t.Fatalf("after %d bundles: %d, %v", i, n, err)
		}
		for _, got := range dst[:n] {
			want := make([]byte, sizes[i])
			Numbered(want, i)
			if !bytes.Equal(got, want) {
				t.Fatalf("bundle %d: %d bytes that differ from the %d sent", i, len(got), len(want))
			}
			clear(got) // the contract lets us write to it
			i++
			acks <- struct{}{}
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func testReceiveDrains(t *testing.T, client, server carrier.Carrier) {
	const bundles = 20
	for i := range bundles {
		if err := client.SendBundle(binary.BigEndian.AppendUint16(nil, uint16(i))); err != nil {
			t.Fatal(err)
		}
	}
	dst := make([][]byte, 64)
	next, calls := 0, 0
	for next < bundles {
		n, err := server.ReceiveBundles(dst)
		if err != nil {
			t.Fatal(err)
		}
		calls++
		for _, b := range dst[:n] {
			if int(binary.BigEndian.Uint16(b)) != next {
				t.Fatalf("bundle %d where %d was due", binary.BigEndian.Uint16(b), next)
			}
			next++
		}
	}
	if calls == bundles {
		t.Errorf("%d calls for %d bundles that were there together", calls, bundles)
	}
}

func testTooLarge(t *testing.T, client, server carrier.Carrier) {
	if n := client.MaxBundle(); n < carrier.MinBundle || n > carrier.MaxBundleSize {
		t.Fatalf("MaxBundle is %d", n)
	}
	err := client.SendBundle(make([]byte, carrier.MaxBundleSize+1))
	large, ok := errors.AsType[*carrier.BundleTooLargeError](err)
	if !ok || large.Max < carrier.MinBundle || large.Max > carrier.MaxBundleSize {
		t.Fatalf("got %v", err)
	}
	if err := client.SendBundle([]byte{9}); err != nil {
		t.Fatal(err)
	}
	dst := make([][]byte, 1)
	if n, err := server.ReceiveBundles(dst); n != 1 || err != nil || !bytes.Equal(dst[0], []byte{9}) {
		t.Fatalf("%d, %v, %x", n, err, dst[0])
	}
}

func testControl(t *testing.T, client, server carrier.Carrier) {
	for _, way := range [][2]carrier.Carrier{{client, server}, {server, client}} {
		message := bytes.Repeat([]byte("control "), 1000)
		sent := make(chan error, 1)
		go func() {
			_, err := way[0].Control().Write(message)
			sent <- err
		}()
		got := make([]byte, len(message))
		if _, err := io.ReadFull(way[1].Control(), got); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("control message damaged, %v", err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func testClose(t *testing.T, client, server carrier.Carrier) {
	for _, c := range []carrier.Carrier{client, server} {
		if err := c.Err(); err != nil {
			t.Fatalf("Err of a live carrier: %v", err)
		}
	}
	a, b := OpenPair(t, client, server)
	x, _ := OpenPair(t, client, server) // before another call accepts its peer
	type result struct {
		who string
		err error
	}
	results := make(chan result, 100)
	calls := 0
	run := func(who string, f func() error) {
		calls++
		go func() { results <- result{who, f()} }()
	}
	for _, c := range []struct {
		name string
		carrier.Carrier
		s carrier.Stream
	}{{"client", client, a}, {"server", server, b}} {
		run(c.name+" bundles", func() error { _, err := c.ReceiveBundles(make([][]byte, 1)); return err })
		run(c.name+" accept", func() error { _, err := c.AcceptStream(context.Background()); return err })
		run(c.name+" control", func() error { _, err := c.Control().Read(make([]byte, 1)); return err })
		run(c.name+" read", func() error { _, err := c.s.Read(make([]byte, 1)); return err })
		run(c.name+" done", func() error { <-c.Done(); return c.Err() })
	}
	run("client write", func() error { return WriteUntilError(x) })
	awaitBlocked(t)

	client.Close(carrier.CodeReplaced, "a newer one came")
	client.Close(carrier.CodeNone, "")
	if err := client.Err(); err != net.ErrClosed {
		t.Errorf("our own close reads as %v", err)
	}
	for range calls {
		select {
		case r := <-results:
			if r.err == nil || r.err == io.EOF {
				t.Errorf("%s: %v", r.who, r.err)
			}
		case <-time.After(Patience):
			t.Fatal("a call is still blocked")
		}
	}
	closed, ok := errors.AsType[*carrier.CloseError](server.Err())
	if !ok || closed.Code != carrier.CodeReplaced || closed.Reason != "a newer one came" {
		t.Errorf("the peer was told %v", server.Err())
	}
	if err := client.SendBundle([]byte{1}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("SendBundle afterwards: %v", err)
	}
	if _, err := client.OpenStream(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("OpenStream afterwards: %v", err)
	}
}

func (tr Transport) testDeathResets(t *testing.T, client, server carrier.Carrier) {
	a, b := OpenPair(t, client, server)
	results := make(chan error, 4)
	for _, s := range []carrier.Stream{a, b} {
		go func() { results <- readUntilError(s) }()
	}
	tr.Cut(client, server)
	for range 2 {
		err := <-results
		if reset, ok := errors.AsType[*carrier.ResetError](err); !ok || reset.Cause == nil {
			t.Errorf("a blocked read: %v", err)
		}
	}
	for _, c := range []carrier.Carrier{client, server} {
		<-c.Done()
		if c.Err() == nil {
			t.Error("a dead carrier has no Err")
		}
	}
	_, err := a.Write(make([]byte, 1<<20))
	if reset, ok := errors.AsType[*carrier.ResetError](err); !ok || reset.Cause == nil {
		t.Errorf("a write afterwards: %v", err)
	}
}

func testContexts(t *testing.T, client, server carrier.Carrier) {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() {
		_, err := server.AcceptStream(ctx)
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("accept: %v", err)
	}
	OpenPair(t, client, server) // AcceptStream goes on as if nothing had been

	// The streams of a peer that accepts none run out some time.
	ctx, cancel = context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	var opened []carrier.Stream
	for {
		s, err := client.OpenStream(ctx)
		if err != nil {
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, carrier.ErrStreamLimit) {
				t.Errorf("open: %v", err)
			}
			break
		}
		if opened = append(opened, s); len(opened) > 4096 {
			t.Fatal("no limit of streams")
		}
	}
	for _, s := range opened {
		s.Reset(carrier.CodeNone)
	}
}

func (tr Transport) testManyStreams(t *testing.T, client, server carrier.Carrier) {
	const streams = 1000
	ctx := Context(t)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	wg.Go(func() {
		var each sync.WaitGroup
		defer each.Wait()
		for i := range streams {
			s, err := server.AcceptStream(ctx)
			if err != nil {
				t.Errorf("accept %d: %v", i, err)
				return
			}
			each.Go(func() {
				defer s.Reset(carrier.CodeNone)
				if n, err := io.Copy(s, readerOnly{s}); err == nil {
					s.CloseWrite()
				} else if n != 100 {
					t.Errorf("%d bytes, %v", n, err)
				}
			})
		}
	})
	gate := make(chan struct{}, 50)
	for i := range streams {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			s, err := client.OpenStream(ctx)
			if err != nil {
				t.Errorf("open %d: %v", i, err)
				return
			}
			defer s.Reset(77)
			b := make([]byte, 100)
			Numbered(b, i)
			if _, err := s.Write(b); err != nil {
				t.Errorf("write %d: %v", i, err)
				return
			}
			got := make([]byte, 100)
			if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, b) {
				t.Errorf("echo %d: %v", i, err)
			}
			if i%2 == 0 { // the others are abandoned
				s.CloseWrite()
				io.Copy(io.Discard, readerOnly{s})
			}
		})
	}
	wg.Wait()
	Await(t, "goroutines", func() (int, bool) { n := runtime.NumGoroutine(); return n, n <= before+2 })
	if tr.Left != nil {
		tr.Left(t, client)
		tr.Left(t, server)
	}
}

func (tr Transport) testDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc/self/fd here")
		}
		return len(entries)
	}
	var before int
	for i := range 6 {
		t.Run("", func(t *testing.T) {
			client, server := tr.Start(t)
			switch i % 3 {
			case 0:
				client.Close(carrier.CodeNone, "")
			case 1:
				server.Close(carrier.CodeNone, "")
			case 2:
				tr.Cut(client, server)
			}
		})
		if i == 2 {
			before = count()
		}
	}
	Await(t, "descriptors", func() (int, bool) { n := count(); return n, n <= before })
}

// Stats fails the test unless near and far count what a stream from near carries.
func Stats(t *testing.T, near, far carrier.Carrier) {
	t.Helper()
	before := near.Stats()
	const size = 1 << 20
	sendStream(t, near, far, size)
	up, down := near.Stats(), far.Stats()
	if got := up.BytesUp - before.BytesUp; got < size || got > size*5/4 {
		t.Errorf("%d bytes up for %d", got, size)
	}
	if down.BytesDown < size {
		t.Errorf("%d bytes down for %d", down.BytesDown, size)
	}
	// A loopback segment holds up to 64 KiB, a QUIC packet up to 1,452 bytes.
	if got := up.PacketsUp - before.PacketsUp; got < size>>16 || got > size/100 {
		t.Errorf("%d packets up for %d bytes", got, size)
	}
	if up.PacketsLost > up.PacketsUp/2 {
		t.Errorf("%d of %d packets were lost", up.PacketsLost, up.PacketsUp)
	}
	if up.RTT <= 0 || up.RTT > time.Second {
		t.Errorf("the RTT is %v", up.RTT)
	}
}

// sendStream sends size bytes on a stream and waits until the other end has them.
func sendStream(t *testing.T, near, far carrier.Carrier, size int) {
	t.Helper()
	a, b := OpenPair(t, near, far)
	got := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, b, int64(size))
		got <- err
	}()
	if _, err := a.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// OutlivesDead fails the test unless the transport's own timeout of silence is that of carrier.IdleTimeout.
func OutlivesDead(t *testing.T, timeout func(dead time.Duration) time.Duration) {
	t.Helper()
	for _, dead := range []time.Duration{0, time.Second, 2 * time.Minute, time.Hour} {
		if got, want := timeout(dead), carrier.IdleTimeout(dead); got != want {
			t.Errorf("%v: got %v, want %v", dead, got, want)
		}
	}
}

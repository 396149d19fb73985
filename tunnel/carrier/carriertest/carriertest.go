// Package carriertest tests implementations of package carrier: one suite holds all of them
// to the same contract.
package carriertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"wmproxy/tunnel/carrier"
)

// Patience bounds what must happen soon, in tests that wait for it.
const Patience = 20 * time.Second

// Context returns a context that ends after Patience, or with the test.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// TLS returns configurations for the two ends of a connection.
var TLS = sync.OnceValues(func() (client, server *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"carrier.test"},
		// Valid today and in a synctest bubble, which begins with the year 2000.
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	client = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{carrier.ALPN},
		RootCAs: roots, ServerName: "carrier.test",
	}
	server = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{carrier.ALPN},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	return client, server
})

// Shake passes a greeting each way, as Hello and Welcome do, and starts both ends.
func Shake(t testing.TB, client, server carrier.Pending) (carrier.Carrier, carrier.Carrier) {
	t.Helper()
	ctx := Context(t)
	type started struct {
		c   carrier.Carrier
		err error
	}
	serverc := make(chan started, 1)
	go func() {
		c, err := ServeHandshake(ctx, server)
		serverc <- started{c, err}
	}()
	rw, err := client.Handshake(ctx)
	if err != nil {
		t.Fatalf("client handshake: %v", err)
	}
	if _, err := rw.Write([]byte("hello")); err != nil {
		t.Fatalf("client hello: %v", err)
	}
	if _, err := io.ReadFull(rw, make([]byte, 7)); err != nil {
		t.Fatalf("client welcome: %v", err)
	}
	c, err := client.Start(ctx)
	if err != nil {
		t.Fatalf("client start: %v", err)
	}
	t.Cleanup(func() { c.Close(carrier.CodeShutdown, "") })
	s := <-serverc
	if s.err != nil {
		t.Fatalf("server: %v", s.err)
	}
	t.Cleanup(func() { s.c.Close(carrier.CodeShutdown, "") })
	return c, s.c
}

func ServeHandshake(ctx context.Context, server carrier.Pending) (carrier.Carrier, error) {
	rw, err := server.Handshake(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(rw, make([]byte, 5)); err != nil {
		return nil, err
	}
	if _, err := rw.Write([]byte("welcome")); err != nil {
		return nil, err
	}
	return server.Start(ctx)
}

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

// OpenPair opens a stream with its first byte on the way, as users do.
func OpenPair(t testing.TB, opener, acceptor carrier.Carrier) (a, b carrier.Stream) {
	t.Helper()
	ctx := Context(t)
	a, err := opener.OpenStream(ctx)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if _, err := a.Write([]byte{'!'}); err != nil {
		t.Fatalf("first byte: %v", err)
	}
	b, err = acceptor.AcceptStream(ctx)
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
		t.Fatalf("first byte: %v", err)
	}
	t.Cleanup(func() { a.Reset(carrier.CodeNone); b.Reset(carrier.CodeNone) })
	return a, b
}

// writeAs writes b[Headroom:] in one of the two ways.
func writeAs(s carrier.Stream, framed bool, b []byte) (int, error) {
	if framed {
		return s.WriteFramed(b)
	}
	return s.Write(b[carrier.Headroom:])
}

// pour writes n bytes and ends its half; it returns their hash.
func pour(s carrier.Stream, seed uint64, n int) ([32]byte, error) {
	h := sha256.New()
	r := mrand.NewChaCha8([32]byte{byte(seed)})
	buf := make([]byte, carrier.Headroom+carrier.MaxWrite+1)
	for i := 0; n > 0; i++ {
		b := buf[:carrier.Headroom+min(n, []int{50_000, 1, 17_000, carrier.MaxWrite, carrier.MaxWrite + 1}[i%5])]
		r.Read(b)
		h.Write(b[carrier.Headroom:])
		if _, err := writeAs(s, i%2 == 1, b); err != nil {
			return [32]byte{}, err
		}
		n -= len(b) - carrier.Headroom
	}
	return [32]byte(h.Sum(nil)), s.CloseWrite()
}

// drink reads to the end and returns the hash.
func drink(s carrier.Stream) ([32]byte, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, readerOnly{s})
	return [32]byte(h.Sum(nil)), n, err
}

type readerOnly struct{ io.Reader }

func testStreamBulk(t *testing.T, client, server carrier.Carrier) {
	const size = 8 << 20
	for _, way := range [][2]carrier.Carrier{{client, server}, {server, client}} {
		a, b := OpenPair(t, way[0], way[1])
		var wg sync.WaitGroup
		for i, dir := range [][2]carrier.Stream{{a, b}, {b, a}} {
			var poured, drunk [32]byte
			var perr, derr error
			var n int64
			wg.Go(func() {
				var both sync.WaitGroup
				both.Go(func() { poured, perr = pour(dir[0], uint64(i), size) })
				both.Go(func() { drunk, n, derr = drink(dir[1]) })
				both.Wait()
				if perr != nil || derr != nil || n != size || poured != drunk {
					t.Errorf("direction %d: %d bytes, write %v, read %v", i, n, perr, derr)
				}
			})
		}
		wg.Wait()
	}
}

func testHalfClose(t *testing.T, client, server carrier.Carrier) {
	for _, way := range [][2]carrier.Carrier{{client, server}, {server, client}} {
		a, b := OpenPair(t, way[0], way[1])
		if _, err := a.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		if n, err := b.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("a second read at the end: %d, %v", n, err)
		}
		if _, err := a.Write([]byte("more")); err == nil {
			t.Fatal("a write after CloseWrite passed")
		}
		if _, err := b.Write([]byte("answer")); err != nil {
			t.Fatal(err)
		}
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(a); string(got) != "answer" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

func testTail(t *testing.T, client, server carrier.Carrier) {
	const size = 60_000 // within every window
	a, b := OpenPair(t, client, server)
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(a); err != nil {
		t.Fatal(err)
	}
	want, err := pour(a, 3, size)
	if err != nil {
		t.Fatal(err)
	}
	a.Reset(carrier.CodeNone) // both halves have ended: this frees, it does not abandon
	// Whatever Reset might do to the peer has been done once this got through.
	x, y := OpenPair(t, client, server)
	x.CloseWrite()
	io.ReadAll(y)
	got, n, err := drink(b)
	if err != nil || n != size || got != want {
		t.Fatalf("%d of %d bytes, %v", n, size, err)
	}
}

// WantReset checks for a *ResetError, with code unless its cause is the carrier's end.
func WantReset(t *testing.T, what string, err error, code carrier.ErrorCode) {
	t.Helper()
	reset, ok := errors.AsType[*carrier.ResetError](err)
	if !ok || reset.Cause != nil || reset.Code != code {
		t.Errorf("%s: got %v, want a reset with code %d", what, err, code)
	}
}

// WriteUntilError writes until it fails.
func WriteUntilError(s carrier.Stream) error {
	b := make([]byte, 32<<10)
	for {
		if _, err := s.Write(b); err != nil {
			return err
		}
	}
}

func readUntilError(s carrier.Stream) error {
	_, err := io.Copy(io.Discard, readerOnly{s})
	if err == nil {
		return io.EOF
	}
	return err
}

func testReset(t *testing.T, client, server carrier.Carrier) {
	for i, way := range [][2]carrier.Carrier{{client, server}, {server, client}} {
		for side := range 2 {
			a, b := OpenPair(t, way[0], way[1])
			ends := [2]carrier.Stream{a, b}
			results := make(chan error, 2)
			go func() { results <- readUntilError(ends[1-side]) }()
			go func() { results <- readUntilError(ends[side]) }()
			code := carrier.ErrorCode(20 + 2*i + side)
			ends[side].Reset(code)
			for range 2 {
				WantReset(t, "a blocked read", <-results, code)
			}
			_, err := ends[side].Write([]byte("x"))
			WantReset(t, "our write afterwards", err, code)
			WantReset(t, "the peer's write afterwards", WriteUntilError(ends[1-side]), code)
			ends[1-side].Reset(99)
			_, err = ends[1-side].Read(make([]byte, 1))
			if _, ok := errors.AsType[*carrier.ResetError](err); !ok {
				t.Errorf("a read after both resets: %v", err)
			}
		}
	}
}

// ends waits for the end of a stream's context and checks that it is for a reset with code.
func ends(t *testing.T, whose string, ctx context.Context, code carrier.ErrorCode) {
	t.Helper()
	select {
	case <-ctx.Done():
		if reset, ok := errors.AsType[*carrier.ResetError](context.Cause(ctx)); !ok || reset.Code != code {
			t.Errorf("%s context ended with %v, want a reset with code %d", whose, context.Cause(ctx), code)
		}
	case <-time.After(Patience):
		t.Errorf("%s context did not end", whose)
	}
}

func testStreamContext(t *testing.T, client, server carrier.Carrier) {
	a, b := OpenPair(t, client, server)
	ctxA, ctxB := a.Context(), b.Context()
	if a.Context() != ctxA {
		t.Error("there are two of one stream")
	}
	b.Reset(41)
	ends(t, "a peer's reset: the", ctxA, 41)
	<-ctxB.Done()
	<-b.Context().Done()
	ends(t, "one asked for later: the", a.Context(), 41)

	a, b = OpenPair(t, client, server)
	ctxA, ctxB = a.Context(), b.Context()
	for _, s := range []carrier.Stream{a, b} {
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []carrier.Stream{a, b} {
		if _, err := s.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("got %v", err)
		}
	}
	a.Reset(carrier.CodeNone)
	<-ctxA.Done()
	if ctxB.Err() != nil {
		t.Errorf("a clean end, freed by the peer, ended the context: %v", context.Cause(ctxB))
	}
	b.Reset(carrier.CodeNone)
	<-ctxB.Done()

	a, b = OpenPair(t, client, server)
	ctxA, ctxB = a.Context(), b.Context()
	client.Close(carrier.CodeShutdown, "")
	for _, ctx := range []context.Context{ctxA, ctxB} {
		select {
		case <-ctx.Done():
		case <-time.After(Patience):
			t.Error("the carrier's end did not end a context")
		}
	}
	<-a.Context().Done()
}

func testResetWriterAlone(t *testing.T, client, server carrier.Carrier) {
	a, b := OpenPair(t, client, server)
	blocked := make(chan error, 2)
	go func() { blocked <- WriteUntilError(a) }()
	awaitBlocked(t)
	b.Reset(31)
	WantReset(t, "the peer's blocked write", <-blocked, 31)

	a, _ = OpenPair(t, client, server)
	go func() { blocked <- WriteUntilError(a) }()
	awaitBlocked(t)
	a.Reset(32)
	WantReset(t, "our own blocked write", <-blocked, 32)
}

// awaitBlocked waits until a goroutine in WriteUntilError stays blocked, which
// nothing but its stack tells.
func awaitBlocked(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	buf := make([]byte, 1<<20)
	still := 0
	for still < 50 {
		if time.Now().After(deadline) {
			t.Fatal("the writer never blocked")
		}
		stacks := buf[:runtime.Stack(buf, true)]
		waiting := false
		for g := range bytes.SplitSeq(stacks, []byte("\n\n")) {
			if bytes.Contains(g, []byte("carriertest.WriteUntilError")) {
				head, _, _ := bytes.Cut(g, []byte("\n"))
				waiting = bytes.Contains(head, []byte("[select")) || bytes.Contains(head, []byte("[chan receive")) ||
					bytes.Contains(head, []byte("[sync.Cond"))
			}
		}
		if waiting {
			still++
		} else {
			still = 0
		}
		runtime.Gosched()
	}
}

func testBackPressure(t *testing.T, client, server carrier.Carrier) {
	const most = 16 << 20 // windows and buffers of any carrier together
	a, b := OpenPair(t, client, server)
	written := 0
	buf := make([]byte, 32<<10)
	a.SetDeadline(time.Now().Add(500 * time.Millisecond))
	for {
		n, err := a.Write(buf)
		written += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if written > most {
			t.Fatalf("%d bytes taken though nobody reads", written)
		}
	}
	t.Logf("%d bytes taken", written)
	// Other streams and bundles are not held up.
	x, y := OpenPair(t, client, server)
	if _, err := x.Write([]byte("free")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(y, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if err := client.SendBundle([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if n, err := server.ReceiveBundles(make([][]byte, 1)); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	b.Reset(carrier.CodeNone)
}

func testDeadlines(t *testing.T, client, server carrier.Carrier) {
	a, _ := OpenPair(t, client, server)
	start := time.Now()
	a.SetDeadline(start.Add(50 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("after %v", took)
	}
	a.SetDeadline(time.Time{})
	result := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		result <- err
	}()
	a.SetDeadline(time.Now().Add(-time.Second)) // reaches a read under way
	if err := <-result; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read under way: %v", err)
	}
	a.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if err := WriteUntilError(a); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write: %v", err)
	}
}

func testDeadlineResumes(t *testing.T, client, server carrier.Carrier) {
	for _, framed := range []bool{false, true} {
		resumeAfterDeadlines(t, client, server, framed)
	}
}

func resumeAfterDeadlines(t *testing.T, client, server carrier.Carrier, framed bool) {
	a, b := OpenPair(t, client, server)
	h := sha256.New()
	r := mrand.NewChaCha8([32]byte{5})
	buf := make([]byte, carrier.Headroom+33_333)
	written := 0
	for cut := 0; cut < 3; {
		r.Read(buf)
		want := bytes.Clone(buf[carrier.Headroom:])
		a.SetDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := writeAs(a, framed, buf)
		h.Write(want[:n])
		clear(buf) // it is ours again
		written += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			cut++
			a.SetDeadline(time.Time{})
			b.SetDeadline(time.Time{})
			if cut == 3 {
				break
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	result := make(chan error, 1)
	go func() { result <- a.CloseWrite() }()
	got, n, err := drink(b)
	if err != nil || int(n) != written || got != [32]byte(h.Sum(nil)) {
		t.Fatalf("%d of %d bytes, %v", n, written, err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
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

// Await polls what nothing announces.
func Await(t *testing.T, what string, ok func() (int, bool)) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		n, done := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still %d", what, n)
		}
		runtime.Gosched()
	}
}

// Benchmark measures the transport's bundles, of 1,200 bytes and of the largest size, and its streams.
func Benchmark(b *testing.B, tr Transport) {
	b.Run("Bundles/1200", func(b *testing.B) { tr.benchmarkBundles(b, 1200) })
	b.Run("Bundles/Max", func(b *testing.B) { tr.benchmarkBundles(b, 0) })
	b.Run("Stream", tr.benchmarkStream)
}

func (tr Transport) benchmarkBundles(b *testing.B, size int) {
	client, server := tr.Start(b)
	if size == 0 {
		size = client.MaxBundle()
	}
	received := make(chan int, 1)
	go func() {
		n := 0
		dst := make([][]byte, 64)
		for {
			k, err := server.ReceiveBundles(dst)
			if err != nil {
				received <- n
				return
			}
			n += k
		}
	}()
	bundle := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if err := client.SendBundle(bundle); err != nil {
			b.Fatal(err)
		}
	}
	client.Close(carrier.CodeNone, "")
	b.ReportMetric(100*float64(<-received)/float64(b.N), "%arrived")
}

func (tr Transport) benchmarkStream(b *testing.B) {
	client, server := tr.Start(b)
	x, y := OpenPair(b, client, server)
	drunk := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, readerOnly{y})
		drunk <- n
	}()
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	x.CloseWrite()
	if n := <-drunk; n < int64(b.N)*int64(len(buf)) {
		b.Errorf("%d bytes arrived", n)
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

package carriertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	mrand "math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"wmproxy/tunnel/carrier"
)

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

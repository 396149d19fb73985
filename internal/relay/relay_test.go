package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/testmain"
	"wmproxy/tunnel/carrier"
)

func TestMain(m *testing.M) { testmain.Run(m) }

const wait = 10 * time.Second

// fakeStream is one end of a stream over two in-memory pipes, one each way.
type fakeStream struct {
	r       *io.PipeReader
	w       *io.PipeWriter
	wrote   atomic.Int64
	resets  chan carrier.ErrorCode
	inEnded atomic.Bool // Read has returned io.EOF
	closed  atomic.Bool // CloseWrite

	life context.Context
	end  context.CancelCauseFunc
}

func newStream(r *io.PipeReader, w *io.PipeWriter) *fakeStream {
	s := &fakeStream{r: r, w: w, resets: make(chan carrier.ErrorCode, 8)}
	s.life, s.end = context.WithCancelCause(context.Background())
	return s
}

// newStreams returns both ends.
func newStreams() (a, b *fakeStream) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return newStream(ar, aw), newStream(br, bw)
}

func (s *fakeStream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if errors.Is(err, io.EOF) {
		s.inEnded.Store(true)
	}
	return n, err
}

func (s *fakeStream) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.wrote.Add(int64(n))
	return n, err
}

func (s *fakeStream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }

func (s *fakeStream) CloseWrite() error {
	s.closed.Store(true)
	return s.w.Close()
}

func (s *fakeStream) Reset(code carrier.ErrorCode) {
	s.resets <- code
	if s.closed.Load() && s.inEnded.Load() {
		return
	}
	err := &carrier.ResetError{Code: code}
	s.w.CloseWithError(err)
	s.r.CloseWithError(err)
}

func (s *fakeStream) SetDeadline(time.Time) error { return nil }
func (s *fakeStream) Context() context.Context    { return s.life }

var _ carrier.Stream = (*fakeStream)(nil)

// fixture is a relay under test: app ── TCP ── Run ── stream ── far.
type fixture struct {
	app    *net.TCPConn
	conn   *net.TCPConn // the relay's end of it
	far    *fakeStream
	near   *fakeStream
	result chan Result
	cancel context.CancelCauseFunc
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	app, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	near, far := newStreams()
	ctx, cancel := context.WithCancelCause(context.Background())
	b := &fixture{app: app, conn: conn, far: far, near: near, result: make(chan Result, 1), cancel: cancel}
	app.SetDeadline(time.Now().Add(wait))
	var wg sync.WaitGroup
	wg.Go(func() { b.result <- Run(ctx, conn, nil, near) })
	t.Cleanup(func() {
		cancel(nil)
		app.Close()
		wg.Wait()
	})
	return b
}

func (b *fixture) end(t *testing.T) Result {
	t.Helper()
	select {
	case r := <-b.result:
		return r
	case <-time.After(wait):
		t.Fatal("the relay did not end")
		panic("unreachable")
	}
}

func random(n int) []byte {
	p := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(p)
	return p
}

func isReset(t *testing.T, err error, code carrier.ErrorCode) {
	t.Helper()
	var r *carrier.ResetError
	if !errors.As(err, &r) || r.Code != code {
		t.Errorf("got %v, want a reset with code %d", err, code)
	}
}

func TestBothHalvesArriveWholeAndCloseSeparately(t *testing.T) {
	up, down := random(3<<20+17), random(2<<20+5)
	for _, first := range []string{"the application", "the far end"} {
		t.Run(first+" ends first", func(t *testing.T) {
			b := newFixture(t)
			var wg sync.WaitGroup
			defer wg.Wait()
			appDone, farDone := make(chan struct{}), make(chan struct{})
			wg.Go(func() {
				if first == "the far end" { // this half still works after the end of the other
					got, err := io.ReadAll(b.app)
					if err != nil || !bytes.Equal(got, down) {
						t.Errorf("the application got %d bytes, %v", len(got), err)
					}
				}
				b.app.Write(up)
				b.app.CloseWrite()
				close(appDone)
			})
			wg.Go(func() {
				if first == "the application" {
					got, err := io.ReadAll(b.far)
					if err != nil || !bytes.Equal(got, up) {
						t.Errorf("the far end got %d bytes, %v", len(got), err)
					}
				}
				b.far.Write(down)
				b.far.CloseWrite()
				close(farDone)
			})
			if first == "the application" {
				got, err := io.ReadAll(b.app)
				if err != nil || !bytes.Equal(got, down) {
					t.Errorf("the application got %d bytes, %v", len(got), err)
				}
			} else {
				got, err := io.ReadAll(b.far)
				if err != nil || !bytes.Equal(got, up) {
					t.Errorf("the far end got %d bytes, %v", len(got), err)
				}
			}
			want := Result{ToStream: int64(len(up)), FromStream: int64(len(down))}
			if r := b.end(t); r != want {
				t.Errorf("result %+v, want %+v", r, want)
			}
			if code := <-b.near.resets; code != carrier.CodeNone || len(b.near.resets) != 0 {
				t.Errorf("the stream was freed with code %d and %d more", code, len(b.near.resets))
			}
		})
	}
}

func TestRSTOfAppResetsStream(t *testing.T) {
	for _, when := range []string{"idle", "after a half-close of the far end"} {
		t.Run(when, func(t *testing.T) {
			b := newFixture(t)
			if when != "idle" {
				b.far.CloseWrite()
				if _, err := b.app.Read(make([]byte, 1)); err != io.EOF {
					t.Fatal(err)
				}
			}
			b.app.SetLinger(0)
			b.app.Close()
			_, err := io.ReadAll(b.far)
			isReset(t, err, carrier.CodeConnectionReset)
			if r := b.end(t); !errors.Is(r.Err, syscall.ECONNRESET) {
				t.Errorf("ended with %v", r.Err)
			}
		})
	}
}

func TestWriteToClosedAppResetsStream(t *testing.T) {
	b := newFixture(t)
	b.app.Close() // sends a FIN; data that arrives later is answered by a RST
	if _, err := io.ReadAll(b.far); err != nil {
		t.Fatalf("the FIN arrived as %v", err)
	}
	var err error
	for err == nil {
		_, err = b.far.Write(make([]byte, 1<<10))
	}
	isReset(t, err, carrier.CodeConnectionReset)
	if r := b.end(t); r.Err == nil {
		t.Error("ended cleanly")
	}
}

func TestStreamResetBecomesRST(t *testing.T) {
	for _, when := range []string{"idle", "after data", "after the application's half-close"} {
		t.Run(when, func(t *testing.T) {
			b := newFixture(t)
			switch when {
			case "after data":
				b.far.Write([]byte("half of it"))
				if _, err := io.ReadFull(b.app, make([]byte, 10)); err != nil {
					t.Fatal(err)
				}
			case "after the application's half-close":
				b.app.CloseWrite()
				if _, err := b.far.Read(make([]byte, 1)); err != io.EOF {
					t.Fatal(err)
				}
			}
			b.far.Reset(carrier.CodeTimeout)
			if _, err := b.app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the application reads %v, want a reset", err)
			}
			r := b.end(t)
			isReset(t, r.Err, carrier.CodeTimeout)
			if code := <-b.near.resets; code != carrier.CodeTimeout {
				t.Errorf("our half ended with code %d", code)
			}
		})
	}
}

// The application does not read and the stream has no data, so that no read or write returns an error.
func TestEndOfUnreadStreamEndsRelay(t *testing.T) {
	b := newFixture(t)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		_, _ = io.Copy(b.far, neverEnding{}) // until TCP's buffers are full
	}()
	for last := int64(-1); last != b.far.wrote.Load(); time.Sleep(50 * time.Millisecond) {
		last = b.far.wrote.Load()
	}
	b.near.end(&carrier.ResetError{Code: 44})
	isReset(t, b.end(t).Err, 44)
	<-stop
}

// neverEnding is an endless reader of zeros.
type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestEndOfContextResetsBothSides(t *testing.T) {
	b := newFixture(t)
	cause := errors.New("the session has ended")
	b.cancel(cause)
	if r := b.end(t); r.Err != cause {
		t.Errorf("ended with %v", r.Err)
	}
	if _, err := b.app.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the application reads %v, want a reset", err)
	}
	_, err := b.far.Read(make([]byte, 1))
	isReset(t, err, carrier.CodeShutdown)
}

func TestCanceledContextRelaysNothing(t *testing.T) {
	near, _ := newStreams()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r := Run(ctx, c, nil, near); !errors.Is(r.Err, context.Canceled) {
		t.Errorf("ended with %v", r.Err)
	}
}

// A far end that does not read blocks the application; the relay buffers nothing.
func TestSlowReaderBlocksWriter(t *testing.T) {
	b := newFixture(t)
	b.app.SetWriteBuffer(32 << 10)
	b.app.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := b.app.Write(make([]byte, 256<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes, %v", n, err)
	}
	if got := b.near.wrote.Load(); got != 0 {
		t.Errorf("the stream took %d bytes that nobody read", got)
	}
	b.app.SetDeadline(time.Now().Add(wait))
	b.app.CloseWrite()
	got, err := io.Copy(io.Discard, b.far)
	if err != nil || got != int64(n) {
		t.Errorf("%d bytes of %d arrived, %v", got, n, err)
	}
	b.far.CloseWrite()
	if r := b.end(t); r.Err != nil || r.ToStream != int64(n) {
		t.Errorf("result %+v", r)
	}
}

func TestTimeoutAndResetHaveOwnCodes(t *testing.T) {
	for err, want := range map[error]carrier.ErrorCode{
		syscall.ETIMEDOUT:      carrier.CodeTimeout,
		os.ErrDeadlineExceeded: carrier.CodeTimeout,
		syscall.ECONNRESET:     carrier.CodeConnectionReset,
		syscall.EPIPE:          carrier.CodeConnectionReset,
	} {
		if got := tcpCode(&net.OpError{Op: "read", Err: err}); got != want {
			t.Errorf("%v became code %d, want %d", err, got, want)
		}
	}
}

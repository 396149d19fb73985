package udpio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// heard is what a Conn called back with.
type heard struct {
	mu    sync.Mutex
	b     []byte
	ends  []error
	calls int
}

func (h *heard) take(b []byte, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls++
	h.b = append(h.b, b...)
	if err != nil {
		h.ends = append(h.ends, err)
	}
}

func (h *heard) is(ok func(h *heard) bool) func() bool {
	return func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return ok(h)
	}
}

func ended(h *heard) bool { return len(h.ends) > 0 }

// onBothAcceptors runs one test of the contract of Conn on each implementation.
// accept makes a connection: the Conn, and its far end.
func onBothAcceptors(t *testing.T, test func(t *testing.T, accept func(address string) (Conn, *net.TCPConn))) {
	for name, newAcceptor := range map[string]func(net.Listener) Acceptor{
		"native":   NewAcceptor,
		"portable": func(ln net.Listener) Acceptor { return portableAcceptor{ln} },
	} {
		t.Run(name, func(t *testing.T) {
			test(t, func(address string) (Conn, *net.TCPConn) {
				t.Helper()
				ln, err := net.Listen("tcp", address)
				if err != nil {
					t.Skipf("this host cannot listen on %s: %v", address, err)
				}
				a := newAcceptor(ln)
				defer a.Close()
				far, err := net.Dial("tcp", ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { far.Close() })
				_ = far.SetDeadline(time.Now().Add(patience))
				c, err := a.Accept()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.HangUp() })
				return c, far.(*net.TCPConn)
			})
		})
	}
}

// soon waits until ok says so.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func TestAConnReceivesAllThatIsSentAndItsEndOnce(t *testing.T) {
	onBothAcceptors(t, func(t *testing.T, accept func(string) (Conn, *net.TCPConn)) {
		for _, size := range []int{0, 1, connRead - 1, connRead, connRead + 1, 100 * connRead} {
			c, far := accept("127.0.0.1:0")
			sent := bytes.Repeat([]byte("0123456789abcdefghijklm"), size/23+1)[:size]
			h := &heard{}
			if err := c.Start(func(b []byte, err error) {
				h.take(b, err)
				if err != nil {
					_ = c.Close()
				}
			}); err != nil {
				t.Fatal(err)
			}
			// The end comes with the last of it, which is one arrival.
			if _, err := far.Write(sent); err != nil {
				t.Fatal(err)
			}
			if err := far.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			soon(t, "the end", h.is(ended))
			if rest, err := io.ReadAll(far); len(rest) != 0 || err != nil {
				t.Errorf("the far end read % x, %v", rest, err)
			}
			if !bytes.Equal(h.b, sent) || len(h.ends) != 1 || h.ends[0] != io.EOF {
				t.Errorf("%d of %d bytes, ends %v", len(h.b), size, h.ends)
			}
		}
	})
}

func TestAConnAnswersFromItsCallback(t *testing.T) {
	onBothAcceptors(t, func(t *testing.T, accept func(string) (Conn, *net.TCPConn)) {
		c, far := accept("127.0.0.1:0")
		h := &heard{}
		if err := c.Start(func(b []byte, err error) {
			h.take(nil, err)
			if err != nil {
				_ = c.Close()
				return
			}
			if _, err := c.Write(b); err != nil {
				t.Error(err)
			}
			if bytes.HasSuffix(b, []byte("!")) {
				if err := c.CloseWrite(); err != nil {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"one", "two", "three!"} {
			if _, err := io.WriteString(far, s); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(s))
			if _, err := io.ReadFull(far, got); err != nil || string(got) != s {
				t.Fatalf("%q, %v", got, err)
			}
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("after CloseWrite the far end reads %v", err)
		}
		far.Close()
		soon(t, "the end", h.is(ended))
	})
}

func TestHangUpEndsAConnFromAnyGoroutine(t *testing.T) {
	onBothAcceptors(t, func(t *testing.T, accept func(string) (Conn, *net.TCPConn)) {
		c, far := accept("127.0.0.1:0")
		h := &heard{}
		closed := make(chan struct{}, 2)
		if err := c.Start(func(b []byte, err error) {
			h.take(b, err)
			_ = c.Close()
			closed <- struct{}{}
		}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(c.HangUp)
		}
		wg.Wait()
		<-closed
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Error("the far end still reads")
		}
		c.HangUp() // after Close it does nothing
		if err := c.Close(); err == nil {
			t.Error("it could be closed twice")
		}
		if h.calls != 1 {
			t.Errorf("%d calls", h.calls)
		}
	})
}

func TestDetachedConnIsNoLongerRead(t *testing.T) {
	onBothAcceptors(t, func(t *testing.T, accept func(string) (Conn, *net.TCPConn)) {
		c, far := accept("127.0.0.1:0")
		h := &heard{}
		detached := make(chan net.Conn, 1)
		if err := c.Start(func(b []byte, err error) {
			h.take(b, err)
			conn, err := c.Detach()
			if err != nil {
				t.Error(err)
			}
			detached <- conn
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(far, "take me"); err != nil {
			t.Fatal(err)
		}
		conn := <-detached
		defer conn.Close()
		c.HangUp() // not ours any more
		_ = c.Close()
		if _, err := io.WriteString(far, "further"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 7)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "further" {
			t.Errorf("%q, %v", got, err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a deadline in the past: %v", err)
		}
		if _, ok := conn.(*net.TCPConn); !ok {
			t.Errorf("it is a %T", conn)
		}
		if string(h.b) != "take me" || h.calls != 1 {
			t.Errorf("received %q in %d calls", h.b, h.calls)
		}
	})
}

func TestAConnKnowsItsEnds(t *testing.T) {
	onBothAcceptors(t, func(t *testing.T, accept func(string) (Conn, *net.TCPConn)) {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
			c, far := accept(address)
			if got, want := c.RemoteAddr(), AddrPortOf(far.LocalAddr()); got != want {
				t.Errorf("%s: from %v, want %v", address, got, want)
			}
			if got, want := c.LocalAddr(), AddrPortOf(far.RemoteAddr()); got != want {
				t.Errorf("%s: to %v, want %v", address, got, want)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAClosedAcceptorSaysSo(t *testing.T) {
	for name, newAcceptor := range map[string]func(net.Listener) Acceptor{
		"native":   NewAcceptor,
		"portable": func(ln net.Listener) Acceptor { return portableAcceptor{ln} },
	} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		a := newAcceptor(ln)
		got := make(chan error)
		go func() { _, err := a.Accept(); got <- err }()
		a.Close()
		if err := <-got; !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What makes a thousand idle associations cheap.
func TestAnIdleConnCostsNoGoroutine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere it costs one")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := NewAcceptor(ln)
	defer a.Close()
	var ends sync.WaitGroup
	open := func() net.Conn {
		far, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ends.Add(1)
		if err := c.Start(func([]byte, error) { _ = c.Close(); ends.Done() }); err != nil {
			t.Fatal(err)
		}
		return far
	}
	conns := []net.Conn{open()} // the first starts the loop
	before := runtime.NumGoroutine()
	for range 100 {
		conns = append(conns, open())
	}
	if more := runtime.NumGoroutine() - before; more > 0 {
		t.Errorf("100 connections cost %d goroutines", more)
	}
	for _, c := range slices.Backward(conns) {
		c.Close()
	}
	ends.Wait()
}

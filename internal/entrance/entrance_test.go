package entrance

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// patience bounds the waits of tests; nothing takes as long.
const patience = 10 * time.Second

// letters is a protocol of one-letter messages: c asks for a connection, a for an association, r for a refusal, and
// h hangs the handshake.
type letters struct {
	connect func(ctx context.Context, r *Request)
	ended   atomic.Int32 // receivers
}

func (p *letters) Begin(c *Conn, first byte) Receiver {
	if !slices.Contains([]byte("carh"), first) {
		return nil
	}
	return &letter{p, c}
}

func (p *letters) Connect(ctx context.Context, r *Request) { p.connect(ctx, r) }

func (p *letters) Associate(Association) (Uplink, Result) { return nil, Failed }

func (p *letters) Dial(context.Context, Origin, Target, func()) (net.Conn, error) {
	return nil, errRefused
}

var errRefused = errors.New("refused")

type letter struct {
	p *letters
	c *Conn
}

func (l *letter) Receive(b []byte) error {
	for i, x := range b {
		switch x {
		case 'c':
			s, err := l.c.Detach()
			if err != nil {
				return err
			}
			s.Connect(l.p, &Request{
				Ahead:  slices.Clone(b[i+1:]),
				Answer: func(b []byte, r Result, _ netip.AddrPort) []byte { return append(b, 'A'+byte(r)) },
			})
			return nil
		case 'a':
			l.c.Admit(&admitted{l.p})
			return nil
		case 'r':
			return l.c.Told(errRefused, []byte("no"))
		}
	}
	return nil
}

func (l *letter) Ended(error) { l.p.ended.Add(1) }

type admitted struct{ p *letters }

func (a *admitted) Receive([]byte) error { return nil }
func (a *admitted) Ended(error)          { a.p.ended.Add(1) }

// refuse refuses each request.
func refuse(_ context.Context, r *Request) { _ = r.Reply(HostUnreachable, netip.AddrPort{}) }

// pipeListener is a listener in memory; addresses are not IP addresses.
type pipeListener struct {
	conns  chan net.Conn
	errs   chan error
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), errs: make(chan error), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case err := <-l.errs:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{} }

// dial makes a connection that the server has accepted.
func (l *pipeListener) dial() net.Conn {
	near, far := net.Pipe()
	l.conns <- far
	return near
}

// inBubble serves s in memory with a clock of its own.
func inBubble(t *testing.T, s *Server, f func(t *testing.T, ln *pipeListener)) {
	synctest.Test(t, func(t *testing.T) {
		ln := newPipeListener()
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- s.Serve(ctx, ln) }()
		f(t, ln)
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// start serves p on loopback until the test ends.
func start(t *testing.T, s *Server) string {
	t.Helper()
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func send(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got[:n], err, want)
	}
}

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func serverOf(p *letters) *Server { return &Server{Protocols: []Protocol{p}} }

func TestHandshakeEndsAtItsDeadline(t *testing.T) {
	for name, message := range map[string]string{"silent": "", "busy": "h"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, serverOf(&letters{connect: refuse}), func(t *testing.T, ln *pipeListener) {
				start := time.Now()
				c := ln.dial()
				defer c.Close()
				var err error
				for message != "" && err == nil {
					time.Sleep(700 * time.Millisecond)
					_, err = c.Write([]byte(message))
				}
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("read %v", err)
				}
				if took := time.Since(start); took < HandshakeTimeout || took > HandshakeTimeout+time.Second {
					t.Errorf("closed after %v", took)
				}
			})
		})
	}
}

func TestDeadlineEndsWithTheHandshake(t *testing.T) {
	p := &letters{connect: func(_ context.Context, r *Request) {
		_ = r.Reply(OK, netip.AddrPort{})
		_, _ = io.Copy(r.Conn, r.Conn)
	}}
	inBubble(t, serverOf(p), func(t *testing.T, ln *pipeListener) {
		connected, associated := ln.dial(), ln.dial()
		defer connected.Close()
		defer associated.Close()
		send(t, connected, "c")
		expect(t, connected, "A")
		send(t, associated, "a")
		time.Sleep(time.Hour)
		send(t, connected, "x")
		expect(t, connected, "x")
		send(t, associated, "x")
	})
}

func TestUnansweredRequestHasFailed(t *testing.T) {
	c := dial(t, start(t, serverOf(&letters{connect: func(context.Context, *Request) {}})))
	send(t, c, "c")
	expect(t, c, string(rune('A'+byte(Failed))))
}

func TestUnknownFirstByteEndsTheConnection(t *testing.T) {
	addr := start(t, serverOf(&letters{}))
	for _, first := range []string{"z", "\x16\x03\x01", "\x00"} {
		c := dial(t, addr)
		send(t, c, first)
		if got, err := io.ReadAll(c); len(got) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after %q: %q, %v", first, got, err)
		}
	}
}

func TestSecondProtocolIsAsked(t *testing.T) {
	none := &letters{}
	s := &Server{Protocols: []Protocol{protocolFunc(func(*Conn, byte) Receiver { return nil }), none}}
	c := dial(t, start(t, s))
	send(t, c, "r")
	expect(t, c, "no")
}

type protocolFunc func(c *Conn, first byte) Receiver

func (f protocolFunc) Begin(c *Conn, first byte) Receiver { return f(c, first) }

func TestRefusedClientHasTimeToRead(t *testing.T) {
	p := &letters{}
	addr := start(t, serverOf(p))
	c := dial(t, addr)
	send(t, c, "r"+string(make([]byte, 30000)))
	got, err := io.ReadAll(c)
	if string(got) != "no" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	// Beyond the bound it is closed.
	for n := 0; ; n += 512 {
		if _, err := c.Write(make([]byte, 512)); err != nil {
			break
		}
		if n > 64<<20 {
			t.Fatal("the connection stays open")
		}
	}
	if n := p.ended.Load(); n != 1 {
		t.Errorf("Ended was called %d times", n)
	}
}

// halved is a pipe's end that can end its half, of which the other end learns nothing.
type halved struct{ net.Conn }

func (halved) CloseWrite() error { return nil }

func TestLingeringEndsAfterItsTime(t *testing.T) {
	s := serverOf(&letters{})
	inBubble(t, s, func(t *testing.T, ln *pipeListener) {
		near, far := net.Pipe()
		defer near.Close()
		ln.conns <- halved{far}
		send(t, near, "r")
		expect(t, near, "no")
		start := time.Now()
		if _, err := near.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != lingerTime {
			t.Errorf("read %v after %v, want the end after %v", err, time.Since(start), lingerTime)
		}
	})
}

func TestOldestHalfOpenConnectionMakesRoom(t *testing.T) {
	const limit = 8
	s := serverOf(&letters{connect: refuse})
	s.MaxHalfOpen = limit
	inBubble(t, s, func(t *testing.T, ln *pipeListener) {
		conns := make([]net.Conn, 3*limit)
		ended := make([]atomic.Bool, len(conns))
		for i := range conns {
			conns[i] = ln.dial()
			defer conns[i].Close()
			synctest.Wait()
			go func() {
				_, _ = conns[i].Read(make([]byte, 1))
				ended[i].Store(true)
			}()
			synctest.Wait()
			for j := range i + 1 {
				if got, want := ended[j].Load(), j <= i-limit; got != want {
					t.Fatalf("after %d connections, number %d ended: %v, want %v", i+1, j, got, want)
				}
			}
		}
		if n := s.halfOpen.len(); n != limit {
			t.Errorf("%d half-open connections are held", n)
		}
	})
}

func TestRequestPassesACrowdOfSilentConnections(t *testing.T) {
	s := serverOf(&letters{connect: refuse})
	s.MaxHalfOpen = 16
	addr := start(t, s)
	for range 200 {
		dial(t, addr)
	}
	c := dial(t, addr)
	send(t, c, "c")
	expect(t, c, string(rune('A'+byte(HostUnreachable))))
	eventually(t, "only 16 are half open", func() bool { return s.halfOpen.len() <= 16 })
}

func TestRefusedStreamIsHalfOpenUntilClosed(t *testing.T) {
	s := serverOf(&letters{connect: refuse})
	s.MaxHalfOpen = 3
	addr := start(t, s)
	var clients []net.Conn
	for range 5 {
		c := dial(t, addr)
		send(t, c, "c")
		clients = append(clients, c)
	}
	// Of five that linger two had to go.
	eventually(t, "three are left", func() bool { return s.halfOpen.len() == 3 })
	for _, c := range clients {
		c.Close()
	}
	eventually(t, "all are closed", func() bool { return s.halfOpen.len() == 0 })
}

func TestStreamIsHalfOpenBetweenRequests(t *testing.T) {
	s := serverOf(nil)
	inBubble(t, s, func(t *testing.T, ln *pipeListener) {
		streams := make(chan *Stream, 1)
		s.Protocols = []Protocol{protocolFunc(func(c *Conn, _ byte) Receiver { return detaching{c, streams} })}
		c := ln.dial()
		defer c.Close()
		send(t, c, "x")
		st := <-streams
		var got []int
		for _, step := range []func(){func() {}, st.HalfOpen, st.HalfOpen, st.Admit, st.Admit, st.HalfOpen, func() { st.Close() }} {
			step()
			got = append(got, s.halfOpen.len())
		}
		if diff := cmp.Diff([]int{0, 1, 1, 0, 0, 1, 0}, got); diff != "" {
			t.Errorf("half-open connections (-want +got):\n%s", diff)
		}
	})
}

// detaching detaches its connection at the first byte.
type detaching struct {
	c       *Conn
	streams chan<- *Stream
}

func (d detaching) Receive([]byte) error {
	st, err := d.c.Detach()
	if err == nil {
		d.streams <- st
	}
	return err
}

func (d detaching) Ended(error) {}

func TestAcceptSurvivesALackOfDescriptors(t *testing.T) {
	inBubble(t, serverOf(&letters{connect: refuse}), func(t *testing.T, ln *pipeListener) {
		oldest := ln.dial()
		defer oldest.Close()
		synctest.Wait()
		ln.errs <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept", syscall.EMFILE)}
		start, failed := time.Now(), 0
		if _, err := oldest.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != 0 {
			t.Errorf("the oldest half-open connection kept its descriptor for %v: %v", time.Since(start), err)
		}
		for time.Since(start) < time.Minute {
			for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED} {
				ln.errs <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept", errno)}
				failed++
			}
		}
		if failed < 60 || failed > 80 {
			t.Errorf("Accept was called %d times in a minute of errors", failed)
		}
		c := ln.dial()
		defer c.Close()
		send(t, c, "r")
		expect(t, c, "no")
	})
}

// fullListener has no descriptors for a while.
type fullListener struct {
	net.Listener
	full int
}

func (l *fullListener) Accept() (net.Conn, error) {
	if l.full > 0 {
		l.full--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return nil, io.EOF
}

func (l *fullListener) Close() error { return nil }

type counter struct{ n int }

func (c *counter) HangUp() { c.n++ }

func TestHalfOpenConnectionGoesOnlyIfNobodyHasMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []int
		made := true
		s := &Server{MakeRoom: func(halfOpen int) bool {
			asked = append(asked, halfOpen)
			defer func() { made = false }()
			return made
		}}
		closed := &counter{}
		s.halfOpen.add(closed, 0)
		s.halfOpen.add(closed, 0)
		_ = s.Serve(t.Context(), &fullListener{full: 2})
		if diff := cmp.Diff([]int{2, 2}, asked); diff != "" || closed.n != 1 {
			t.Errorf("%d connections closed, want 1; asked (-want +got):\n%s", closed.n, diff)
		}
	})
}

func TestLostListenerEndsServe(t *testing.T) {
	for _, err := range []error{net.ErrClosed, &net.OpError{Op: "accept", Err: net.ErrClosed}, io.EOF} {
		synctest.Test(t, func(t *testing.T) {
			ln := newPipeListener()
			served := make(chan error, 1)
			go func() { served <- serverOf(&letters{}).Serve(t.Context(), ln) }()
			c := ln.dial()
			defer c.Close()
			ln.errs <- err
			if got := <-served; !errors.Is(got, err) {
				t.Errorf("Serve returns %v, want %v", got, err)
			}
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("a connection outlived Serve: %v", err)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	started := make(chan struct{})
	p := &letters{connect: func(ctx context.Context, r *Request) {
		_ = r.Reply(OK, netip.AddrPort{})
		close(started)
		if _, err := r.Conn.Read(make([]byte, 1)); err == nil || ctx.Err() == nil {
			t.Errorf("read %v, context %v", err, ctx.Err())
		}
	}}
	s := serverOf(p)
	inBubble(t, s, func(t *testing.T, ln *pipeListener) {
		half, associated, connected := ln.dial(), ln.dial(), ln.dial()
		send(t, half, "h")
		send(t, associated, "a")
		send(t, connected, "c")
		expect(t, connected, "A")
		<-started
	})
	if ended, open := p.ended.Load(), s.halfOpen.len(); ended != 2 || open != 0 {
		t.Errorf("%d receivers ended, want 2; %d connections are half open, want none", ended, open)
	}
}

func TestResultsOfReplyCodes(t *testing.T) {
	for code, want := range map[byte]Result{
		0: OK, 1: Failed, 2: Denied, 3: NetworkUnreachable, 4: HostUnreachable, 5: Refused, 6: TimedOut,
		7: UnknownCommand, 8: UnknownAddress, 9: Failed, 255: Failed,
	} {
		got := FromSOCKS5(code)
		if got != want || code <= 8 && got.SOCKS5() != code {
			t.Errorf("reply %d is %v (reply %d), want %v", code, got, got.SOCKS5(), want)
		}
	}
	for r := range Result(results) {
		if r.String() == "" || (r.HTTP() == 200) != (r == OK) || (r.SOCKS4() == 90) != (r == OK) || (r.SOCKS5() == 0) != (r == OK) {
			t.Errorf("result %d: %q, %d, %d, %d", uint8(r), r, r.SOCKS5(), r.SOCKS4(), r.HTTP())
		}
	}
}

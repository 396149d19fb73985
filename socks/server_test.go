package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what a test waits for; nothing takes as long.
const patience = 10 * time.Second

// startServer serves s on a loopback address and ends with the test.
func startServer(t testing.TB, s *Server, listen string) string {
	t.Helper()
	ln, err := Listen(t.Context(), listen)
	if err != nil {
		t.Skipf("this host cannot listen on %s: %v", listen, err)
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

// dialServer connects to a server under test.
func dialServer(t testing.TB, addr string) *net.TCPConn {
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

// send writes b in one piece.
func send(t testing.TB, c net.Conn, b ...byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

// expect reads exactly want.
func expect(t testing.TB, c net.Conn, want ...byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read % x, %v, want % x", got[:n], err, want)
	}
}

// expectEnd waits for the end of what the server sends and returns all of it.
func expectEnd(t testing.TB, c net.Conn) []byte {
	t.Helper()
	got, err := io.ReadAll(c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("the server keeps the connection open, after % x", got)
	}
	return got
}

// connectTo is a CONNECT request.
func connectTo(addr []byte) []byte { return append([]byte{5, commandConnect, 0}, addr...) }

// refuseAll is a Connect that replies with a code of its own.
func refuseAll(_ context.Context, r *ConnectRequest) {
	_ = r.Reply(ReplyHostUnreachable, netip.AddrPort{})
}

// logBuffer collects log lines from any goroutine.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// eventually waits until ok says so.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func TestTheMethodIsTheOneThatFitsBoth(t *testing.T) {
	for _, c := range []struct {
		what     string
		password string
		offered  []byte
		want     byte
	}{
		{"open, no authentication", "", []byte{0}, 0},
		{"open, both", "", []byte{0, 2}, 0},
		{"open, both the other way round", "", []byte{2, 0}, 0},
		{"open, a client that insists on a password", "", []byte{2}, 2},
		{"open, only GSSAPI", "", []byte{1}, 0xff},
		{"open, nothing offered", "", nil, 0xff},
		{"password, no authentication", "p", []byte{0}, 0xff},
		{"password, both", "p", []byte{0, 2}, 2},
		{"password, all 255", "p", bytes.Repeat([]byte{0x80, 2, 0}, 85), 2},
		{"password, none of 255", "p", bytes.Repeat([]byte{0x80}, 255), 0xff},
	} {
		addr := startServer(t, &Server{Password: c.password, Connect: refuseAll}, "127.0.0.1:0")
		conn := dialServer(t, addr)
		send(t, conn, append([]byte{5, byte(len(c.offered))}, c.offered...)...)
		expect(t, conn, 5, c.want)
		if c.want == 0xff {
			if rest := expectEnd(t, conn); len(rest) != 0 {
				t.Errorf("%s: then % x", c.what, rest)
			}
		}
	}
}

func TestOnlyTheRightPasswordPasses(t *testing.T) {
	s := &Server{Username: "user", Password: "pass", Connect: refuseAll}
	addr := startServer(t, s, "127.0.0.1:0")
	open := startServer(t, &Server{Connect: refuseAll}, "127.0.0.1:0")
	long := strings.Repeat("x", 255)
	for _, c := range []struct {
		addr, user, password string
		status               byte
	}{
		{addr, "user", "pass", 0},
		{addr, "user", "pas", 1},
		{addr, "user", "passs", 1},
		{addr, "users", "pass", 1},
		{addr, "use", "rpass", 1},
		{addr, "", "", 1},
		{addr, "", "pass", 1},
		{addr, long, long, 1},
		{open, "any", "thing", 0},
		{open, "", "", 0},
	} {
		conn := dialServer(t, c.addr)
		send(t, conn, 5, 1, 2)
		expect(t, conn, 5, 2)
		b := append([]byte{1, byte(len(c.user))}, c.user...)
		b = append(append(b, byte(len(c.password))), c.password...)
		send(t, conn, b...)
		expect(t, conn, 1, c.status)
		if c.status != 0 {
			if rest := expectEnd(t, conn); len(rest) != 0 {
				t.Errorf("%q %q: then % x", c.user, c.password, rest)
			}
			continue
		}
		send(t, conn, connectTo(target4)...)
		expect(t, conn, 5, ReplyHostUnreachable, 0, 1, 0, 0, 0, 0, 0, 0)
	}
}

func TestMalformedInputEndsTheConnectionWithoutAWord(t *testing.T) {
	s := &Server{Username: "u", Connect: refuseAll}
	addr := startServer(t, s, "127.0.0.1:0")
	for what, c := range map[string]struct{ in, out []byte }{
		"SOCKS4":               {[]byte{4, 1, 0, 80, 1, 2, 3, 4, 0}, nil},
		"HTTP":                 {[]byte("GET / HTTP/1.1\r\n\r\n"), nil},
		"TLS":                  {[]byte{22, 3, 1, 2, 0}, nil},
		"half a greeting":      {[]byte{5, 3, 0}, nil},
		"version of password":  {[]byte{5, 1, 2, 5, 1, 'u', 0}, []byte{5, 2}},
		"half a password":      {[]byte{5, 1, 2, 1, 9, 'u', 0}, []byte{5, 2}},
		"version of request":   {append([]byte{5, 1, 2, 1, 1, 'u', 0}, 4, 1, 0, 1, 1, 2, 3, 4, 0, 80), []byte{5, 2, 1, 0}},
		"half a request":       {append([]byte{5, 1, 2, 1, 1, 'u', 0}, 5, 1, 0, 1, 1, 2, 3), []byte{5, 2, 1, 0}},
		"half a name":          {append([]byte{5, 1, 2, 1, 1, 'u', 0}, 5, 1, 0, 3, 200, 'a', 'b'), []byte{5, 2, 1, 0}},
		"a request of 4 bytes": {append([]byte{5, 1, 2, 1, 1, 'u', 0}, 5, 1, 0, 3), []byte{5, 2, 1, 0}},
	} {
		conn := dialServer(t, addr)
		send(t, conn, c.in...)
		_ = conn.CloseWrite() // the server may have closed already
		// A reset may destroy an answer that has not been read, so what there is must be a beginning of it.
		if got := expectEnd(t, conn); !bytes.HasPrefix(c.out, got) {
			t.Errorf("%s: got % x, want % x", what, got, c.out)
		}
	}
}

func TestARequestThatCannotBeServedIsToldWhy(t *testing.T) {
	s := &Server{Connect: refuseAll}
	addr := startServer(t, s, "127.0.0.1:0")
	for what, c := range map[string]struct {
		request []byte
		code    byte
	}{
		"BIND":                     {append([]byte{5, commandBind, 0}, target4...), ReplyCommandUnsupported},
		"command 0":                {append([]byte{5, 0, 0}, target4...), ReplyCommandUnsupported},
		"Tor's RESOLVE":            {append([]byte{5, 0xf0, 0}, target4...), ReplyCommandUnsupported},
		"an entrance without UDP":  {append([]byte{5, commandAssociate, 0}, target4...), ReplyCommandUnsupported},
		"address type 0":           {[]byte{5, 1, 0, 0, 1, 2, 3, 4, 0, 80}, ReplyAddrUnsupported},
		"address type 2":           {[]byte{5, 1, 0, 2, 1, 2, 3, 4, 0, 80}, ReplyAddrUnsupported},
		"an empty name":            {connectTo([]byte{3, 0, 0, 80}), ReplyGeneralFailure},
		"what the hook says":       {connectTo(target4), ReplyHostUnreachable},
		"RSV that is not 0":        {append([]byte{5, 1, 7}, target4...), ReplyHostUnreachable},
		"the longest name":         {connectTo(wireName(longName, 80)), ReplyHostUnreachable},
		"data ahead of the answer": {append(connectTo(target4), make([]byte, 30000)...), ReplyHostUnreachable},
		"garbage after a type":     {append([]byte{5, 1, 0, 9}, make([]byte, 30000)...), ReplyAddrUnsupported},
	} {
		conn := dialServer(t, addr)
		send(t, conn, append([]byte{5, 1, 0}, c.request...)...)
		expect(t, conn, 5, 0)
		expect(t, conn, 5, c.code, 0, 1, 0, 0, 0, 0, 0, 0)
		if err := conn.CloseWrite(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if rest, err := io.ReadAll(conn); len(rest) != 0 || err != nil {
			t.Errorf("%s: then % x, %v", what, rest, err)
		}
	}
}

func TestAConnectThatNobodyAnsweredIsAGeneralFailure(t *testing.T) {
	s := &Server{Connect: func(context.Context, *ConnectRequest) {}}
	conn := dialServer(t, startServer(t, s, "127.0.0.1:0"))
	send(t, conn, append([]byte{5, 1, 0}, connectTo(target4)...)...)
	expect(t, conn, 5, 0, 5, ReplyGeneralFailure, 0, 1, 0, 0, 0, 0, 0, 0)
}

func TestConnectGetsTheRequestAndWhateverTheClientSentAhead(t *testing.T) {
	for what, dst := range map[string][]byte{
		"IPv4": target4,
		"IPv6": append(append([]byte{4}, make([]byte, 16)...), 0, 80),
		"name": wireName("example.org", 443),
	} {
		requests := make(chan ConnectRequest, 1)
		s := &Server{Username: "user", Password: "pass", Connect: func(ctx context.Context, r *ConnectRequest) {
			requests <- *r
			if err := r.Reply(ReplySucceeded, netip.MustParseAddrPort("192.0.2.1:4000")); err != nil {
				t.Errorf("%s: Reply: %v", what, err)
			}
			if err := r.Reply(ReplySucceeded, netip.AddrPort{}); err == nil {
				t.Errorf("%s: a second Reply succeeded", what)
			}
			in, err := io.ReadAll(io.MultiReader(bytes.NewReader(r.Ahead), r.Conn)) // to the client's half-close
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			_, _ = r.Conn.Write(in)
			if err := r.Conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}}
		conn := dialServer(t, startServer(t, s, "127.0.0.1:0"))
		// Everything in one piece, without waiting for any answer.
		b := append([]byte{5, 2, 0, 2, 1, 4}, "user\x04pass"...)
		b = append(append(b, connectTo(dst)...), "early data"...)
		send(t, conn, b...)
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		expect(t, conn, 5, 2, 1, 0, 5, 0, 0, 1, 192, 0, 2, 1, 0x0f, 0xa0)
		if got := expectEnd(t, conn); string(got) != "early data" {
			t.Errorf("%s: %q came back", what, got)
		}
		r := <-requests
		want, _, _ := ParseAddr(dst)
		if r.User != "user" || r.Dst != want || !bytes.Equal(r.DstWire, dst) || r.Client.String() != conn.LocalAddr().String() {
			t.Errorf("%s: got %+v", what, r)
		}
	}
}

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

func TestAHandshakeEndsAtItsDeadlineHoweverBusyTheClientIs(t *testing.T) {
	inBubble(t, &Server{Connect: refuseAll}, func(t *testing.T, ln *pipeListener) {
		for what, script := range map[string]func(c net.Conn) error{
			"silent": func(net.Conn) error { return nil },
			"byte by byte": func(c net.Conn) error {
				_, err := c.Write([]byte{5, 255})
				for err == nil {
					time.Sleep(700 * time.Millisecond)
					_, err = c.Write([]byte{0})
				}
				return nil
			},
			"silent after the greeting": func(c net.Conn) error {
				if _, err := c.Write([]byte{5, 1, 0}); err != nil {
					return err
				}
				_, err := io.ReadFull(c, make([]byte, 2))
				return err
			},
		} {
			start := time.Now()
			c := ln.dial()
			if err := script(c); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%s: read %v", what, err)
			}
			if took := time.Since(start); took < DefaultHandshakeTimeout || took > DefaultHandshakeTimeout+time.Second {
				t.Errorf("%s: closed after %v", what, took)
			}
			c.Close()
		}
	})
}

func TestTheDeadlineIsOffOnceTheRequestIsThere(t *testing.T) {
	s := &Server{Connect: func(_ context.Context, r *ConnectRequest) {
		_ = r.Reply(ReplySucceeded, netip.AddrPort{})
		_, _ = io.Copy(r.Conn, r.Conn)
	}}
	inBubble(t, s, func(t *testing.T, ln *pipeListener) {
		c := ln.dial()
		defer c.Close()
		for _, step := range []struct{ in, out int }{{3, 2}, {10, 10}} {
			b := append([]byte{5, 1, 0}, target4...)[:step.in]
			send(t, c, b...)
			if _, err := io.ReadFull(c, make([]byte, step.out)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		send(t, c, 'x')
		expect(t, c, 'x')
	})
}

func TestTheOldestHalfOpenConnectionMakesRoom(t *testing.T) {
	const limit = 8
	s := &Server{Connect: refuseAll, MaxHalfOpen: limit}
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
		if n := s.halfOpen.conns.Len(); n != limit {
			t.Errorf("%d half-open connections are held", n)
		}
	})
}

func TestAPersonGetsThroughACrowdOfHalfOpenConnections(t *testing.T) {
	s := &Server{Connect: refuseAll, MaxHalfOpen: 16}
	addr := startServer(t, s, "127.0.0.1:0")
	for range 200 {
		dialServer(t, addr)
	}
	conn := dialServer(t, addr)
	send(t, conn, append([]byte{5, 1, 0}, connectTo(target4)...)...)
	expect(t, conn, 5, 0, 5, ReplyHostUnreachable, 0, 1, 0, 0, 0, 0, 0, 0)
	eventually(t, "only 16 are half open", func() bool {
		s.halfOpen.mu.Lock()
		defer s.halfOpen.mu.Unlock()
		return s.halfOpen.conns.Len() <= 16
	})
}

func TestAcceptSurvivesWhatTheSystemRunsOutOf(t *testing.T) {
	s := &Server{Connect: refuseAll}
	inBubble(t, s, func(t *testing.T, ln *pipeListener) {
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
		send(t, c, 5, 1, 0)
		expect(t, c, 5, 0)
	})
}

func TestALostListenerEndsServeWithAnError(t *testing.T) {
	for _, err := range []error{net.ErrClosed, &net.OpError{Op: "accept", Err: net.ErrClosed}, io.EOF} {
		synctest.Test(t, func(t *testing.T) {
			ln := newPipeListener()
			served := make(chan error, 1)
			go func() { served <- (&Server{Connect: refuseAll}).Serve(t.Context(), ln) }()
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

func TestTheEndOfTheContextEndsEverything(t *testing.T) {
	started := make(chan struct{})
	up := &recorder{}
	s := &Server{
		Connect: func(ctx context.Context, r *ConnectRequest) {
			_ = r.Reply(ReplySucceeded, netip.AddrPort{})
			close(started)
			_, err := r.Conn.Read(make([]byte, 1))
			if err == nil || ctx.Err() == nil {
				t.Errorf("read %v, context %v", err, ctx.Err())
			}
		},
		Associate: func(*Association) (Uplink, byte) { return up, 0 },
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	addr := ln.Addr().String()
	half := dialServer(t, addr)
	send(t, half, 5, 9)
	connect := dialServer(t, addr)
	send(t, connect, append([]byte{5, 1, 0}, connectTo(target4)...)...)
	<-started
	control, _ := openAssociation(t, addr)
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for _, c := range []net.Conn{half, connect, control} {
		expectEnd(t, c)
	}
	if n := up.ends.Load(); n != 1 {
		t.Errorf("the association ended %d times", n)
	}
	if open, half := s.halfOpen.conns.Len(), s.reassembling.Load(); open != 0 || half != 0 {
		t.Errorf("%d connections and %d bytes are still counted", open, half)
	}
}

func TestWrongPasswordsAreLoggedWithoutThem(t *testing.T) {
	logs := &logBuffer{}
	addr := startServer(t, &Server{Username: "user", Password: "secret", Connect: refuseAll, Log: logs.logger()}, "127.0.0.1:0")
	conn := dialServer(t, addr)
	send(t, conn, append([]byte{5, 1, 2, 1, 4}, "user\x07guessed"...)...)
	expect(t, conn, 5, 2, 1, 1)
	expectEnd(t, conn)
	conn.Close()
	eventually(t, "a line in the log", func() bool { return strings.Contains(logs.String(), "wrong user name or password") })
	if s := logs.String(); strings.Contains(s, "secret") || strings.Contains(s, "guessed") || !strings.Contains(s, "client=127.0.0.1:") {
		t.Errorf("log: %s", s)
	}
}

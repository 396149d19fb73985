package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wmproxy/socks"
	"wmproxy/tunnel/carrier"
)

// pipeStream is a carrier.Stream over two in-memory pipes.
type pipeStream struct {
	*io.PipeReader
	*io.PipeWriter
}

func (s pipeStream) Read(p []byte) (int, error)        { return s.PipeReader.Read(p) }
func (s pipeStream) Write(p []byte) (int, error)       { return s.PipeWriter.Write(p) }
func (s pipeStream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }
func (s pipeStream) CloseWrite() error                 { return s.PipeWriter.Close() }
func (s pipeStream) SetDeadline(time.Time) error       { return nil }
func (s pipeStream) Context() context.Context          { return context.Background() }
func (s pipeStream) Reset(code carrier.ErrorCode) {
	err := &carrier.ResetError{Code: code}
	s.PipeReader.CloseWithError(err)
	s.PipeWriter.CloseWithError(err) // keeps an end that was clean
}

// asked is a stream that a client has requested.
type asked struct {
	bound   chan netip.AddrPort // on Accept
	refused chan byte
	client  pipeStream
	server  pipeStream
	gone    bool // Accept fails
	life    context.Context
	leave   context.CancelFunc
}

func ask() *asked {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	a := &asked{
		bound: make(chan netip.AddrPort, 1), refused: make(chan byte, 1),
		client: pipeStream{ar, aw}, server: pipeStream{br, bw},
	}
	a.life, a.leave = context.WithCancel(context.Background())
	return a
}

func (a *asked) Refuse(code byte) { a.refused <- code }

func (a *asked) Context() context.Context { return a.life }

func (a *asked) Accept(bound []byte) (carrier.Stream, error) {
	if a.gone {
		return nil, net.ErrClosed
	}
	addr, _, err := socks.ParseAddr(bound)
	if err != nil {
		return nil, err
	}
	a.bound <- addr.AddrPort()
	return a.server, nil
}

// serve runs a stream and returns a channel that is closed at its end.
func serve(t *testing.T, ctx context.Context, e *Exits, addr []byte, a *asked) <-chan struct{} {
	t.Helper()
	return serveFor(t, ctx, exitOf(e, "ann"), addr, a)
}

func serveFor(t *testing.T, ctx context.Context, u *UserExit, addr []byte, a *asked) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		u.serveStream(ctx, addr, a)
		close(done)
	})
	t.Cleanup(func() {
		a.client.Reset(carrier.CodeShutdown)
		wg.Wait()
	})
	return done
}

// target starts a TCP echo and returns its address.
func target(t *testing.T, ip string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Skipf("this host has no %s: %v", ip, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// refusing returns a TCP address on which nothing listens.
func refusing(t *testing.T, ip string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestStreamReachesTargetByAddressAndName(t *testing.T) {
	v4, v6 := target(t, "127.0.0.1"), target(t, "::1")
	dns := newFakeDNS(
		"v4.example", "127.0.0.1",
		"private.example", "10.0.0.1", "private.example", "127.0.0.1",
		"refusing.example", "127.0.0.9", "refusing.example", "127.0.0.1",
	)
	close(dns.release)
	e := newExits(t, Config{Resolve: dns.lookup})
	e.resolver.routable = everyRoute
	for name, addr := range map[string][]byte{
		"IPv4":                           to(v4, ""),
		"IPv6":                           to(v6, ""),
		"a name":                         toName("v4.example", v4.Port(), ""),
		"a literal in a name":            toName("127.0.0.1", v4.Port(), ""),
		"the first is refused by policy": toName("private.example", v4.Port(), ""),
		"the first refuses to connect":   toName("refusing.example", v4.Port(), ""),
	} {
		t.Run(name, func(t *testing.T) {
			a := ask()
			done := serve(t, t.Context(), e, addr, a)
			select {
			case bound := <-a.bound:
				if !bound.Addr().IsLoopback() || bound.Port() == 0 {
					t.Errorf("bound to %v", bound)
				}
			case code := <-a.refused:
				t.Fatalf("refused with %d", code)
			}
			fmt.Fprint(a.client, "hello")
			a.client.CloseWrite()
			got, err := io.ReadAll(a.client)
			if string(got) != "hello" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
			receive(t, done)
		})
	}
	if n := exitOf(e, "ann").streams; n != 0 {
		t.Errorf("%d streams are counted after all ended", n)
	}
}

func TestReplyTellsTheOutcome(t *testing.T) {
	open := target(t, "127.0.0.1")
	dns := newFakeDNS("private.example", "10.0.0.1", "empty.example", "127.0.0.1")
	dns.table["empty.example"] = []netip.Addr{}
	close(dns.release)
	e := newExits(t, Config{
		Resolve: func(ctx context.Context, name string) ([]netip.Addr, error) {
			if name == "hang.example" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dns.lookup(ctx, name)
		},
		DialTimeout: 50 * time.Millisecond,
		Closed:      func(ap netip.AddrPort) bool { return ap.Port() == 8090 },
	})
	for name, tt := range map[string]struct {
		addr []byte
		want byte
	}{
		"policy":            {to(netip.MustParseAddrPort("10.0.0.1:80"), ""), socks.ReplyNotAllowed},
		"policy by name":    {toName("private.example", 80, ""), socks.ReplyNotAllowed},
		"our own port":      {to(netip.MustParseAddrPort("127.0.0.1:8090"), ""), socks.ReplyNotAllowed},
		"refused":           {to(refusing(t, "127.0.0.1"), ""), socks.ReplyConnectionRefused},
		"no such name":      {toName("none.example", 80, ""), socks.ReplyHostUnreachable},
		"a name of nothing": {toName("empty.example", 80, ""), socks.ReplyHostUnreachable},
		"a name that hangs": {toName("hang.example", 80, ""), socks.ReplyTTLExpired},
		"not a name":        {toName("a b", 80, ""), socks.ReplyGeneralFailure},
		"trailing bytes":    {to(open, "x"), socks.ReplyGeneralFailure},
		"cut short":         {to(open, "")[:6], socks.ReplyGeneralFailure},
		"nothing":           {nil, socks.ReplyGeneralFailure},
		"address type":      {[]byte{2, 1, 1, 1, 1, 0, 80}, socks.ReplyAddrUnsupported},
		"port zero":         {to(netip.MustParseAddrPort("127.0.0.1:0"), ""), socks.ReplyGeneralFailure},
	} {
		t.Run(name, func(t *testing.T) {
			a := ask()
			done := serve(t, t.Context(), e, tt.addr, a)
			if code := receive(t, a.refused); code != tt.want {
				t.Errorf("refused with %d, want %d", code, tt.want)
			}
			receive(t, done)
			if len(a.bound) != 0 {
				t.Error("accepted as well")
			}
		})
	}
}

func TestSystemErrorsHaveReplyCodes(t *testing.T) {
	dial := func(err error) error {
		return fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)})
	}
	for _, tt := range []struct {
		err  error
		want byte
	}{
		{errPolicy, socks.ReplyNotAllowed},
		{dial(syscall.EPERM), socks.ReplyNotAllowed},
		{dial(syscall.EACCES), socks.ReplyNotAllowed},
		{dial(syscall.ECONNREFUSED), socks.ReplyConnectionRefused},
		{dial(syscall.ENETUNREACH), socks.ReplyNetworkUnreachable},
		{dial(syscall.EADDRNOTAVAIL), socks.ReplyNetworkUnreachable},
		{dial(syscall.EAFNOSUPPORT), socks.ReplyNetworkUnreachable},
		{dial(syscall.EHOSTUNREACH), socks.ReplyHostUnreachable},
		{dial(syscall.ETIMEDOUT), socks.ReplyTTLExpired},
		{dial(syscall.ECONNRESET), socks.ReplyGeneralFailure},
		{dial(syscall.EMFILE), socks.ReplyGeneralFailure},
		{fmt.Errorf("dial: %w", &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}), socks.ReplyTTLExpired},
		{fmt.Errorf("resolve: %w", context.DeadlineExceeded), socks.ReplyTTLExpired},
		{fmt.Errorf("resolve: %w", &net.DNSError{IsNotFound: true}), socks.ReplyHostUnreachable},
		{fmt.Errorf("resolve: %w", &net.DNSError{IsTimeout: true}), socks.ReplyTTLExpired},
		{fmt.Errorf("resolve: %w", &net.DNSError{IsTemporary: true}), socks.ReplyGeneralFailure},
		{errBusy, socks.ReplyGeneralFailure},
		{context.Canceled, socks.ReplyGeneralFailure},
	} {
		if got := replyCode(tt.err); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.err, got, tt.want)
		}
	}
}

// deaf returns a TCP address that does not answer: the backlog of its listener is full.
func deaf(t *testing.T, ip string, port uint16) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	addr := netip.MustParseAddr(ip)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: addr.As4(), Port: int(port)}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(addr, uint16(sa.(*syscall.SockaddrInet4).Port))
	for range 4 { // fill the backlog
		c, err := net.DialTimeout("tcp", at.String(), 300*time.Millisecond)
		if err != nil {
			break
		}
		t.Cleanup(func() { c.Close() })
	}
	return at
}

func TestSilentTargetTimesOut(t *testing.T) {
	at := deaf(t, "127.0.0.1", 0)
	a := ask()
	done := serve(t, t.Context(), newExits(t, Config{DialTimeout: 50 * time.Millisecond}), to(at, ""), a)
	if code := receive(t, a.refused); code != socks.ReplyTTLExpired {
		t.Errorf("refused with %d, want %d", code, socks.ReplyTTLExpired)
	}
	receive(t, done)
}

func TestStreamsEndWithSessionOrExits(t *testing.T) {
	at := target(t, "127.0.0.1")
	for _, what := range []string{"session", "exits"} {
		t.Run(what, func(t *testing.T) {
			e := New(Config{Exit: permissive})
			defer e.Close()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			a := ask()
			done := serve(t, ctx, e, to(at, ""), a)
			receive(t, a.bound)
			if what == "session" {
				cancel()
			} else {
				e.Close()
			}
			receive(t, done)
			var reset *carrier.ResetError
			if _, err := a.client.Read(make([]byte, 1)); !errors.As(err, &reset) {
				t.Errorf("the client reads %v, want a reset", err)
			}
		})
	}
}

func TestClientGoneBeforeAnswerLeavesNothing(t *testing.T) {
	a := ask()
	a.gone = true
	e := newExits(t, Config{})
	receive(t, serve(t, t.Context(), e, to(target(t, "127.0.0.1"), ""), a))
	if len(a.refused) != 0 || exitOf(e, "ann").streams != 0 {
		t.Error("refused as well, or still counted")
	}
}

func TestDialEndsWithTheClient(t *testing.T) {
	asking := make(chan struct{})
	e := newExits(t, Config{
		Resolve: func(ctx context.Context, _ string) ([]netip.Addr, error) {
			close(asking)
			<-ctx.Done()
			return nil, ctx.Err()
		},
		DialTimeout: time.Hour,
	})
	a := ask()
	done := serve(t, t.Context(), e, toName("hang.example", 80, ""), a)
	receive(t, asking)
	a.leave()
	receive(t, done)
	if n := exitOf(e, "ann").streams; n != 0 {
		t.Errorf("%d streams are still counted", n)
	}
}

func TestLimitsRefuseStreams(t *testing.T) {
	at := target(t, "127.0.0.1")
	e := newExits(t, Config{MaxUserStreams: 1})
	a, b := ask(), ask()
	done := serve(t, t.Context(), e, to(at, ""), a)
	receive(t, a.bound)
	serve(t, t.Context(), e, to(at, ""), b)
	if code := receive(t, b.refused); code != socks.ReplyGeneralFailure {
		t.Errorf("refused with %d", code)
	}
	a.client.Reset(carrier.CodeNone)
	receive(t, done)
	c := ask()
	serve(t, t.Context(), e, to(at, ""), c)
	receive(t, c.bound)
	e.Close()
	d := ask()
	serve(t, t.Context(), e, to(at, ""), d)
	receive(t, d.refused)
}

// All data arrives even if the target closes at once.
func TestEndOfDownloadIsNotCutOff(t *testing.T) {
	const size = 4 << 20
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.Copy(c, strings.NewReader(strings.Repeat("x", size)))
		c.Close()
	})
	a := ask()
	done := serve(t, t.Context(), newExits(t, Config{}), to(l.Addr().(*net.TCPAddr).AddrPort(), ""), a)
	n, err := io.Copy(io.Discard, a.client)
	if n != size || err != nil {
		t.Errorf("%d bytes of %d, %v", n, size, err)
	}
	a.client.CloseWrite()
	receive(t, done)
}

package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/stats"
	"wmproxy/internal/testmain"
	"wmproxy/internal/user"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// patience bounds what a test waits for; nothing takes as long.
const patience = 10 * time.Second

// handler is an entrance.Handler of functions.
type handler struct {
	connect   func(ctx context.Context, r *entrance.Request)
	associate func(a *Association) (entrance.Uplink, entrance.Result)
}

func (h handler) Connect(ctx context.Context, r *entrance.Request) { h.connect(ctx, r) }

func (h handler) Associate(a entrance.Association) (entrance.Uplink, entrance.Result) {
	return h.associate(a.(*Association))
}

func (h handler) Dial(context.Context, entrance.Origin, entrance.Target, func()) (net.Conn, error) {
	panic("SOCKS does not dial")
}

// at returns an entrance for s.
func at(s *Server) *entrance.Server {
	return &entrance.Server{Protocols: []entrance.Protocol{s}, Log: s.Log}
}

// startServer serves s on a loopback address and ends with the test.
func startServer(t testing.TB, s *Server, listen string) string {
	t.Helper()
	ln, err := entrance.Listen(t.Context(), listen)
	if err != nil {
		t.Skipf("this host cannot listen on %s: %v", listen, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- at(s).Serve(ctx, ln) }()
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

// refusing refuses each CONNECT with a result of its own.
var refusing = handler{connect: func(_ context.Context, r *entrance.Request) {
	_ = r.Reply(entrance.HostUnreachable, netip.AddrPort{})
}}

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
		addr := startServer(t, &Server{Users: oneUser("", c.password), Handler: refusing}, "127.0.0.1:0")
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
	s := &Server{Users: oneUser("user", "pass"), Handler: refusing}
	addr := startServer(t, s, "127.0.0.1:0")
	open := startServer(t, &Server{Handler: refusing}, "127.0.0.1:0")
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
	s := &Server{Users: oneUser("u", ""), Handler: refusing}
	addr := startServer(t, s, "127.0.0.1:0")
	for what, c := range map[string]struct{ in, out []byte }{
		"another protocol":     {[]byte{22, 3, 1, 2, 0}, nil},
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
	s := &Server{Handler: refusing}
	addr := startServer(t, s, "127.0.0.1:0")
	for what, c := range map[string]struct {
		request []byte
		code    byte
	}{
		"BIND":                     {append([]byte{5, commandBind, 0}, target4...), ReplyCommandUnsupported},
		"command 0":                {append([]byte{5, 0, 0}, target4...), ReplyCommandUnsupported},
		"Tor's RESOLVE":            {append([]byte{5, 0xf0, 0}, target4...), ReplyCommandUnsupported},
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

func TestConnectGetsDataSentAhead(t *testing.T) {
	for what, dst := range map[string][]byte{
		"IPv4": target4,
		"IPv6": append(append([]byte{4}, make([]byte, 16)...), 0, 80),
		"name": wireName("example.org", 443),
	} {
		requests := make(chan entrance.Request, 1)
		s := &Server{Users: oneUser("user", "pass"), Handler: handler{connect: func(ctx context.Context, r *entrance.Request) {
			requests <- *r
			if err := r.Reply(entrance.OK, netip.MustParseAddrPort("192.0.2.1:4000")); err != nil {
				t.Errorf("%s: Reply: %v", what, err)
			}
			if err := r.Reply(entrance.OK, netip.AddrPort{}); err == nil {
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
		}}}
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
		if r.User.Name != "user" || r.Target != want.target() || r.Client.String() != conn.LocalAddr().String() {
			t.Errorf("%s: got %+v", what, r)
		}
	}
}

func TestTheEndOfTheContextEndsEverything(t *testing.T) {
	started := make(chan struct{})
	up := &recorder{}
	s := &Server{Handler: handler{
		connect: func(ctx context.Context, r *entrance.Request) {
			_ = r.Reply(entrance.OK, netip.AddrPort{})
			close(started)
			_, err := r.Conn.Read(make([]byte, 1))
			if err == nil || ctx.Err() == nil {
				t.Errorf("read %v, context %v", err, ctx.Err())
			}
		},
		associate: func(*Association) (entrance.Uplink, entrance.Result) { return up, entrance.OK },
	}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- at(s).Serve(ctx, ln) }()
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
	if n := s.reassembling.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}

func TestWrongPasswordsAreLoggedWithoutThem(t *testing.T) {
	logs := &logBuffer{}
	addr := startServer(t, &Server{Users: oneUser("user", "secret"), Handler: refusing, Log: logs.logger()}, "127.0.0.1:0")
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

// oneUser returns a set of one user, or an open one if both are empty.
func oneUser(name, password string) *user.Set {
	if name == "" && password == "" {
		return nil
	}
	s := new(user.Set)
	s.Replace([]*user.User{user.New(name, password, new(stats.Total))})
	return s
}

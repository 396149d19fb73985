package httpproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wmproxy/internal/entrance"
	"wmproxy/internal/stats"
	"wmproxy/internal/testmain"
	"wmproxy/internal/user"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// patience bounds the waits of tests; nothing takes as long.
const patience = 10 * time.Second

// exit is an entrance.Handler that dials by itself.
type exit struct {
	result entrance.Result // unless it is OK, all requests end so

	mu      sync.Mutex
	origins []entrance.Origin
}

func (e *exit) Dial(ctx context.Context, o entrance.Origin, t entrance.Target, _ func()) (net.Conn, error) {
	e.mu.Lock()
	e.origins = append(e.origins, o)
	e.mu.Unlock()
	if e.result != entrance.OK {
		return nil, &entrance.Error{Result: e.result, Err: errors.New("the test wants it so")}
	}
	return new(net.Dialer).DialContext(ctx, "tcp", t.String())
}

func (e *exit) Connect(ctx context.Context, r *entrance.Request) {
	c, err := e.Dial(ctx, r.Origin, r.Target, nil)
	if err != nil {
		_ = r.Reply(e.result, netip.AddrPort{})
		return
	}
	defer c.Close()
	if r.Reply(entrance.OK, netip.AddrPort{}) != nil {
		return
	}
	go func() {
		_, _ = io.Copy(c, io.MultiReader(bytes.NewReader(r.Ahead), r.Conn))
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(r.Conn, c)
}

func (e *exit) Associate(entrance.Association) (entrance.Uplink, entrance.Result) {
	return nil, entrance.UnknownCommand
}

// start serves s on loopback until the test ends and returns its address.
func start(t testing.TB, s *Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- (&entrance.Server{Protocols: []entrance.Protocol{s}}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// clientOf returns an HTTP client that uses a proxy.
func clientOf(t testing.TB, proxy string, user *url.Userinfo) *http.Client {
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxy, User: user}), DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// raw sends a request as it is and returns the connection and the response.
func raw(t testing.TB, proxy, request string) (net.Conn, *http.Response) {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("after %.40q: %v", request, err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return c, res
}

func bodyOf(t testing.TB, res *http.Response) string {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// target serves h and returns its HOST:PORT.
func target(t testing.TB, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestForwardedRequestIsTheApplications(t *testing.T) {
	var got http.Header
	var line string
	at := target(t, func(w http.ResponseWriter, r *http.Request) {
		got, line = r.Header.Clone(), r.Method+" "+r.RequestURI+" for "+r.Host
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("X-Own", "2")
		fmt.Fprint(w, "answer")
	})
	_, res := raw(t, start(t, &Server{Handler: &exit{}}), "GET http://"+at+"/a%2Fb?x;y HTTP/1.1\r\nHost: other.example\r\n"+
		"Connection: X-Mine\r\nX-Mine: 1\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic dTpw\r\n"+
		"X-Forwarded-For: 192.0.2.1\r\nAccept: */*\r\n\r\n")
	if line != "GET /a%2Fb?x;y for "+at {
		t.Errorf("the target got %q", line)
	}
	want := http.Header{"Accept": {"*/*"}, "X-Forwarded-For": {"192.0.2.1"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers at the target (-want +got):\n%s", diff)
	}
	if text := bodyOf(t, res); text != "answer" || res.Header.Get("X-Hop") != "" || res.Header.Get("X-Own") != "2" || res.Header.Get("Via") != "" {
		t.Errorf("the application got %q, %v", text, res.Header)
	}
}

func TestConnectionServesFurtherRequests(t *testing.T) {
	e := &exit{}
	at := target(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		_, _ = w.Write(b)
	})
	client := clientOf(t, start(t, &Server{Handler: e}), nil)
	for _, body := range []string{"one", strings.Repeat("two", 100_000), ""} {
		res, err := client.Post("http://"+at, "text/plain", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if got := bodyOf(t, res); got != body {
			t.Errorf("%d bytes came back, want %d", len(got), len(body))
		}
	}
	if len(e.origins) != 1 {
		t.Errorf("the target was connected to %d times, want once", len(e.origins))
	}
}

func TestBodyWaitsForContinue(t *testing.T) {
	at := target(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			http.Error(w, "too much", http.StatusExpectationFailed)
			return
		}
		_, _ = io.Copy(w, r.Body)
	})
	proxy := start(t, &Server{Handler: &exit{}})
	_, res := raw(t, proxy, "POST http://"+at+"/no HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if res.StatusCode != http.StatusExpectationFailed {
		t.Errorf("status %d without the body", res.StatusCode)
	}
	c, res := raw(t, proxy, "POST http://"+at+"/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if res.StatusCode != http.StatusContinue {
		t.Fatalf("status %d, want 100", res.StatusCode)
	}
	_, _ = io.WriteString(c, "hello")
	final, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := bodyOf(t, final); got != "hello" {
		t.Errorf("%q came back", got)
	}
}

func TestUpgradedConnectionPassesBothWays(t *testing.T) {
	at := target(t, func(w http.ResponseWriter, r *http.Request) {
		c, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil || r.Header.Get("Upgrade") != "echo" {
			t.Errorf("upgrade %q: %v", r.Header.Get("Upgrade"), err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(c, buffered)
	})
	c, res := raw(t, start(t, &Server{Handler: &exit{}}), "GET http://"+at+"/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d", res.StatusCode)
	}
	_, _ = io.WriteString(c, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestConnectPassesDataSentAhead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	ahead := strings.Repeat("ahead", 3000)
	c, res := raw(t, start(t, &Server{Handler: &exit{}}), "CONNECT "+ln.Addr().String()+" HTTP/1.1\r\nHost: x\r\n\r\n"+ahead)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("status %d", res.StatusCode)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	// The response's reader holds a part of what follows.
	got, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(ahead, string(got)) || len(got) < len(ahead)-4096 {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

func TestRefusedRequestsAreTold(t *testing.T) {
	open := start(t, &Server{Handler: &exit{}})
	for _, c := range []struct {
		name, request string
		status        int
		text          string
	}{
		{"origin form", "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 400, "This is wmproxy"},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "This is wmproxy"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""},
		{"https", "GET https://example.org/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "CONNECT"},
		{"ftp", "GET ftp://example.org/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "CONNECT"},
		{"no port", "CONNECT example.org HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HOST:PORT"},
		{"port 0", "CONNECT example.org:0 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HOST:PORT"},
		{"port 65536", "CONNECT example.org:65536 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HOST:PORT"},
		{"long name", "CONNECT " + strings.Repeat("a", 256) + ":80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HOST:PORT"},
		{"no HTTP", "HELLO\r\n\r\n", 400, ""},
		{"no Host", "GET http://example.org/ HTTP/1.1\r\n\r\n", 400, ""},
		{"large head", "GET http://example.org/ HTTP/1.1\r\nX: " + strings.Repeat("x", 1<<20), 431, "too large"},
		{"large head, whole", "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead-100) + "\r\n\r\n", 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, res := raw(t, open, c.request)
			if text := bodyOf(t, res); res.StatusCode != c.status || !strings.Contains(text, c.text) {
				t.Errorf("status %d, %q; want %d, %q", res.StatusCode, text, c.status, c.text)
			}
		})
	}
}

func TestStatusTellsTheResult(t *testing.T) {
	for result, want := range map[entrance.Result]int{
		entrance.Failed: 502, entrance.Denied: 403, entrance.NetworkUnreachable: 502, entrance.HostUnreachable: 502,
		entrance.Refused: 502, entrance.TimedOut: 504, entrance.Limit: 503, entrance.Unavailable: 503,
	} {
		t.Run(result.String(), func(t *testing.T) {
			proxy := start(t, &Server{Handler: &exit{result: result}})
			for _, request := range []string{"CONNECT a.example:443", "GET http://a.example/"} {
				_, res := raw(t, proxy, request+" HTTP/1.1\r\nHost: x\r\n\r\n")
				if text := bodyOf(t, res); res.StatusCode != want || !strings.Contains(text, result.String()) || !strings.Contains(text, "a.example") {
					t.Errorf("%s: status %d, %q", request, res.StatusCode, text)
				}
			}
		})
	}
}

func TestTargetThatIsNotHTTPIsABadGateway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for c, err := ln.Accept(); err == nil; c, err = ln.Accept() {
			_, _ = io.WriteString(c, "SSH-2.0-x\r\n")
			c.Close()
		}
	}()
	_, res := raw(t, start(t, &Server{Handler: &exit{}}), "GET http://"+ln.Addr().String()+"/ HTTP/1.1\r\nHost: x\r\n\r\n")
	if res.StatusCode != http.StatusBadGateway {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestOnlyUsersPass(t *testing.T) {
	e := &exit{}
	var logs bytes.Buffer
	users := new(user.Set)
	users.Replace([]*user.User{user.New("ann", "secret", new(stats.Total))})
	s := &Server{Users: users, Handler: e, Log: slog.New(slog.NewTextHandler(&logs, nil))}
	at := target(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the password reached the target")
		}
	})
	t.Run("requests", func(t *testing.T) {
		proxy := start(t, s)
		for _, c := range []struct {
			user *url.Userinfo
			want int
		}{
			{nil, 407},
			{url.UserPassword("ann", "wrong-one"), 407},
			{url.UserPassword("bob", "secret"), 407},
			{url.UserPassword("ann", "secret"), 200},
		} {
			res, err := clientOf(t, proxy, c.user).Get("http://" + at)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != c.want || (c.want == 407) != (res.Header.Get("Proxy-Authenticate") != "") {
				t.Errorf("%v: status %d, %v", c.user, res.StatusCode, res.Header)
			}
		}
		// A client may ask first and authenticate on the same connection.
		c, res := raw(t, proxy, "CONNECT "+at+" HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = bodyOf(t, res)
		_, _ = io.WriteString(c, "CONNECT "+at+" HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic YW5uOnNlY3JldA==\r\n\r\n")
		second, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodConnect})
		if err != nil || res.StatusCode != 407 || second.StatusCode != 200 {
			t.Errorf("%v, then %v, %v", res.Status, second, err)
		}
	})
	for _, o := range e.origins {
		if o.User.Name != "ann" || !o.Client.IsValid() {
			t.Errorf("a request of %+v", o)
		}
	}
	if n := strings.Count(logs.String(), "wrong user name or password"); n != 2 || strings.Contains(logs.String(), "wrong-one") || strings.Contains(logs.String(), "secret") {
		t.Errorf("%d lines of refusals, want 2:\n%s", n, &logs)
	}
}

// pipes is a listener of connections in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// inBubble serves s in memory with a clock of its own.
func inBubble(t *testing.T, s *Server, f func(t *testing.T, dial func() net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		ln := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- (&entrance.Server{Protocols: []entrance.Protocol{s}}).Serve(ctx, ln) }()
		f(t, func() net.Conn {
			near, far := net.Pipe()
			ln.conns <- far
			return near
		})
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestSlowHeadEndsAtItsDeadline(t *testing.T) {
	const whole = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, first := range map[string]string{"first": "", "second": whole} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, &Server{Handler: &exit{}}, func(t *testing.T, dial func() net.Conn) {
				c := dial()
				defer c.Close()
				if first != "" {
					_, _ = io.WriteString(c, first)
					res, err := http.ReadResponse(bufio.NewReader(c), nil)
					if err != nil {
						t.Fatal(err)
					}
					_ = bodyOf(t, res)
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					_, _ = io.Copy(io.Discard, c)
				}()
				start := time.Now()
				_, err := io.WriteString(c, "GET / HTTP/1.1\r\nX: ")
				for err == nil {
					time.Sleep(time.Second)
					_, err = io.WriteString(c, "x")
				}
				<-ended
				if took := time.Since(start); took < headTimeout-time.Second || took > headTimeout+2*time.Second {
					t.Errorf("closed after %v", took)
				}
			})
		})
	}
}

func TestIdleConnectionIsClosed(t *testing.T) {
	inBubble(t, &Server{Handler: &exit{}}, func(t *testing.T, dial func() net.Conn) {
		c := dial()
		defer c.Close()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		b := bufio.NewReader(c)
		res, err := http.ReadResponse(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = bodyOf(t, res)
		start := time.Now()
		if _, err := b.ReadByte(); err != io.EOF || time.Since(start) != idleTimeout {
			t.Errorf("%v after %v, want the end after %v", err, time.Since(start), idleTimeout)
		}
	})
}

func TestNotAllConnectionsAreKept(t *testing.T) {
	s := &Server{Handler: &exit{}}
	inBubble(t, s, func(t *testing.T, dial func() net.Conn) {
		kept := 0
		for range maxKeptAlive + 10 {
			c := dial()
			defer c.Close()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = bodyOf(t, res)
			if !res.Close {
				kept++
			}
		}
		if kept != maxKeptAlive {
			t.Errorf("%d connections are kept, want %d", kept, maxKeptAlive)
		}
	})
}

func TestUnfinishedHeadsTogetherAreBounded(t *testing.T) {
	s := &Server{Handler: &exit{}}
	inBubble(t, s, func(t *testing.T, dial func() net.Conn) {
		part := "GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead-100)
		for range 2 * maxHeads / maxHead {
			c := dial()
			defer c.Close()
			go func() { _, _ = io.WriteString(c, part) }()
			synctest.Wait()
			if n := s.heads.Load(); n > maxHeads+maxHead {
				t.Fatalf("%d bytes of heads are held", n)
			}
		}
		if n := s.heads.Load(); n < maxHeads/2 {
			t.Errorf("only %d bytes of heads are held", n)
		}
		time.Sleep(headTimeout)
		synctest.Wait()
		if n := s.heads.Load(); n != 0 {
			t.Errorf("%d bytes of heads stay", n)
		}
	})
}

// FuzzHead compares the end of a head found at once with the one found byte by byte.
func FuzzHead(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\nbody"))
	f.Add([]byte("GET / HTTP/1.1\n\n"))
	f.Add([]byte("G\r\n\r"))
	f.Add([]byte("\n\r\r\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, at := endsHead(b, len(b)), -1
		for i := range b {
			if endsHead(b[:i+1], 1) {
				at = i
				break
			}
		}
		if whole != (at >= 0) {
			t.Errorf("%q ends at once: %v; byte by byte at %d", b, whole, at)
		}
		if at >= 0 && b[at] != '\n' {
			t.Errorf("%q ends at byte %d", b, at)
		}
	})
}

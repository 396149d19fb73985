package ingress

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/config"
	"wmproxy/internal/egress"
	"wmproxy/internal/entrance"
	"wmproxy/internal/share"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
	"wmproxy/socks"
	"wmproxy/tunnel"
	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/pipe"
)

// application is an application's association that keeps what it is sent.
type application struct {
	origin entrance.Origin
	sent   chan string // from ATYP on
	closed chan struct{}
}

func (a *application) Origin() entrance.Origin { return a.origin }
func (a *application) Age() time.Duration      { return 0 }
func (a *application) Traffic() stats.Snapshot { return stats.Snapshot{} }
func (a *application) Close()                  { close(a.closed) }
func (a *application) Deliver(bodies [][]byte) {
	for _, b := range bodies {
		a.sent <- string(b)
	}
}

// home is a client whose exits a server may use, and its server.
type home struct {
	t        *testing.T
	u        *user.User // on the server
	registry *tunnel.Registry
	client   *tunnel.Session
	handler  *Handler // on the server
}

func newHome(t *testing.T) *home {
	t.Helper()
	var total stats.Total
	h := &home{t: t, u: user.New("ann", "", &total)}
	h.registry = tunnel.NewRegistry(tunnel.RegistryConfig{Authenticate: func(tunnel.Credentials) *user.User { return h.u }})
	exits := egress.New(egress.Config{Exit: config.Exit{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, UDPIdle: time.Minute}})
	h.client = tunnel.NewSession(tunnel.SessionConfig{Exit: exits.For(user.New("server", "", &total))})
	h.handler = &Handler{Route: NewRoute(h.registry), Room: &Room{Pool: share.For(0)}, Log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() {
		h.client.Close(carrier.CodeShutdown, "done")
		h.registry.Close(carrier.CodeShutdown, "done")
		exits.Close()
	})
	return h
}

func (h *home) attach() {
	h.t.Helper()
	near, far := pipe.New()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := h.registry.Attach(context.Background(), far); err != nil {
			h.t.Error(err)
		}
	})
	wg.Go(func() {
		if _, err := h.client.Attach(context.Background(), near, tunnel.Credentials{}); err != nil {
			h.t.Error(err)
		}
	})
	wg.Wait()
}

func TestServersFlowReachesTheClientsExit(t *testing.T) {
	h := newHome(t)
	h.attach()
	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()
	app := &application{origin: entrance.Origin{User: h.u}, sent: make(chan string, 1), closed: make(chan struct{})}
	up, result := h.handler.Associate(app)
	if result != entrance.OK {
		t.Fatal(result)
	}
	defer up.End()
	d := append(socks.AppendAddrPort(nil, udpio.AddrPortOf(echo.LocalAddr())), "hello"...)
	up.Send([]udpio.Message{{Body: d}})
	select {
	case got := <-app.sent:
		if got != string(d) {
			t.Errorf("%q came back, want %q", got, d)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing came back")
	}
}

func TestServersStreamReachesTheClientsExit(t *testing.T) {
	h := newHome(t)
	h.attach()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, c)
	}()
	ap := udpio.AddrPortOf(ln.Addr())
	c, err := h.handler.Dial(t.Context(), entrance.Origin{User: h.u}, entrance.Target{Host: ap.Addr().String(), Port: ap.Port()}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q came back, %v", b, err)
	}
	if up, down := h.u.Total.Streams(); up != 5 || down != 5 {
		t.Errorf("%d bytes up and %d down are counted, want 5 and 5", up, down)
	}
}

func TestWithoutAClientAServersRequestsAreRefused(t *testing.T) {
	h := newHome(t)
	app := &application{origin: entrance.Origin{User: h.u}, closed: make(chan struct{})}
	if _, result := h.handler.Associate(app); result != entrance.Unavailable {
		t.Errorf("an association: %v, want %v", result, entrance.Unavailable)
	}
	if _, err := h.handler.Dial(t.Context(), entrance.Origin{User: h.u}, entrance.Target{Host: "127.0.0.1", Port: 1}, func() {}); err == nil {
		t.Error("a stream was opened")
	}
	h.attach()
	up, result := h.handler.Associate(app)
	if result != entrance.OK {
		t.Fatal(result)
	}
	defer up.End()
	h.client.Close(carrier.CodeShutdown, "done") // it will not come back
	select {
	case <-app.closed:
	case <-time.After(10 * time.Second):
		t.Error("the association did not end with the client")
	}
}

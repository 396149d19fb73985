// Package httpproxy is an HTTP/1.1 proxy (RFC 9110, RFC 9112) at an entrance: CONNECT, and requests in absolute form.
// Unlike RFC 9110 section 7.6.3 demands, it adds no Via field: the target sees the exit, not the way there.
package httpproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/entrance"
	"wmproxy/internal/user"
)

const (
	// maxHead bounds the head of a request in bytes, and maxHeads roughly the heads that are
	// not complete, together.
	maxHead  = 32 << 10
	maxHeads = 8 << 20

	// maxKeptAlive is the number of connections beyond which none waits for a further request.
	maxKeptAlive = 256

	// idleTimeout bounds the wait for a further request, and headTimeout the time from its first byte to
	// the end of its head.
	idleTimeout = time.Minute
	headTimeout = entrance.HandshakeTimeout

	// refusedTimeout bounds the time in which the body of a refused request is read and the answer written.
	refusedTimeout = 5 * time.Second
)

// Server is the HTTP proxy. Its fields must not change once the entrance serves.
type Server struct {
	// Users may come in. If there are none there is no authentication.
	Users *user.Set

	Handler entrance.Handler
	Log     *slog.Logger // nil discards

	once    sync.Once
	http    http.Server
	forward httputil.ReverseProxy
	heads   atomic.Int64 // bytes of heads that are not complete
	open    atomic.Int64 // connections whose first head was complete
}

var _ entrance.Protocol = (*Server)(nil)

// Begin returns a receiver for a connection that begins with the letter of a method.
func (s *Server) Begin(c *entrance.Conn, first byte) entrance.Receiver {
	if first < 'A' || first > 'Z' {
		return nil
	}
	return &head{s: s, c: c}
}

// head receives a connection until its first head is complete, so that a slow one costs no goroutine.
type head struct {
	s *Server
	c *entrance.Conn
	b []byte
}

var errHead = errors.New("httpproxy: the head of the request is too large")

// Receive collects the head.
func (h *head) Receive(b []byte) error {
	h.b = append(h.b, b...)
	if h.s.heads.Add(int64(len(b))) > maxHeads {
		h.c.CloseOldest()
	}
	if !endsHead(h.b, len(b)) {
		if len(h.b) > maxHead {
			return h.c.Told(errHead, response(http.StatusRequestHeaderFieldsTooLarge, "the head of the request is too large"))
		}
		return nil
	}
	stream, err := h.c.Detach()
	if err != nil {
		return h.c.Told(err, response(http.StatusServiceUnavailable, entrance.Limit.String()))
	}
	h.s.heads.Add(-int64(len(h.b)))
	h.s.serve(&conn{Stream: stream, ahead: h.b, client: h.c.RemoteAddr()})
	return nil
}

// Ended frees a head that was not complete.
func (h *head) Ended(err error) {
	h.s.heads.Add(-int64(len(h.b)))
	h.s.log().Debug("HTTP request failed", slog.Any("client", h.c.RemoteAddr()), slog.Any("err", err))
}

// endsHead reports whether an empty line ends among the last n bytes of b.
func endsHead(b []byte, n int) bool {
	tail := b[max(0, len(b)-n-3):]
	return bytes.Contains(tail, []byte("\n\r\n")) || bytes.Contains(tail, []byte("\n\n"))
}

// response returns a whole response, after which the connection is closed.
func response(status int, text string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s\n",
		status, http.StatusText(status), len(text)+1, text)
}

// start prepares the HTTP server, which serves one listener for each connection.
func (s *Server) start() {
	errors := slog.NewLogLogger(s.log().Handler(), slog.LevelDebug)
	http1 := new(http.Protocols)
	http1.SetHTTP1(true)
	s.http = http.Server{
		Handler:                      s,
		Protocols:                    http1,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHead,
		ConnState:                    s.track,
		ErrorLog:                     errors,
		BaseContext:                  func(ln net.Listener) context.Context { return ln.(*listener).conn.Context() },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	s.forward = httputil.ReverseProxy{Rewrite: rewrite, ModifyResponse: asSent, Transport: transport{s}, ErrorHandler: failed, ErrorLog: errors}
}

// serve serves c, whose first head is complete, in a goroutine of its own.
func (s *Server) serve(c *conn) {
	s.once.Do(s.start)
	s.open.Add(1)
	_ = s.http.Serve(&listener{conn: c})
}

// track is called when a connection changes its state. While it waits for a request it counts as half open.
func (s *Server) track(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		c.(*conn).Admit()
	case http.StateIdle:
		c.(*conn).HalfOpen()
	case http.StateHijacked, http.StateClosed:
		c.(*conn).closeIdle()
		s.open.Add(-1)
	}
}

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := connOf(r.Context())
	if s.open.Load() > maxKeptAlive {
		w.Header().Set("Connection", "close")
	}
	if r.URL.Host == "" {
		refuse(w, http.StatusBadRequest, "This is wmproxy, a proxy for SOCKS5 and HTTP. Set this address as the proxy of an application.")
		return
	}
	u := s.user(r)
	if u == nil {
		w.Header().Set("Proxy-Authenticate", `Basic realm="wmproxy", charset="UTF-8"`)
		refuse(w, http.StatusProxyAuthRequired, "a user name and a password are required")
		return
	}
	o := entrance.Origin{User: u, Client: c.client}
	switch {
	case r.Method == http.MethodConnect:
		s.connect(w, r, c, o)
	case r.URL.Scheme != "http":
		refuse(w, http.StatusBadRequest, "only http URLs are forwarded; use CONNECT for others")
	default:
		if c.origin != o {
			c.closeIdle() // connections belong to a user
			c.origin = o
		}
		s.forward.ServeHTTP(w, r)
	}
}

// user returns the user of a request, nil if it may not pass.
func (s *Server) user(r *http.Request) *user.User {
	if s.Users.Open() {
		return s.Users.Anyone()
	}
	given := http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	name, password, ok := given.BasicAuth()
	if !ok {
		return nil // most clients ask without first
	}
	u := s.Users.Authenticate(name, []byte(password))
	if u == nil {
		s.log().Warn("HTTP request failed", slog.Any("client", connOf(r.Context()).client), slog.Any("err", entrance.ErrCredentials))
	}
	return u
}

// connect joins the connection to a target.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, c *conn, o entrance.Origin) {
	t, err := targetOf(r.URL.Hostname(), r.URL.Port())
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, http.StatusInternalServerError, entrance.Failed.String())
		return
	}
	ahead, _ := buffered.Peek(buffered.Reader.Buffered())
	c.Connect(s.Handler, &entrance.Request{
		Origin: o,
		Target: t,
		Ahead:  append(bytes.Clone(ahead), c.ahead...),
		Answer: func(b []byte, res entrance.Result, _ netip.AddrPort) []byte {
			if res == entrance.OK {
				return append(b, "HTTP/1.1 200 Connection established\r\n\r\n"...)
			}
			return append(b, response(res.HTTP(), fmt.Sprintf("%v: %v", t, res))...)
		},
	})
}

// refuse answers a request that is not served.
func refuse(w http.ResponseWriter, status int, text string) {
	conn, until := http.NewResponseController(w), time.Now().Add(refusedTimeout)
	_, _ = conn.SetReadDeadline(until), conn.SetWriteDeadline(until)
	http.Error(w, text, status)
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

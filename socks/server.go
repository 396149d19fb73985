package socks

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wmproxy/internal/udpio"
)

// Defaults and bounds of the server.
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMaxHalfOpen      = 1024

	// lingerTime and lingerBytes bound how long a refused client may go on
	// sending. Closing at once, with bytes unread, would be a reset, and a reset
	// can destroy the reply before the client has read it.
	lingerTime  = time.Second
	lingerBytes = 64 << 10

	minAcceptBackoff = 5 * time.Millisecond
	maxAcceptBackoff = time.Second

	// acceptLogInterval keeps errors of Accept, many a second when the descriptors
	// have run out, from flooding the log.
	acceptLogInterval = 10 * time.Second
)

// Server is a SOCKS5 server (RFC 1928, RFC 1929). It speaks with clients; where
// their bytes go is up to Connect and Associate. The fields are not to be
// changed once Serve has been called.
type Server struct {
	// Username and Password are what a client must send. When both are empty
	// there is no authentication, and a client that sends a password all the
	// same is let in with any.
	Username, Password string

	// UDPAdvertise is the address that clients are told to send datagrams to,
	// for servers behind NAT or in a container; the sockets then bind the wildcard
	// address. The zero value is the address the control connection came in on.
	UDPAdvertise netip.Addr

	// UDPPorts are the ports that associations bind, one each; a single port is
	// shared by all of them. The zero value leaves the choice to the system.
	UDPPorts PortRange

	// UDPFrom are addresses that datagrams may come from, beside the address that
	// the association's control connection comes from. On a shared port such a
	// source takes the oldest association, of whatever client, that has none yet.
	UDPFrom []netip.Prefix

	// NoOffload opens UDP sockets without segmentation and receive offload.
	NoOffload bool

	// Turn, if set, is given to every UDP socket (udpio.Socket.OnTurn).
	Turn *udpio.Turn

	// Connect serves a CONNECT. It runs in a goroutine of the connection's own and
	// returns when the connection is done with; the server closes it then. ctx
	// ends with Serve. Nil refuses the command.
	Connect func(ctx context.Context, r *ConnectRequest)

	// Associate is called for a UDP ASSOCIATE, before the client is answered, and
	// returns where its datagrams go; a nil Uplink refuses, with a reply code. It
	// must not wait. Nil refuses the command.
	Associate func(a *Association) (up Uplink, code byte)

	// Admit, unless nil, is asked about each connection before anything is read
	// from it. done is called once when the handshake is over, whatever became
	// of it; a nil done closes the connection at once. It must not wait.
	Admit func(conn net.Conn) (done func())

	// HandshakeTimeout bounds the time from accept to the end of the request;
	// 0 is DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration

	// MaxHalfOpen bounds the connections that have not finished their request;
	// 0 is DefaultMaxHalfOpen. Beyond it the oldest is closed: people finish in
	// milliseconds, and an attacker's wait for the deadline.
	MaxHalfOpen int

	// Log takes one line for each association that ends and for what an operator
	// can act on; nil discards.
	Log *slog.Logger

	halfOpen     connSet
	ports        portTable
	reassembling atomic.Int64 // bytes in fragment queues
	unmatched    atomic.Uint64
	hashOnce     sync.Once
	hashed       credentials
}

// ConnectRequest is a CONNECT (RFC 1928 section 4).
type ConnectRequest struct {
	User   string         // the authenticated user; empty when there is no authentication
	Client netip.AddrPort // where the connection comes from
	Dst    Addr
	// DstWire is the destination as received, from ATYP to the port.
	DstWire []byte
	// Conn is the connection as it was accepted, so that the halves of a TCP
	// connection can be closed by themselves. Nothing of what the client sent
	// after its request has been read from it.
	Conn net.Conn

	replied bool
	refused bool
}

// Reply answers the request; bound is the local address of the connection to
// the destination. It is called once. Whoever replies with anything but
// ReplySucceeded returns from Connect soon after.
func (r *ConnectRequest) Reply(code byte, bound netip.AddrPort) error {
	if r.replied {
		return errReplied
	}
	r.replied, r.refused = true, code != ReplySucceeded
	_, err := r.Conn.Write(AppendReply(make([]byte, 0, MaxReplyLen), code, bound))
	return err
}

// Unmatched is how many datagrams came in on shared UDP ports that belonged to
// no association.
func (s *Server) Unmatched() uint64 { return s.unmatched.Load() }

// Serve accepts connections from ln, which Listen is for, until ctx ends; then it closes ln and every
// connection at once and returns nil when all of it has ended. Errors of the
// system, such as having no descriptors left, are waited out. Any other error
// of ln ends Serve in the same way and is returned. Several calls may run at once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sv := &serving{Server: s, ctx: ctx}
	sv.wg.Go(func() {
		<-ctx.Done()
		ln.Close()
		sv.open.closeAll()
	})
	err := sv.accept(ln)
	cancel()
	sv.wg.Wait()
	return err
}

// A serving is one call of Serve.
type serving struct {
	*Server
	ctx  context.Context
	open connSet
	wg   sync.WaitGroup
}

// accept hands out connections until the listener is closed.
func (sv *serving) accept(ln net.Listener) error {
	var backoff time.Duration
	var logged time.Time
	for {
		conn, err := ln.Accept()
		if err == nil {
			backoff = 0
			sv.wg.Go(func() { sv.visit(conn) })
			// In a flood Accept never waits: without this, who has just come would be
			// the oldest before it had its first turn.
			runtime.Gosched()
			continue
		}
		if sv.ctx.Err() != nil {
			return nil
		}
		if !passes(err) {
			return fmt.Errorf("socks: accepting connections: %w", err)
		}
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			sv.halfOpen.closeOldest()
		}
		if time.Since(logged) > acceptLogInterval {
			logged = time.Now()
			sv.log().Warn("accepting connections fails; trying on", "err", err)
		}
		backoff = min(max(2*backoff, minAcceptBackoff), maxAcceptBackoff)
		select {
		case <-time.After(backoff):
		case <-sv.ctx.Done():
		}
	}
}

// passes reports whether an error of Accept is the system's and may pass, as
// opposed to the listener having been closed.
func passes(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !errors.Is(err, net.ErrClosed)
}

// visit serves one connection from its first byte to its end.
func (sv *serving) visit(conn net.Conn) {
	tracked := sv.open.add(conn, 0)
	req, ok := sv.receive(conn)
	if !ok {
		conn.Close()
		sv.open.remove(tracked)
		return
	}
	if req.association != nil {
		// In a goroutine of its own, whose stack has not grown: it is what an
		// idle association costs.
		a := req.association
		sv.wg.Go(func() {
			a.hold()
			sv.open.remove(tracked)
		})
		return
	}
	sv.connect(req.connect)
	sv.open.remove(tracked)
}

// connect runs the hook of a CONNECT and closes the connection after it.
func (sv *serving) connect(r *ConnectRequest) {
	defer r.Conn.Close()
	sv.Connect(sv.ctx, r)
	if !r.replied {
		// An error of the hook; the client should not have to guess.
		_ = r.Reply(ReplyGeneralFailure, netip.AddrPort{})
	}
	if r.refused {
		linger(r.Conn)
	}
}

// visitor is what came of a handshake: one of the two.
type visitor struct {
	connect     *ConnectRequest
	association *Association
}

// receive does the handshake of conn within its bounds. When it fails, the
// client has been told why, as far as the protocol can.
func (sv *serving) receive(conn net.Conn) (v visitor, ok bool) {
	if sv.Admit != nil {
		done := sv.Admit(conn)
		if done == nil {
			return v, false
		}
		defer done()
	}
	limit := sv.MaxHalfOpen
	if limit <= 0 {
		limit = DefaultMaxHalfOpen
	}
	half := sv.halfOpen.add(conn, limit)
	defer sv.halfOpen.remove(half)

	timeout := sv.HandshakeTimeout
	if timeout <= 0 {
		timeout = DefaultHandshakeTimeout
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return v, false
	}
	v, err := sv.handshake(conn)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		if v.association != nil {
			v.association.end()
		}
		sv.logHandshake(conn, err)
		return v, false
	}
	return v, true
}

// logHandshake logs a handshake that failed. What anybody can cause at will
// without knowing the protocol is for debugging only.
func (sv *serving) logHandshake(conn net.Conn, err error) {
	level := slog.LevelDebug
	if errors.Is(err, errCredentials) || errors.Is(err, errNoMethod) {
		level = slog.LevelWarn
	}
	sv.log().Log(context.Background(), level, "SOCKS5 handshake failed", "client", addrPortOf(conn.RemoteAddr()), "err", err)
}

// handshake reads greeting, password and request and prepares what was asked
// for. An association has been replied to; a CONNECT has not.
func (sv *serving) handshake(conn net.Conn) (visitor, error) {
	buf := new(handshakeBuffer)
	if err := sv.authenticate(conn, buf); err != nil {
		return visitor{}, err
	}
	req, err := readRequest(conn, buf)
	if errors.Is(err, ErrAddrType) {
		return visitor{}, refuse(conn, ReplyAddrUnsupported, err)
	}
	if err != nil {
		return visitor{}, err
	}
	user := ""
	if sv.authenticates() {
		user = sv.Username
	}
	switch {
	case req.command == commandConnect && sv.Connect != nil:
		dst, _, err := ParseAddr(req.addr)
		if err != nil {
			return visitor{}, refuse(conn, ReplyGeneralFailure, fmt.Errorf("%w: %w", errNoConnect, err))
		}
		return visitor{connect: &ConnectRequest{
			User:    user,
			Client:  addrPortOf(conn.RemoteAddr()),
			Dst:     dst,
			DstWire: append([]byte(nil), req.addr...),
			Conn:    conn,
		}}, nil
	case req.command == commandAssociate && sv.Associate != nil:
		// DST is where the client will send from, or so RFC 1928 has it; real
		// clients write anything there, so it is not even looked at.
		a, err := sv.associate(conn, user)
		return visitor{association: a}, err
	}
	return visitor{}, refuse(conn, ReplyCommandUnsupported, fmt.Errorf("%w: %d", errCommand, req.command))
}

// authenticate reads the greeting and, when that method is chosen, the password.
func (sv *serving) authenticate(conn net.Conn, buf *handshakeBuffer) error {
	methods, err := readGreeting(conn, buf)
	if err != nil {
		return err
	}
	method := chooseMethod(methods, sv.authenticates())
	if method == methodUnacceptable {
		return sayLast(conn, errNoMethod, version, methodUnacceptable)
	}
	if _, err := conn.Write([]byte{version, method}); err != nil || method == methodNone {
		return err
	}
	got, err := readCredentials(conn, buf)
	if err != nil {
		return err
	}
	if sv.authenticates() && !got.equal(sv.wanted()) {
		return sayLast(conn, errCredentials, authVersion, authFailed)
	}
	_, err = conn.Write([]byte{authVersion, authSucceeded})
	return err
}

// authenticates reports whether clients must know a password.
func (s *Server) authenticates() bool { return s.Username != "" || s.Password != "" }

// wanted is the hash of the configured user name and password.
func (s *Server) wanted() *credentials {
	s.hashOnce.Do(func() { s.hashed = hashOf([]byte(s.Username), []byte(s.Password)) })
	return &s.hashed
}

// start begins reading from a socket of an association.
func (s *Server) start(sock *udpio.Socket, receive func([]udpio.Message)) {
	if s.Turn != nil {
		sock.OnTurn(s.Turn)
	}
	sock.Start(receive)
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// refuse replies with code, waits for the client to have read it, and returns why.
func refuse(conn net.Conn, code byte, why error) error {
	return sayLast(conn, why, AppendReply(make([]byte, 0, MaxReplyLen), code, netip.AddrPort{})...)
}

// sayLast sends the last bytes of a connection that is refused and returns why.
func sayLast(conn net.Conn, why error, b ...byte) error {
	if _, err := conn.Write(b); err != nil {
		return errors.Join(why, err)
	}
	linger(conn)
	return why
}

// linger ends our side of conn and throws away what the client still sends, within bounds.
func linger(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		return
	}
	if conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, lingerBytes)
}

// A connSet is a set of connections in the order they came.
type connSet struct {
	mu     sync.Mutex
	conns  list.List
	closed bool
}

// add adds conn, closing the oldest ones beyond limit (0: none). Once the set is
// closed, so is conn.
func (c *connSet) add(conn net.Conn, limit int) *list.Element {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
	}
	for limit > 0 && c.conns.Len() >= limit {
		c.dropOldest()
	}
	return c.conns.PushBack(conn)
}

// remove takes a connection out, if it is still there.
func (c *connSet) remove(e *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns.Remove(e)
}

// closeOldest closes the oldest connection, if there is one.
func (c *connSet) closeOldest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropOldest()
}

func (c *connSet) dropOldest() {
	if e := c.conns.Front(); e != nil {
		c.conns.Remove(e).(net.Conn).Close()
	}
}

// closeAll closes every connection, and those that are added later. A stream that is
// cut off must not look as if it had ended in order: TCP connections are reset.
func (c *connSet) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for e := c.conns.Front(); e != nil; e = e.Next() {
		conn := e.Value.(net.Conn)
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		conn.Close()
	}
}

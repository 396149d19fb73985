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
	DefaultMaxHalfOpen      = 4096 // an application may open all its streams at once

	// lingerTime and lingerBytes bound how long a refused client may go on
	// sending. Closing at once, with bytes unread, would be a reset, and a reset
	// can destroy the reply before the client has read it.
	lingerTime  = time.Second
	lingerBytes = 64 << 10

	minAcceptBackoff = 5 * time.Millisecond
	maxAcceptBackoff = time.Second
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
	// source takes the oldest association, of any client, that has none yet, or else the
	// only one, or the only one that has been silent (see sharedPort.choose).
	UDPFrom []netip.Prefix

	// NoOffload opens UDP sockets without segmentation and receive offload.
	NoOffload bool

	// Connect serves a CONNECT. It runs in a goroutine of the connection's own and
	// returns when the connection is done with; the server closes it then. ctx
	// ends with Serve. Nil refuses the command.
	Connect func(ctx context.Context, r *ConnectRequest)

	// Associate is called for a UDP ASSOCIATE, before the client is answered, and
	// returns where its datagrams go; a nil Uplink refuses, with a reply code. It
	// must not wait. Nil refuses the command.
	Associate func(a *Association) (up Uplink, code byte)

	// HandshakeTimeout bounds the time from accept to the end of the request;
	// 0 is DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration

	// MaxHalfOpen bounds the connections that have not finished their request;
	// 0 is DefaultMaxHalfOpen. Beyond it the oldest is closed: people finish in
	// milliseconds, and an attacker's wait for the deadline.
	MaxHalfOpen int

	// MakeRoom, if set, is called when the system has no descriptor left for a client's
	// request. It may end an association or a CONNECT of a user with more descriptors than
	// there are half-open connections, and reports whether it did; if not, the oldest
	// half-open connection is closed. It must not wait.
	MakeRoom func(halfOpen int) bool

	// Log takes one line for each association that ends and for what an operator
	// can act on; nil discards.
	Log *slog.Logger

	halfOpen     connSet
	ports        portTable
	owners       owners
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
	// Ahead is what the client sent behind its request without waiting for the
	// reply, at most 512 bytes. It comes before what is read from Conn.
	Ahead []byte
	// Conn is the connection as it was accepted, so that the halves of a TCP
	// connection can be closed by themselves.
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
	acceptor := udpio.NewAcceptor(ln)
	sv.wg.Go(func() {
		<-ctx.Done()
		acceptor.Close()
		sv.open.closeAll()
	})
	err := sv.accept(acceptor)
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
func (sv *serving) accept(acceptor udpio.Acceptor) error {
	var backoff time.Duration
	for {
		conn, err := acceptor.Accept()
		if err == nil {
			backoff = 0
			sv.visited(conn)
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
		sv.makeRoom(err)
		sv.log().Warn("accepting connections fails; trying on", "err", err)
		backoff = min(max(2*backoff, minAcceptBackoff), maxAcceptBackoff)
		select {
		case <-time.After(backoff):
		case <-sv.ctx.Done():
		}
	}
}

// makeRoom frees descriptors if err reports that none are left.
func (s *Server) makeRoom(err error) {
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		return
	}
	if s.MakeRoom == nil || !s.MakeRoom(s.halfOpen.len()) {
		s.halfOpen.closeOldest()
	}
}

// passes reports whether an error of Accept is the system's and may pass, as
// opposed to the listener having been closed.
func passes(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !errors.Is(err, net.ErrClosed)
}

// authenticates reports whether clients must know a password.
func (s *Server) authenticates() bool { return s.Username != "" || s.Password != "" }

// wanted is the hash of the configured user name and password.
func (s *Server) wanted() *credentials {
	s.hashOnce.Do(func() { s.hashed = hashOf([]byte(s.Username), []byte(s.Password)) })
	return &s.hashed
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
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
	conns  list.List // of hangers
	closed bool
}

// A hanger is a connection that can be cut by any goroutine. Whoever serves it finds that out.
type hanger interface{ HangUp() }

// cutStream has a stream that is cut off not look as if it had ended in order: a TCP
// connection is reset.
type cutStream struct{ net.Conn }

func (c cutStream) HangUp() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// add adds conn, cutting the oldest ones beyond limit (0: none). Once the set is
// closed, so is conn.
func (c *connSet) add(conn hanger, limit int) *list.Element {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.HangUp()
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

func (c *connSet) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns.Len()
}

// closeOldest cuts the oldest connection, if there is one.
func (c *connSet) closeOldest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropOldest()
}

func (c *connSet) dropOldest() {
	if e := c.conns.Front(); e != nil {
		c.conns.Remove(e).(hanger).HangUp()
	}
}

// closeAll cuts every connection, and those that are added later.
func (c *connSet) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for e := c.conns.Front(); e != nil; e = e.Next() {
		e.Value.(hanger).HangUp()
	}
}

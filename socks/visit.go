package socks

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"wmproxy/internal/udpio"
)

// A visit is one connection, from its first byte to its end or to the CONNECT that
// takes it over. Its methods run in the connection's receive, so one at a time.
//
//	greeting ─▶ password ─▶ request ─▶ association ─▶ over
//	    └──────────┴────────────┴─▶ refused ──────────▶ over
type visit struct {
	sv   *serving
	conn udpio.Conn
	talk *negotiation // nil once the handshake has ended, one way or the other

	association *Association // unless that is not what it came for
	left        int          // bytes that the client may still send, though nobody wants them

	open, half *list.Element
	deadline   *time.Timer
	late       atomic.Bool // the deadline cut the connection
}

// A negotiation is a handshake as far as it has come.
type negotiation struct {
	step func(v *visit, b []byte) (n int, err error) // takes the next message, if it is whole
	held []byte                                      // a message that is not
}

// refusal is why a client was told no.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// visited begins to serve a connection.
func (sv *serving) visited(conn udpio.Conn) {
	timeout := sv.HandshakeTimeout
	if timeout <= 0 {
		timeout = DefaultHandshakeTimeout
	}
	sv.wg.Add(1)
	v := &visit{sv: sv, conn: conn, talk: &negotiation{step: (*visit).greeting}}
	v.open, v.half = sv.open.add(conn, 0), sv.halfOpen.add(conn, sv.maxHalfOpen())
	v.deadline = time.AfterFunc(timeout, func() {
		v.late.Store(true)
		conn.HangUp()
	})
	if err := conn.Start(v.receive); err != nil {
		sv.log().Warn("a connection could not be served", "client", conn.RemoteAddr(), "err", err)
		v.over()
	}
}

func (s *Server) maxHalfOpen() int {
	if s.MaxHalfOpen > 0 {
		return s.MaxHalfOpen
	}
	return DefaultMaxHalfOpen
}

func (v *visit) receive(b []byte, err error) {
	switch {
	case v.talk != nil:
		if err == nil {
			err = v.negotiate(b)
		}
		if err != nil {
			v.failed(err)
		}
	case err != nil || len(b) > v.left:
		v.over()
	default:
		v.left -= len(b)
	}
}

// negotiate takes what arrived to the negotiation, message by message.
func (v *visit) negotiate(b []byte) error {
	talk := v.talk
	if len(talk.held) > 0 {
		talk.held = append(talk.held, b...)
		b = talk.held
	}
	for len(b) > 0 {
		n, err := talk.step(v, b)
		if err != nil || v.talk == nil {
			return err
		}
		if n == 0 {
			break
		}
		b = b[n:]
	}
	// No message is longer than 513 bytes, so that what is held is bounded.
	talk.held = append(talk.held[:0], b...)
	return nil
}

// greeting chooses a method.
func (v *visit) greeting(b []byte) (int, error) {
	methods, n, err := parseGreeting(b)
	if n == 0 {
		return 0, err
	}
	method := chooseMethod(methods, v.sv.authenticates())
	switch method {
	case methodUnacceptable:
		err = refusal{errNoMethod}
	case methodPassword:
		v.talk.step = (*visit).password
	default:
		v.talk.step = (*visit).request
	}
	return n, v.say(err, version, method)
}

// password lets in who knows it.
func (v *visit) password(b []byte) (int, error) {
	got, n, err := parsePassword(b)
	if n == 0 {
		return 0, err
	}
	clear(b[:n])
	if v.sv.authenticates() && !got.equal(v.sv.wanted()) {
		return n, v.say(refusal{errCredentials}, authVersion, authFailed)
	}
	v.talk.step = (*visit).request
	return n, v.say(nil, authVersion, authSucceeded)
}

// request is the end of the negotiation. An association is replied to here; a CONNECT is not.
func (v *visit) request(b []byte) (int, error) {
	sv := v.sv
	req, n, err := parseRequest(b)
	switch {
	case errors.Is(err, ErrAddrType):
		return 0, v.refuse(ReplyAddrUnsupported, err)
	case n == 0:
		return 0, err
	case req.command == commandConnect && sv.Connect != nil:
		return n, v.connect(req, b[n:])
	case req.command == commandAssociate && sv.Associate != nil:
		// DST is where the client will send from, or so RFC 1928 has it; real
		// clients write anything there (see namedSource).
		if v.association, err = v.associate(req.addr); err != nil {
			return n, err
		}
		v.admitted()
		v.left = maxControlJunk - len(b[n:])
		return n, nil
	}
	return n, v.refuse(ReplyCommandUnsupported, fmt.Errorf("%w: %d", errCommand, req.command))
}

// user is who the client has shown to be.
func (v *visit) user() string {
	if v.sv.authenticates() {
		return v.sv.Username
	}
	return ""
}

// connect gives the connection to the hook of a CONNECT, in a goroutine.
func (v *visit) connect(req request, ahead []byte) error {
	sv := v.sv
	dst, _, err := ParseAddr(req.addr)
	if err != nil {
		return v.refuse(ReplyGeneralFailure, fmt.Errorf("%w: %w", errNoConnect, err))
	}
	r := &ConnectRequest{
		User: v.user(), Client: v.conn.RemoteAddr(),
		Dst: dst, DstWire: append([]byte(nil), req.addr...), Ahead: append([]byte(nil), ahead...),
	}
	if r.Conn, err = v.conn.Detach(); err != nil {
		sv.makeRoom(err)
		return v.refuse(ReplyGeneralFailure, err)
	}
	if tcp, ok := r.Conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive)
	}
	v.admitted()
	sv.wg.Go(func() {
		tracked := sv.open.add(cutStream{r.Conn}, 0)
		defer sv.open.remove(tracked)
		sv.open.remove(v.open)
		sv.wg.Done() // the visit's
		sv.connect(r)
	})
	return nil
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
		half := sv.halfOpen.add(cutStream{r.Conn}, sv.maxHalfOpen())
		linger(r.Conn)
		sv.halfOpen.remove(half)
	}
}

// say sends a message and returns why, or what kept it from being sent.
func (v *visit) say(why error, b ...byte) error {
	if _, err := v.conn.Write(b); err != nil {
		return errors.Join(why, err)
	}
	return why
}

// refuse replies with code and returns why.
func (v *visit) refuse(code byte, why error) error {
	return v.say(refusal{why}, AppendReply(make([]byte, 0, MaxReplyLen), code, netip.AddrPort{})...)
}

// admitted ends the negotiation and its bounds.
func (v *visit) admitted() {
	v.talk = nil
	v.deadline.Stop()
	v.sv.halfOpen.remove(v.half)
	v.half, v.deadline = nil, nil
}

// failed ends a negotiation that came to nothing. A client that was told why may take
// its time to read that: closing at once, with bytes unread, would be a reset, and a
// reset can destroy the reply.
func (v *visit) failed(why error) {
	v.talk = nil
	if v.late.Load() {
		why = os.ErrDeadlineExceeded
	}
	v.log(why)
	if told := (refusal{}); errors.As(why, &told) && v.conn.CloseWrite() == nil {
		v.left = lingerBytes
		v.deadline.Reset(lingerTime)
		return
	}
	v.over()
}

// log tells of a handshake that failed. What anybody can cause at will without knowing
// the protocol is for debugging only.
func (v *visit) log(why error) {
	level := slog.LevelDebug
	if errors.Is(why, errCredentials) || errors.Is(why, errNoMethod) {
		level = slog.LevelWarn
	}
	v.sv.log().Log(context.Background(), level, "SOCKS5 handshake failed", "client", v.conn.RemoteAddr(), "err", why)
}

// over is the end of the connection and of what it came for.
func (v *visit) over() {
	if v.half != nil {
		v.deadline.Stop()
		v.sv.halfOpen.remove(v.half)
	}
	if v.association != nil {
		v.association.end()
	} else {
		v.conn.Close()
	}
	v.sv.open.remove(v.open)
	v.sv.wg.Done()
}

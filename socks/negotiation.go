package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"wmproxy/internal/entrance"
	"wmproxy/internal/user"
)

// negotiation receives a connection until its request.
type negotiation struct {
	server *Server
	conn   *entrance.Conn
	user   *user.User
	step   func(n *negotiation, b []byte) (taken int, err error) // takes the next message, if it is whole
	held   []byte                                                // a message that is not; nil once the negotiation has ended
	done   bool                                                  // the request was taken
}

// Receive takes data message by message.
func (n *negotiation) Receive(b []byte) error {
	if len(n.held) > 0 {
		n.held = append(n.held, b...)
		b = n.held
	}
	for len(b) > 0 {
		taken, err := n.step(n, b)
		if err != nil || n.done {
			return err
		}
		if taken == 0 {
			break
		}
		b = b[taken:]
	}
	// No message is longer than 513 bytes, so that what is held is bounded.
	n.held = append(n.held[:0], b...)
	return nil
}

// Ended logs a negotiation that failed. What anybody can cause at will without knowing
// the protocol is for debugging only.
func (n *negotiation) Ended(err error) {
	level := slog.LevelDebug
	if errors.Is(err, entrance.ErrCredentials) || errors.Is(err, errNoMethod) {
		level = slog.LevelWarn
	}
	n.server.log().Log(context.Background(), level, "SOCKS5 handshake failed", "client", n.conn.RemoteAddr(), "err", err)
}

// say sends a message after which the negotiation goes on.
func (n *negotiation) say(b ...byte) error {
	_, err := n.conn.Write(b)
	return err
}

// refuse replies to the request and returns why, for Receive to return.
func (n *negotiation) refuse(r entrance.Result, why error) error {
	return n.conn.Told(why, appendReply(nil, r.SOCKS5(), netip.AddrPort{}))
}

// greeting chooses a method.
func (n *negotiation) greeting(b []byte) (int, error) {
	methods, taken, err := parseGreeting(b)
	if taken == 0 {
		return 0, err
	}
	if n.server.Users.Open() {
		n.user = n.server.Users.Anyone()
	}
	method := chooseMethod(methods, n.user == nil)
	switch method {
	case methodUnacceptable:
		return taken, n.conn.Told(errNoMethod, []byte{version, method})
	case methodPassword:
		n.step = (*negotiation).password
	default:
		n.step = (*negotiation).request
	}
	return taken, n.say(version, method)
}

// password authenticates the application.
func (n *negotiation) password(b []byte) (int, error) {
	name, password, taken, err := parsePassword(b)
	if taken == 0 {
		return 0, err
	}
	defer clear(b[:taken])
	if n.user == nil {
		if n.user = n.server.Users.Authenticate(string(name), password); n.user == nil {
			return taken, n.conn.Told(entrance.ErrCredentials, []byte{authVersion, authFailed})
		}
	}
	n.step = (*negotiation).request
	return taken, n.say(authVersion, authSucceeded)
}

// request is the end of the negotiation. An association is replied to here; a CONNECT is not.
func (n *negotiation) request(b []byte) (int, error) {
	req, taken, err := parseRequest(b)
	switch {
	case errors.Is(err, ErrAddrType):
		return 0, n.refuse(entrance.UnknownAddress, err)
	case taken == 0:
		return 0, err
	}
	n.done = true
	switch req.command {
	case commandConnect:
		return taken, n.connect(req, b[taken:])
	case commandAssociate:
		// DST is the address that the application will send from, or so RFC 1928 has it; real
		// applications write anything there (see namedSource).
		return taken, n.associate(req.addr, len(b)-taken)
	}
	return taken, n.refuse(entrance.UnknownCommand, fmt.Errorf("%w: %d", errCommand, req.command))
}

func (n *negotiation) origin() entrance.Origin {
	return entrance.Origin{User: n.user, Client: n.conn.RemoteAddr()}
}

// connect gives the connection to the handler.
func (n *negotiation) connect(req request, ahead []byte) error {
	dst, _, err := ParseAddr(req.addr)
	if err != nil {
		return n.refuse(entrance.Failed, fmt.Errorf("%w: %w", errNoConnect, err))
	}
	stream, err := n.conn.Detach()
	if err != nil {
		return n.refuse(entrance.Failed, err)
	}
	stream.Connect(n.server.Handler, &entrance.Request{
		Origin: n.origin(),
		Target: dst.target(),
		Ahead:  bytes.Clone(ahead),
		Answer: func(b []byte, r entrance.Result, bound netip.AddrPort) []byte {
			return appendReply(b, r.SOCKS5(), bound)
		},
	})
	return nil
}

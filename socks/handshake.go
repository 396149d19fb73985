package socks

import (
	"errors"
	"net/netip"
)

// Numbers of the protocol, RFC 1928 sections 3 and 4, RFC 1929 section 2.
const (
	version     = 5
	authVersion = 1

	methodNone         = 0
	methodPassword     = 2
	methodUnacceptable = 0xff

	authSucceeded = 0
	authFailed    = 1

	commandConnect   = 1
	commandBind      = 2
	commandAssociate = 3
)

// maxReplyLen is the longest reply in bytes: version, code, reserved and an address.
const maxReplyLen = 3 + MaxAddrLen

// Errors of the handshake. Those that a client is told about are answered before
// the connection is closed; after the others it is closed without a word.
var (
	errVersion      = errors.New("socks: the request is not of SOCKS version 5")
	errAuthVersion  = errors.New("socks: unknown version of the password negotiation")
	errNoMethod     = errors.New("socks: the client offers no authentication method that fits")
	errCommand      = errors.New("socks: command not supported")
	errNoConnect    = errors.New("socks: CONNECT needs a destination")
	errPortsInUse   = errors.New("socks: every UDP port of the range is in use")
	errControlLocal = errors.New("socks: the control connection has no IP address to bind a UDP socket to")
)

// The greeting and its answer (RFC 1928 section 3):
//
//	+-----+----------+---------+        +-----+--------+
//	| VER | NMETHODS | METHODS |        | VER | METHOD |
//	+-----+----------+---------+        +-----+--------+
//	|  1  |    1     | 0 … 255 |        |  1  |   1    |
//	+-----+----------+---------+        +-----+--------+

// The three parse functions below take one message off the front of b and return how
// many bytes it has: 0 while it is not whole, as far as they can tell. What they
// return is in b.

// parseGreeting returns the methods that a greeting offers. It ignores the version.
func parseGreeting(b []byte) (methods []byte, n int, err error) {
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return nil, 0, nil
	}
	n = 2 + int(b[1])
	return b[2:n], n, nil
}

// chooseMethod picks from what a client offers. With a password only the
// password will do. Without one, a client that insists on sending one is let in
// with whatever it sends: there is nothing to protect.
func chooseMethod(offered []byte, passwordSet bool) byte {
	none, password := false, false
	for _, m := range offered {
		none = none || m == methodNone
		password = password || m == methodPassword
	}
	switch {
	case none && !passwordSet:
		return methodNone
	case password:
		return methodPassword
	}
	return methodUnacceptable
}

// The password and its answer (RFC 1929 section 2); VER is 1:
//
//	+-----+------+---------+------+---------+        +-----+--------+
//	| VER | ULEN |  UNAME  | PLEN | PASSWD  |        | VER | STATUS |
//	+-----+------+---------+------+---------+        +-----+--------+
//	|  1  |  1   | 0 … 255 |  1   | 0 … 255 |        |  1  |   1    |
//	+-----+------+---------+------+---------+        +-----+--------+

// parsePassword returns a name and a password. Empty ones, which RFC
// 1929 does not have, are taken as they are.
func parsePassword(b []byte) (user, password []byte, n int, err error) {
	if len(b) > 0 && b[0] != authVersion {
		return nil, nil, 0, errAuthVersion
	}
	if len(b) < 2 || len(b) < 2+int(b[1])+1 {
		return nil, nil, 0, nil
	}
	user, rest := b[2:2+int(b[1])], b[2+int(b[1]):]
	if len(rest) < 1+int(rest[0]) {
		return nil, nil, 0, nil
	}
	password = rest[1 : 1+int(rest[0])]
	return user, password, 2 + len(user) + 1 + len(password), nil
}

// The request and the reply (RFC 1928 sections 4 and 6):
//
//	+-----+-----+-----+------+----------+----------+
//	| VER | CMD | RSV | ATYP | DST.ADDR | DST.PORT |
//	| VER | REP | RSV | ATYP | BND.ADDR | BND.PORT |
//	+-----+-----+-----+------+----------+----------+
//	|  1  |  1  |  1  |  1   | variable |    2     |
//	+-----+-----+-----+------+----------+----------+

// A request is what follows the greeting. addr is ATYP onward, as received; its
// name may be empty, which only an association may send, as a hint.
type request struct {
	command byte
	addr    []byte
}

// parseRequest returns a request. With an address type that nobody knows the error is
// ErrAddrType, and the command is returned.
func parseRequest(b []byte) (r request, n int, err error) {
	if len(b) > 0 && b[0] != version {
		return r, 0, errVersion
	}
	if len(b) < 5 {
		return r, 0, nil
	}
	r.command = b[1]
	switch b[3] {
	case TypeIPv4:
		n = 3 + 1 + 4 + 2
	case TypeIPv6:
		n = 3 + 1 + 16 + 2
	case TypeName:
		n = 3 + 1 + 1 + int(b[4]) + 2
	default:
		return r, 0, ErrAddrType
	}
	if len(b) < n {
		return r, 0, nil
	}
	r.addr = b[3:n]
	return r, n, nil
}

// appendReply appends a reply (RFC 1928 section 6). bound is never written as a
// name; the zero AddrPort becomes 0.0.0.0:0.
func appendReply(b []byte, code byte, bound netip.AddrPort) []byte {
	return AppendAddrPort(append(b, version, code, 0), bound)
}

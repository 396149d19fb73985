package socks

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
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

// MaxReplyLen is the longest reply in bytes: version, code, reserved and an address.
const MaxReplyLen = 3 + MaxAddrLen

// Errors of the handshake. Those that a client is told about are answered before
// the connection is closed; after the others it is closed without a word.
var (
	errVersion      = errors.New("socks: not SOCKS version 5")
	errAuthVersion  = errors.New("socks: unknown version of the password negotiation")
	errNoMethod     = errors.New("socks: the client offers no authentication method that fits")
	errCredentials  = errors.New("socks: wrong user name or password")
	errCommand      = errors.New("socks: command not supported")
	errNoConnect    = errors.New("socks: CONNECT needs a destination")
	errReplied      = errors.New("socks: the request has been replied to")
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

// handshakeBuffer holds the longest part of a handshake: a request.
type handshakeBuffer [3 + MaxAddrLen]byte

// readGreeting reads a greeting, and not one byte more, and returns the methods
// it offers, in buf. Of one that offers none, which is refused, it may read one more.
func readGreeting(r io.Reader, buf *handshakeBuffer) (methods []byte, err error) {
	// No greeting that can be accepted is shorter than three bytes.
	got, err := io.ReadAtLeast(r, buf[:3], 2)
	if err != nil {
		return nil, err
	}
	if buf[0] != version {
		return nil, versionError(buf[0])
	}
	end := 2 + int(buf[1])
	if got < end {
		_, err = io.ReadFull(r, buf[got:end])
	}
	return buf[2:end], err
}

// versionError names the protocols that people point at a SOCKS5 port by mistake.
func versionError(b byte) error {
	switch b {
	case 4:
		return fmt.Errorf("%w: the client speaks SOCKS version 4", errVersion)
	case 'C', 'D', 'G', 'H', 'O', 'P', 'T':
		return fmt.Errorf("%w: the client seems to speak HTTP", errVersion)
	case 22:
		return fmt.Errorf("%w: the client seems to speak TLS", errVersion)
	}
	return fmt.Errorf("%w: the first byte is %d", errVersion, b)
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

// credentials are a user name and a password, hashed so that comparing them
// takes the same time whatever they are.
type credentials struct {
	user, password [sha256.Size]byte
}

// hashOf returns the credentials of a user name and a password.
func hashOf(user, password []byte) credentials {
	return credentials{sha256.Sum256(user), sha256.Sum256(password)}
}

// equal compares in constant time.
func (c *credentials) equal(d *credentials) bool {
	return subtle.ConstantTimeCompare(c.user[:], d.user[:])&
		subtle.ConstantTimeCompare(c.password[:], d.password[:]) == 1
}

// readCredentials reads a password message and not one byte more. Empty names
// and passwords, which RFC 1929 does not have, are read as they are.
func readCredentials(r io.Reader, buf *handshakeBuffer) (credentials, error) {
	var c credentials
	if _, err := io.ReadFull(r, buf[:2]); err != nil {
		return c, err
	}
	if buf[0] != authVersion {
		return c, errAuthVersion
	}
	ulen := int(buf[1])
	if _, err := io.ReadFull(r, buf[:ulen+1]); err != nil {
		return c, err
	}
	c.user = sha256.Sum256(buf[:ulen])
	password := buf[:buf[ulen]]
	if _, err := io.ReadFull(r, password); err != nil {
		return c, err
	}
	c.password = sha256.Sum256(password)
	clear(buf[:])
	return c, nil
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

// readRequest reads a request, and not one byte more, so that what a client
// sends ahead of the reply stays in the connection. The shortest request has
// seven bytes. The result is in buf.
func readRequest(r io.Reader, buf *handshakeBuffer) (request, error) {
	got, err := io.ReadAtLeast(r, buf[:7], 5)
	if err != nil {
		return request{}, err
	}
	if buf[0] != version {
		return request{}, versionError(buf[0])
	}
	req := request{command: buf[1]}
	end := 0
	switch buf[3] {
	case TypeIPv4:
		end = 3 + 1 + 4 + 2
	case TypeIPv6:
		end = 3 + 1 + 16 + 2
	case TypeName:
		end = 3 + 1 + 1 + int(buf[4]) + 2
	default:
		return req, ErrAddrType
	}
	if got < end {
		if _, err := io.ReadFull(r, buf[got:end]); err != nil {
			return req, err
		}
	}
	req.addr = buf[3:end]
	return req, nil
}

// AppendReply appends a reply (RFC 1928 section 6). bound is never written as a
// name; the zero AddrPort becomes 0.0.0.0:0.
func AppendReply(b []byte, code byte, bound netip.AddrPort) []byte {
	return AppendAddrPort(append(b, version, code, 0), bound)
}

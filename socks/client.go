package socks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// defaultClientTimeout bounds a Client's dial and handshake together when its
// Timeout is zero. It leaves a server time to try a slow destination.
const defaultClientTimeout = 30 * time.Second

// maxCredentialLen is the longest user name or password in bytes, RFC 1929
// section 2.
const maxCredentialLen = 255

// Errors of the client side. They come wrapped in a *StepError that says how
// far the exchange got.
var (
	// ErrNotSOCKS5: what answered does not speak version 5.
	ErrNotSOCKS5 = errors.New("socks: the answer is not SOCKS5")
	// ErrNoMethod: the server wants none of the offered methods, RFC 1928 section 3.
	ErrNoMethod = errors.New("socks: the server accepts none of the offered authentication methods")
	// ErrAuth: the server refused the user name or the password, RFC 1929 section 2.
	ErrAuth = errors.New("socks: the server refused the user name or password")
	// ErrHungUp: the server closed the connection where an answer was due.
	ErrHungUp = errors.New("socks: the server closed the connection instead of answering")
	// ErrMalformed: an answer breaks the RFCs' layout.
	ErrMalformed = errors.New("socks: malformed answer")
	// ErrLongName: a name, user name or password exceeds its 255 bytes.
	ErrLongName = errors.New("socks: longer than 255 bytes")
)

// ReplyError is a reply other than success, RFC 1928 section 6.
type ReplyError struct {
	Code byte
}

func (e *ReplyError) Error() string {
	return fmt.Sprintf("socks: the server replied %d (%s)", e.Code, e.Reason())
}

// Reason is the code in words.
func (e *ReplyError) Reason() string {
	switch e.Code {
	case ReplyGeneralFailure:
		return "general failure"
	case ReplyNotAllowed:
		return "not allowed by its rules"
	case ReplyNetworkUnreachable:
		return "network unreachable"
	case ReplyHostUnreachable:
		return "host unreachable"
	case ReplyConnectionRefused:
		return "connection refused"
	case ReplyTTLExpired:
		return "TTL expired"
	case ReplyCommandUnsupported:
		return "command not supported"
	case ReplyAddrUnsupported:
		return "address type not supported"
	}
	return "unassigned code"
}

// Step is a stage of the exchange between a Client and its server.
type Step uint8

// The steps in their order. StepAuth is left out when the server asks for no
// authentication; StepSocket happens in Associate alone.
const (
	StepDial     Step = iota + 1 // the TCP connection
	StepGreeting                 // the choice of a method, RFC 1928 section 3
	StepAuth                     // user name and password, RFC 1929
	StepReply                    // the request and its reply, RFC 1928 sections 4 and 6
	StepSocket                   // the local UDP socket of an association
)

func (s Step) String() string {
	switch s {
	case StepDial:
		return "dial"
	case StepGreeting:
		return "greeting"
	case StepAuth:
		return "authentication"
	case StepReply:
		return "reply"
	case StepSocket:
		return "UDP socket"
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// StepError is the failure of one step. Err is one of this package's errors,
// a *ReplyError, an error of the network, or the context's.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string { return e.Step.String() + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *StepError) Unwrap() error { return e.Err }

// Client speaks to one SOCKS5 server. It may be used by many goroutines at
// once; its fields must not change meanwhile.
type Client struct {
	// Server is the server's HOST:PORT.
	Server string

	// Username and Password, up to 255 bytes each, are offered beside "no
	// authentication" unless both are empty.
	Username, Password string

	// Dialer makes the TCP connection; nil means the zero net.Dialer.
	Dialer *net.Dialer

	// Timeout bounds dial and handshake together, beside the context; zero means
	// defaultClientTimeout.
	Timeout time.Duration

	// OnStep, when set, is called after each step that succeeded, by the goroutine
	// that called Connect or Associate. bound is BND at StepReply, else zero.
	OnStep func(step Step, bound Addr)
}

// Connect asks the server for a TCP connection to dst (RFC 1928 section 4,
// CONNECT). The result is a *net.TCPConn, so CloseWrite half-closes it. The
// context bounds the handshake only. Errors are *StepError.
func (c *Client) Connect(ctx context.Context, dst Addr) (net.Conn, error) {
	if err := dst.encodable(); err != nil {
		return nil, &StepError{StepReply, err}
	}
	conn, _, err := c.open(ctx, askConnect, dst)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// Commands that a Client sends, RFC 1928 section 4.
const (
	askConnect   = 1
	askAssociate = 3
)

// open dials, passes the handshake and sends one request. The connection that
// it returns has no deadline.
func (c *Client) open(ctx context.Context, cmd byte, dst Addr) (*net.TCPConn, Addr, error) {
	if len(c.Username) > maxCredentialLen || len(c.Password) > maxCredentialLen {
		return nil, Addr{}, &StepError{StepAuth, fmt.Errorf("user name or password: %w", ErrLongName)}
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = defaultClientTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dialer := c.Dialer
	if dialer == nil {
		dialer = &net.Dialer{}
	}
	dialed, err := dialer.DialContext(ctx, "tcp", c.Server)
	if err != nil {
		return nil, Addr{}, &StepError{StepDial, err}
	}
	conn, ok := dialed.(*net.TCPConn)
	if !ok {
		dialed.Close()
		return nil, Addr{}, &StepError{StepDial, errors.New("socks: the dialer made no TCP connection")}
	}
	c.passed(StepDial, Addr{})

	// The context reaches the blocking reads and writes through the deadline.
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		conn.SetDeadline(time.Unix(1, 0))
		close(aborted)
	})
	bound, step, err := c.exchange(conn, cmd, dst)
	if !stop() {
		<-aborted
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, Addr{}, &StepError{step, err}
	}
	return conn, bound, nil
}

func (c *Client) passed(step Step, bound Addr) {
	if c.OnStep != nil {
		c.OnStep(step, bound)
	}
}

// Methods that a Client offers, and the answer when none suits, RFC 1928 section 3.
const (
	offerNone     = 0
	offerUserPass = 2
	noneAccepted  = 0xff
)

// exchange runs the handshake on a fresh connection and says at which step it
// stopped.
//
//	VER 5 · NMETHODS · METHODS             →
//	                                       ←  VER 5 · METHOD
//	VER 1 · ULEN · UNAME · PLEN · PASSWD   →                          (method 2)
//	                                       ←  VER · STATUS
//	VER 5 · CMD · RSV 0 · DST              →
//	                                       ←  VER 5 · REP · RSV · BND
func (c *Client) exchange(conn io.ReadWriter, cmd byte, dst Addr) (Addr, Step, error) {
	methods := []byte{offerNone}
	if c.Username != "" || c.Password != "" {
		methods = append(methods, offerUserPass)
	}
	b := append([]byte{5, byte(len(methods))}, methods...)
	if _, err := conn.Write(b); err != nil {
		return Addr{}, StepGreeting, hungUp(err)
	}
	method, err := readMethod(conn)
	if err != nil {
		return Addr{}, StepGreeting, err
	}
	if bytes.IndexByte(methods, method) < 0 {
		return Addr{}, StepGreeting, fmt.Errorf("%w: method %d was not offered", ErrMalformed, method)
	}
	c.passed(StepGreeting, Addr{})

	if method == offerUserPass {
		b = append(b[:0], 1, byte(len(c.Username)))
		b = append(b, c.Username...)
		b = append(b, byte(len(c.Password)))
		b = append(b, c.Password...)
		if _, err := conn.Write(b); err != nil {
			return Addr{}, StepAuth, hungUp(err)
		}
		if err := readAuthStatus(conn); err != nil {
			return Addr{}, StepAuth, err
		}
		c.passed(StepAuth, Addr{})
	}

	if _, err := conn.Write(AppendAddr(append(b[:0], 5, cmd, 0), dst)); err != nil {
		return Addr{}, StepReply, hungUp(err)
	}
	bound, err := readReply(conn)
	if err != nil {
		return Addr{}, StepReply, err
	}
	c.passed(StepReply, bound)
	return bound, StepReply, nil
}

// readMethod reads the server's choice of a method.
func readMethod(r io.Reader) (byte, error) {
	var b [2]byte
	// A server that is not SOCKS5 may say a single byte and wait: judge each one.
	if err := readFull(r, b[:1]); err != nil {
		return 0, err
	}
	if b[0] != 5 {
		return 0, fmt.Errorf("%w: it begins with byte %#02x", ErrNotSOCKS5, b[0])
	}
	if err := readFull(r, b[1:]); err != nil {
		return 0, err
	}
	if b[1] == noneAccepted {
		return 0, ErrNoMethod
	}
	return b[1], nil
}

// readAuthStatus reads the answer to user name and password. Its version byte
// is not judged: servers are known to say 5 there instead of 1.
func readAuthStatus(r io.Reader) error {
	var b [2]byte
	if err := readFull(r, b[:]); err != nil {
		return err
	}
	if b[1] != 0 {
		return ErrAuth
	}
	return nil
}

// readReply reads a reply and no byte beyond it, since the destination's first
// bytes may follow at once. An empty name as BND is taken for "unspecified",
// as some servers mean it.
func readReply(r io.Reader) (Addr, error) {
	// VER REP RSV ATYP and the longest address.
	var b [3 + MaxAddrLen]byte
	if err := readFull(r, b[:2]); err != nil {
		return Addr{}, err
	}
	if b[0] != 5 {
		return Addr{}, fmt.Errorf("%w: reply of version %d", ErrMalformed, b[0])
	}
	if b[1] != ReplySucceeded {
		// What follows says nothing more, and some servers leave it out.
		return Addr{}, &ReplyError{Code: b[1]}
	}
	if err := readFull(r, b[2:5]); err != nil {
		return Addr{}, err
	}
	var n int
	switch b[3] {
	case TypeIPv4:
		n = 4 + 4 + 2
	case TypeIPv6:
		n = 4 + 16 + 2
	case TypeName:
		n = 4 + 1 + int(b[4]) + 2
	default:
		return Addr{}, fmt.Errorf("%w: reply with address type %d", ErrMalformed, b[3])
	}
	if err := readFull(r, b[5:n]); err != nil {
		return Addr{}, err
	}
	if b[3] == TypeName && b[4] == 0 {
		return Addr{IP: netip.IPv4Unspecified(), Port: uint16(b[5])<<8 | uint16(b[6])}, nil
	}
	bound, _, err := ParseAddr(b[3:n])
	if err != nil {
		return Addr{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return bound, nil
}

// readFull fills b; the end of the connection becomes ErrHungUp.
func readFull(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	return hungUp(err)
}

func hungUp(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%w: %w", ErrHungUp, err)
	}
	return err
}

package entrance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/internal/user"
)

// Target is the destination of a request.
type Target struct {
	Host string // a name of at most 255 bytes, or an IP address
	Port uint16
}

// String returns host:port, with brackets around an IPv6 address.
func (t Target) String() string { return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))) }

// Origin is the application behind a request.
type Origin struct {
	User   *user.User     // who authenticated, or all if nobody has to
	Client netip.AddrPort // where its connection comes from
}

// Request asks for the application's connection to be joined to its target.
type Request struct {
	Origin
	Target Target

	// Conn is the connection as it was accepted, so that the halves of a TCP connection can be closed by
	// themselves. Ahead has been read from it already.
	Conn  net.Conn
	Ahead []byte

	// Answer appends the protocol's answer to b. bound is the local address of the connection to the target.
	Answer func(b []byte, r Result, bound netip.AddrPort) []byte

	replied bool
	refused bool
}

var errReplied = errors.New("entrance: the request has been replied to")

// Reply answers the request. It is called once; after any Result but OK the caller returns from Connect soon.
func (r *Request) Reply(res Result, bound netip.AddrPort) error {
	if r.replied {
		return errReplied
	}
	r.replied, r.refused = true, res != OK
	// The application may not have read answers to earlier requests.
	_ = r.Conn.SetWriteDeadline(time.Now().Add(HandshakeTimeout))
	_, err := r.Conn.Write(r.Answer(nil, res, bound))
	_ = r.Conn.SetWriteDeadline(time.Time{})
	return err
}

// Handler serves what applications ask for.
type Handler interface {
	// Connect serves a request and returns when its connection is done with; the caller closes that then.
	// ctx ends with the entrance.
	Connect(ctx context.Context, r *Request)

	// Dial connects to a target for o. Its error is an *Error. gaveUp is called if the connection was reset
	// because others need its room, which includes the application's own connection.
	Dial(ctx context.Context, o Origin, t Target, gaveUp func()) (net.Conn, error)

	// Associate is called for a new association before the application is answered, and returns where its
	// datagrams go, or why it is refused. It must not wait.
	Associate(a Association) (Uplink, Result)
}

// Error is returned by Handler.Dial.
type Error struct {
	Result Result
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %v", e.Result, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Association is an application's UDP association. Any goroutine may call its methods.
type Association interface {
	Origin() Origin
	Age() time.Duration
	Traffic() stats.Snapshot

	// Deliver sends datagrams to the application, in order. Each has the form of a record's body
	// (docs/PROTOCOL.md), its address being the source. It never waits and keeps nothing.
	Deliver(bodies [][]byte)

	// Close ends the association. It does not wait for the end, which the Uplink is told.
	Close()
}

// Uplink is where the datagrams of an association go.
type Uplink interface {
	// Send takes datagrams, in order, one call for each read: Head and Body of a message, one after the
	// other, have the form of a record's body, with a well-formed address. They are valid, and may be
	// written to, until Send returns. One goroutine at a time calls it, and it must not wait.
	Send(ms []udpio.Message)

	// End is called once, when the association has ended, and Send not after it.
	End()
}

// DropReporter is an Uplink that drops datagrams and returns how many, also after End.
type DropReporter interface {
	Dropped() stats.Dropped
}

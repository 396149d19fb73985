package entrance

import (
	"container/list"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"wmproxy/internal/udpio"
)

// Conn is a connection that the event loop reads. Its Receivers call its methods, but for HangUp, which any goroutine
// may call.
//
//	first byte ─▶ handshake ─▶ Admit: association ─▶ end
//	    │             ├──────▶ Detach: Stream
//	    └─────────────┴──────▶ refused ────────────▶ end
type Conn struct {
	udpio.Conn
	serving  *serving
	receiver Receiver
	open     *list.Element
	half     *halfOpen // nil once admitted
}

// halfOpen is the bounds of a connection that has not finished its request.
type halfOpen struct {
	place    *list.Element
	deadline *time.Timer
	late     atomic.Bool // the deadline interrupted the connection
}

// Receiver is called with data of a connection, one call at a time. It must not wait.
type Receiver interface {
	// Receive takes data, which is valid until it returns. An error ends the connection: at once, or
	// if it is from Told, after some time to read the answer.
	Receive(b []byte) error

	// Ended is called once, last, unless Admit or Detach took the connection from this receiver.
	Ended(err error)
}

// told is an error that the application was told.
type told struct{ error }

func (t told) Unwrap() error { return t.error }

// Told sends answer, the last one, and returns why as an error for Receive to return.
func (c *Conn) Told(why error, answer []byte) error {
	if _, err := c.Write(answer); err != nil {
		return errors.Join(why, err)
	}
	return told{why}
}

// serve begins to serve a connection.
func (sv *serving) serve(conn udpio.Conn) {
	sv.wg.Add(1)
	c := &Conn{Conn: conn, serving: sv, half: new(halfOpen)}
	c.receiver = opening{c}
	c.open, c.half.place = sv.open.add(conn, 0), sv.halfOpen.add(conn, sv.maxHalfOpen())
	half := c.half
	half.deadline = time.AfterFunc(HandshakeTimeout, func() {
		half.late.Store(true)
		conn.HangUp()
	})
	if err := conn.Start(c.receive); err != nil {
		sv.log().Warn("a connection could not be served", "client", conn.RemoteAddr(), "err", err)
		c.end(err)
	}
}

func (c *Conn) receive(b []byte, err error) {
	if err == nil {
		err = c.receiver.Receive(b)
	} else if c.half != nil && c.half.late.Load() {
		err = os.ErrDeadlineExceeded
	}
	switch {
	case err == nil:
	case errors.As(err, new(told)) && c.half != nil && c.CloseWrite() == nil:
		c.receiver.Ended(err)
		c.receiver = &lingering{lingerBytes}
		c.half.deadline.Reset(lingerTime)
	default:
		c.end(err)
	}
}

// end closes the connection and ends what it came for.
func (c *Conn) end(err error) {
	if c.half != nil {
		c.admitted()
	}
	_ = c.Close()
	c.receiver.Ended(err)
	c.serving.open.remove(c.open)
	c.serving.wg.Done()
}

// admitted takes the bounds of a half-open connection away.
func (c *Conn) admitted() {
	c.half.deadline.Stop()
	c.serving.halfOpen.remove(c.half.place)
	c.half = nil
}

// Admit ends the handshake, whose bounds no longer apply, and gives the connection to r.
func (c *Conn) Admit(r Receiver) {
	c.receiver = r
	c.admitted()
}

// MakeRoom frees descriptors if err reports that none are left.
func (c *Conn) MakeRoom(err error) { c.serving.makeRoom(err) }

// CloseOldest closes the oldest half-open connection, for its memory.
func (c *Conn) CloseOldest() { c.serving.halfOpen.closeOldest() }

// opening waits for the first byte.
type opening struct{ c *Conn }

func (o opening) Receive(b []byte) error {
	for _, p := range o.c.serving.Protocols {
		if r := p.Begin(o.c, b[0]); r != nil {
			o.c.receiver = r
			return r.Receive(b)
		}
	}
	if b[0] == tlsHandshake {
		return errTLS
	}
	return fmt.Errorf("no protocol of this entrance begins with byte %d", b[0])
}

// tlsHandshake begins a TLS connection (RFC 8446 section 5.1).
const tlsHandshake = 22

var errTLS = errors.New("the client seems to speak TLS, which this entrance does not")

func (o opening) Ended(err error) {
	o.c.serving.log().Debug("connection ended without a request", "client", o.c.RemoteAddr(), "err", err)
}

// lingering discards what a refused application still sends.
type lingering struct{ left int }

var errLingered = errors.New("entrance: too much data after the answer")

func (l *lingering) Receive(b []byte) error {
	if l.left -= len(b); l.left < 0 {
		return errLingered
	}
	return nil
}

func (l *lingering) Ended(error) {}

package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// A TCP connection to an Echo carries a load if it begins with
//
//	+-------------------+------+
//	| "wmproxy-bench/2" | mode |
//	+-------------------+------+
//	|        15         |  1   |
//	+-------------------+------+
//
// The Echo answers with "wmproxy-echo/2 " and the mode. Other echoes do not, so that none
// is measured by mistake. If the mode is 'U', the Echo discards the rest and sends the
// number of bytes so far, 8 bytes big-endian, every 20 ms and at the end of the stream. If
// it is 'D', it sends pseudo-random bytes until the connection ends. Connections that
// begin with other bytes are echoed, so that the same port serves "wmproxy test --echo".
const (
	preface     = "wmproxy-bench/2"
	greeting    = "wmproxy-echo/2 "
	prefaceLen  = len(preface) + 1
	modeUp      = 'U'
	modeDown    = 'D'
	totalLen    = 8
	totalsEvery = 20 * time.Millisecond
)

func appendPreface(b []byte, mode byte) []byte { return append(append(b, preface...), mode) }

func appendGreeting(b []byte, mode byte) []byte { return append(append(b, greeting...), mode) }

// notEchoError is the reason to believe that the far end of a stream is not an Echo.
type notEchoError struct{ why string }

func (e *notEchoError) Error() string { return e.why }

// greet sends the mode on c and reads the far end's greeting.
func greet(c net.Conn, mode byte) error {
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	sent := appendPreface(nil, mode)
	if _, err := c.Write(sent); err != nil {
		return &notEchoError{"it closes the connection"}
	}
	got := make([]byte, prefaceLen)
	n, err := io.ReadFull(c, got)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &notEchoError{fmt.Sprintf("it does not answer within %v", handshakeTimeout)}
	case n == 0 && err != nil:
		return &notEchoError{"it closes the connection"}
	case bytes.Equal(got[:n], sent[:n]):
		return &notEchoError{"it echoes"}
	case !bytes.Equal(got, appendGreeting(nil, mode)):
		return &notEchoError{"it answers with something else"}
	}
	return c.SetDeadline(time.Time{})
}

// streamChunk is the size of a write to a stream, in bytes.
const streamChunk = 256 << 10

// serveStream serves a connection of an Echo until its end.
func serveStream(c *net.TCPConn) {
	var b [prefaceLen]byte
	n, isLoad := readPreface(c, b[:])
	if !isLoad {
		echoStream(c, b[:n])
		return
	}
	mode := b[prefaceLen-1]
	if _, err := c.Write(appendGreeting(nil, mode)); err != nil {
		return
	}
	if mode == modeUp {
		sink(c)
	} else {
		source(c)
	}
}

// readPreface reads into b until it has a preface, or bytes that do not begin one. It
// returns the number of bytes read and whether they are a preface.
func readPreface(c net.Conn, b []byte) (n int, isLoad bool) {
	for n < prefaceLen {
		_ = c.SetReadDeadline(time.Now().Add(echoIdle))
		m, err := c.Read(b[n:])
		n += m
		if err != nil || string(b[:min(n, len(preface))]) != preface[:min(n, len(preface))] {
			return n, false
		}
	}
	return n, b[n-1] == modeUp || b[n-1] == modeDown
}

// echoStream sends first and then all that it reads back until the end of the stream,
// after which the caller must close c.
func echoStream(c net.Conn, first []byte) {
	buf := make([]byte, 32<<10)
	n := copy(buf, first)
	for {
		_ = c.SetDeadline(time.Now().Add(echoIdle))
		if n > 0 {
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
		var err error
		if n, err = c.Read(buf); err != nil && n == 0 {
			return
		}
	}
}

// sink discards the data of c and sends the totals.
func sink(c *net.TCPConn) {
	d := newDiscarder(c)
	var total uint64
	var b [totalLen]byte
	report := func() error {
		binary.BigEndian.PutUint64(b[:], total)
		_, err := c.Write(b[:])
		return err
	}
	reported := time.Now()
	for {
		now := time.Now()
		_ = c.SetDeadline(now.Add(echoIdle))
		n, err := d.discard()
		total += uint64(n)
		if errors.Is(err, io.EOF) {
			_ = report()
		}
		if err != nil {
			return
		}
		if now.Sub(reported) >= totalsEvery {
			reported = now
			if report() != nil {
				return
			}
		}
	}
}

// source writes pseudo-random data until the connection ends.
func source(c *net.TCPConn) {
	chunk := filler(streamChunk)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(echoIdle))
		if _, err := c.Write(chunk); err != nil {
			return
		}
	}
}

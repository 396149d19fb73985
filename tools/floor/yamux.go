package floor

import (
	"io"
	"log"
	"net"

	"github.com/hashicorp/yamux"
)

// Yamux returns a yamux stream in the TLS connection.
func Yamux(conn net.Conn, client bool) (net.Conn, error) {
	config := yamux.DefaultConfig()
	config.EnableKeepAlive = false
	config.LogOutput, config.Logger = nil, log.New(io.Discard, "", 0)
	open, first := yamux.Server, (*yamux.Session).AcceptStream
	if client {
		open, first = yamux.Client, (*yamux.Session).OpenStream
	}
	session, err := open(&wholeFrames{Conn: conn}, config)
	if err != nil {
		return nil, err
	}
	stream, err := first(session)
	if err != nil {
		_ = session.Close()
		return nil, err
	}
	return onlyStream{stream, session}, nil
}

// onlyStream is the only stream of its session, which Close closes.
type onlyStream struct {
	net.Conn
	session *yamux.Session
}

func (s onlyStream) Close() error { return s.session.Close() }

// wholeFrames joins a frame's header and its content, which yamux writes separately, to one
// write and so one TLS record.
type wholeFrames struct {
	net.Conn
	b []byte // a header without its content
}

const (
	frameHead  = 12 // version, type, flags (16), stream (32), length (32)
	typeOfData = 0
)

func (c *wholeFrames) Write(p []byte) (int, error) {
	if len(c.b) == 0 && len(p) == frameHead && p[1] == typeOfData {
		c.b = append(c.b, p...)
		return len(p), nil
	}
	c.b = append(c.b, p...)
	_, err := c.Conn.Write(c.b)
	c.b = c.b[:0]
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

package httpproxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"

	"wmproxy/internal/entrance"
)

// conn is a connection of an application that net/http serves.
type conn struct {
	*entrance.Stream
	ahead  []byte // has been read already
	client netip.AddrPort

	// The connections to targets are its own: they may be authenticated, and end with it.
	origin  entrance.Origin
	targets *http.Transport
}

type connKey struct{}

// connOf returns the connection of a request.
func connOf(ctx context.Context) *conn { return ctx.Value(connKey{}).(*conn) }

// Read reads what was read ahead first.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.ahead) == 0 {
		return c.Stream.Read(b)
	}
	n := copy(b, c.ahead)
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.ahead = nil
	}
	return n, nil
}

// CloseWrite lets net/http end its side and read on.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return net.ErrClosed
}

// closeIdle closes the connections to targets that no request uses, and those in use afterwards.
func (c *conn) closeIdle() {
	if c.targets != nil {
		c.targets.CloseIdleConnections()
		c.targets = nil
	}
}

// listener is a listener with one connection.
type listener struct {
	conn     *conn
	accepted bool
}

func (l *listener) Accept() (net.Conn, error) {
	if l.accepted {
		return nil, io.EOF
	}
	l.accepted = true
	return l.conn, nil
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return l.conn.LocalAddr() }

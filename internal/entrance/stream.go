package entrance

import (
	"container/list"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Stream is a connection that a goroutine reads and writes. Its entrance closes it when it ends.
type Stream struct {
	net.Conn // as it was accepted
	serving  *serving
	open     *list.Element
	closing  sync.Once

	mu   sync.Mutex
	half *list.Element // nil unless it counts as half open
}

// Detach takes the connection from the event loop. On error it stays there.
func (c *Conn) Detach() (*Stream, error) {
	conn, err := c.Conn.Detach()
	if err != nil {
		c.serving.makeRoom(err)
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetKeepAliveConfig(keepAlive)
	}
	sv := c.serving
	s := &Stream{Conn: conn, serving: sv}
	s.open = sv.open.add(resetter{conn}, 0)
	c.admitted()
	sv.open.remove(c.open)
	return s, nil
}

// Close closes the connection. Further calls do nothing.
func (s *Stream) Close() (err error) {
	s.closing.Do(func() {
		err = s.Conn.Close()
		s.Admit()
		s.serving.open.remove(s.open)
		s.serving.wg.Done()
	})
	return err
}

// HangUp resets the connection; its reader and writer then get an error.
func (s *Stream) HangUp() { resetter{s.Conn}.HangUp() }

// HalfOpen makes the connection count as half open, until Admit or Close.
func (s *Stream) HalfOpen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.half == nil {
		s.half = s.serving.halfOpen.add(resetter{s.Conn}, s.serving.maxHalfOpen())
	}
}

// Admit undoes HalfOpen.
func (s *Stream) Admit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.half != nil {
		s.serving.halfOpen.remove(s.half)
		s.half = nil
	}
}

// Context returns the context that ends with the entrance.
func (s *Stream) Context() context.Context { return s.serving.ctx }

// Connect has h serve a request in a goroutine of its own, and closes the connection afterwards. It sets
// r.Conn.
func (s *Stream) Connect(h Handler, r *Request) {
	r.Conn = s.Conn
	go func() {
		defer s.Close()
		h.Connect(s.serving.ctx, r)
		if !r.replied {
			// An error of the handler; the application should not have to guess.
			_ = r.Reply(Failed, netip.AddrPort{})
		}
		if r.refused {
			s.HalfOpen()
			linger(s.Conn)
		}
	}()
}

// linger ends our side of conn and discards what the application still sends, within bounds.
func linger(conn net.Conn) {
	if c, ok := conn.(interface{ CloseWrite() error }); !ok || c.CloseWrite() != nil {
		return
	}
	if conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, conn, lingerBytes)
}

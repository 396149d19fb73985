package tunnel

import (
	"time"

	"wmproxy/internal/user"
	"wmproxy/tunnel/carrier"
)

// Connection is a client's connection to a Registry once the client has authenticated,
// about to become a carrier or one already. Any goroutine may call its methods.
type Connection struct {
	session *Session
	traits  carrier.Traits
	began   time.Time
	closing chan *carrier.CloseError // one slot
}

func newConnection(s *Session, t carrier.Traits) *Connection {
	return &Connection{session: s, traits: t, began: time.Now(), closing: make(chan *carrier.CloseError, 1)}
}

// User returns who the client authenticated as.
func (c *Connection) User() *user.User { return c.session.cfg.User }

// Traits returns those of the connection's transport.
func (c *Connection) Traits() carrier.Traits { return c.traits }

// LastUsed returns when something other than probes last passed any carrier of the
// session: one that stands by for another is in use with it.
func (c *Connection) LastUsed() time.Time {
	if last := c.session.lastUsed(); last.After(c.began) {
		return last
	}
	return c.began
}

// lastUsed returns when a carrier was last attached, or used for something other than probes.
func (s *Session) lastUsed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var last time.Duration
	for _, p := range s.paths {
		last = max(last, p.began, time.Duration(p.beat.used.Load()))
	}
	return s.start.Add(last)
}

// Close closes the connection once it is a carrier, and sends the client the reason. It does not wait.
func (c *Connection) Close(code carrier.ErrorCode, reason string) {
	select {
	case c.closing <- &carrier.CloseError{Code: code, Reason: reason}:
	default:
	}
}

// await waits for the end of the carrier that c became, or for Close to end it.
func (c *Connection) await(p *Path) {
	select {
	case <-p.Done():
	case e := <-c.closing:
		p.closeFor(e.Code, e.Reason)
		<-p.Done()
	}
}

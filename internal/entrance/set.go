package entrance

import (
	"container/list"
	"net"
	"sync"
)

// interrupter can be closed from any goroutine; the goroutine serving it then gets an error.
type interrupter interface{ HangUp() }

// resetter resets a TCP connection that is interrupted, so that its end does not look like an orderly one.
type resetter struct{ net.Conn }

func (c resetter) HangUp() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	c.Close()
}

// connSet is a set of connections in the order they came.
type connSet struct {
	mu     sync.Mutex
	conns  list.List // of interrupter
	closed bool
}

// add adds conn, interrupting the oldest ones beyond limit (0: none). Once the set is
// closed, so is conn.
func (c *connSet) add(conn interrupter, limit int) *list.Element {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.HangUp()
	}
	for limit > 0 && c.conns.Len() >= limit {
		c.dropOldest()
	}
	return c.conns.PushBack(conn)
}

// remove takes a connection out, if it is still there.
func (c *connSet) remove(e *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns.Remove(e)
}

func (c *connSet) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns.Len()
}

// closeOldest interrupts the oldest connection, if there is one.
func (c *connSet) closeOldest() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropOldest()
}

func (c *connSet) dropOldest() {
	if e := c.conns.Front(); e != nil {
		c.conns.Remove(e).(interrupter).HangUp()
	}
}

// closeAll interrupts every connection, and those that are added later.
func (c *connSet) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for e := c.conns.Front(); e != nil; e = e.Next() {
		e.Value.(interrupter).HangUp()
	}
}

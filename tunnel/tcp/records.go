package tcp

import (
	"net"
	"sync"
)

// recordConn is the connection below TLS, which writes it a record of 16 KiB at a time.
// It joins records into fewer system calls.
//
// Reading more than a record at a time was tried too (a buffer of 64 KiB): what the
// system calls save, copying costs.
type recordConn struct {
	net.Conn

	mu      sync.Mutex
	joining bool
	held    []byte // records that wait for the end of together
}

func (c *recordConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.joining {
		return c.Conn.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

// together has the records that write writes leave at once when it returns, and
// returns the first error of both.
func (c *recordConn) together(write func() error) error {
	c.mu.Lock()
	c.joining = true
	c.mu.Unlock()
	err := write()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joining = false
	if len(c.held) == 0 {
		return err
	}
	_, failed := c.Conn.Write(c.held)
	c.held = c.held[:0]
	if err == nil {
		err = failed
	}
	return err
}

// free lets go of what together needed.
func (c *recordConn) free() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = nil
}

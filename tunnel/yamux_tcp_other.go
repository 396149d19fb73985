//go:build !linux

package tunnel

import (
	"net"
	"time"
)

// tuneTCP sets what helps.
func tuneTCP(conn net.Conn, _ time.Duration) {
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetNoDelay(true)
	}
}

//go:build !linux

package tcp

import (
	"net"
	"time"
)

// tuneTCP sets what helps.
func tuneTCP(conn net.Conn, _ time.Duration) (congestion string) {
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetNoDelay(true)
		c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true})
	}
	return ""
}

// notSentSetter returns what does nothing here.
func notSentSetter(net.Conn) func(busy bool) { return func(bool) {} }

// CongestionAdvice is for Linux.
func CongestionAdvice() string { return "" }

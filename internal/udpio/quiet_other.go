//go:build !linux

package udpio

import "net"

// Quiet returns conn: what it is for is Linux's.
func Quiet(conn net.Conn) net.Conn { return conn }

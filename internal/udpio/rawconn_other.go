//go:build !linux

package udpio

import "net"

// RawConn returns conn.
func RawConn(conn net.Conn) net.Conn { return conn }

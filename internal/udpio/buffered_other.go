//go:build !linux

package udpio

import "net"

// Buffered is 0: other systems are not asked.
func Buffered(net.Conn) int64 { return 0 }

//go:build !linux

package tunnel

import "net"

// tcpPathStats has nobody to ask.
func tcpPathStats(net.Conn) PathStats { return PathStats{} }

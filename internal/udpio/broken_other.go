//go:build !linux

package udpio

import "net"

// OnBroken does nothing: here only reads and writes report that the kernel has given conn up.
func OnBroken(conn *net.TCPConn, broken func()) (stop func()) { return func() {} }

// TakeError returns nil.
func TakeError(conn *net.TCPConn) error { return nil }

//go:build !linux

package tcp

import (
	"net"
	"testing"
	"time"
)

// userTimeout cannot be learned here.
func userTimeout(*testing.T, *net.TCPConn) time.Duration { return 0 }

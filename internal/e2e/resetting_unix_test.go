//go:build unix

package e2e

import (
	"errors"
	"net"
	"syscall"
)

// resetting is a dialer of connections that end with a reset when they are closed.
var resetting = &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	}), err)
}}

//go:build !linux

package udpio

import "net"

// NewAcceptor takes ln over.
func NewAcceptor(ln net.Listener) Acceptor { return portableAcceptor{ln} }

//go:build !linux

package entrance

import (
	"context"
	"net"
)

// Listen listens on a TCP address for Serve. Its connections find clients that are
// gone without a word within a minute.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	return lc.Listen(ctx, "tcp", address)
}

package admit

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

// The wait after an error of accept, doubled each time.
const (
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
)

// Accept returns the next connection that accept returns. Errors of the system that pass, such as having no
// descriptors left, are given to failed and waited out. Any other error, or the end of ctx meanwhile, is returned.
func Accept[C any](ctx context.Context, accept func() (C, error), failed func(error)) (C, error) {
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		conn, err := accept()
		if err == nil || ctx.Err() != nil || !passes(err) {
			return conn, err
		}
		failed(err)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return conn, ctx.Err()
		}
	}
}

// passes reports whether err is the system's about a connection, or a shortage, not about the listener.
func passes(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "accept" &&
		!errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EBADF)
}

// NoDescriptors reports whether err means that the process or the system has no descriptor left.
func NoDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

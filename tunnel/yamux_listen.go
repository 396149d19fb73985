package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"wmproxy/internal/udpio"
)

// How long Accept waits after an error that passes, such as too many open files.
const (
	acceptBackoffMin = 5 * time.Millisecond
	acceptBackoffMax = time.Second
)

// YamuxListener accepts TCP connections that become yamux carriers.
type YamuxListener struct {
	ln      net.Listener
	tls     *tls.Config
	dead    time.Duration
	windows Windows
	closing sync.Once
	closed  chan struct{}
}

// ListenYamux accepts from ln, which the listener then owns. dead is Timers.Dead, 0
// its default: connections outlive that much silence. w bounds the data a client may send ahead.
func ListenYamux(ln net.Listener, tlsConf *tls.Config, dead time.Duration, w Windows) *YamuxListener {
	return &YamuxListener{ln: ln, tls: fullRecords(tlsConf), dead: dead, windows: w, closed: make(chan struct{})}
}

// Accept returns the next connection. It has not passed TLS yet: that
// happens in Handshake, in the goroutine and within the bound of its caller, so
// that a slow client delays nobody. Until then Protocol and ExportKey have
// nothing to say. Accept survives a lack of descriptors; after Close it returns
// net.ErrClosed. One goroutine at a time calls it.
func (l *YamuxListener) Accept(ctx context.Context) (Pending, error) {
	if ln, ok := l.ln.(interface{ SetDeadline(time.Time) error }); ok {
		ln.SetDeadline(time.Time{})
		defer context.AfterFunc(ctx, func() { ln.SetDeadline(longAgo) })()
	}
	backoff := acceptBackoffMin
	for {
		raw, err := l.ln.Accept()
		if err == nil {
			records := &recordConn{Conn: udpio.Quiet(raw)}
			return &yamuxPending{raw: raw, records: records, tls: tls.Server(records, l.tls), dead: l.dead, windows: l.windows}, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, net.ErrClosed
		}
		if !acceptErrorPasses(err) {
			return nil, fmt.Errorf("accept: %w", err)
		}
		wait := time.NewTimer(backoff)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, ctx.Err()
		case <-l.closed:
			wait.Stop()
			return nil, net.ErrClosed
		}
		backoff = min(2*backoff, acceptBackoffMax)
	}
}

func acceptErrorPasses(err error) bool {
	for _, e := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Addr is the address of the listener.
func (l *YamuxListener) Addr() net.Addr { return l.ln.Addr() }

// Close stops accepting. Connections that were accepted stay.
func (l *YamuxListener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.ln.Close()
}

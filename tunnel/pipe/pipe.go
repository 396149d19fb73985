// Package pipe carries a session in memory: between entrance and exit of one process, and below the
// networks that tests simulate.
package pipe

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"wmproxy/tunnel/carrier"
)

// Traits are those of a pipe.
var Traits = carrier.Traits{Kind: carrier.KindPipe}

// New returns the two ends of a connection in memory. Everything arrives at once and in order, and
// SendBundle waits for the receiver.
func New() (client, server *End) {
	l := &link{opened: make(chan struct{})}
	l.life, l.kill = context.WithCancel(context.Background())
	l.done = l.life.Done()
	rand.Read(l.secret[:])
	client, server = newEnd(l, 0), newEnd(l, 1)
	client.peer, server.peer = server, client
	client.control, server.control = newStreams(client, server)
	return client, server
}

// link is the part of a pipe that both ends share.
type link struct {
	secret [32]byte
	open   sync.Once
	opened chan struct{} // the client has begun the handshake

	end  sync.Once
	life context.Context
	kill context.CancelFunc
	done <-chan struct{} // life's
	errs [2]error        // by side; set before life ends
}

// ended returns why the pipe ended as side sees it, nil while it lives.
func (l *link) ended(side int) error {
	select {
	case <-l.done:
		return l.errs[side]
	default:
		return nil
	}
}

// End is one end of a pipe: a Pending, and after Start the Carrier too.
type End struct {
	link *link
	side int // 0 is the client
	peer *End

	bundles *bundles     // that we send
	streams chan *stream // that we opened and the peer has not accepted
	control *stream
	unbind  func() bool // undoes the handshake's bound
}

var (
	_ carrier.Pending = (*End)(nil)
	_ carrier.Carrier = (*End)(nil)
)

func newEnd(l *link, side int) *End {
	return &End{link: l, side: side, bundles: newBundles(l.done), streams: make(chan *stream, maxStreams)}
}

// Break ends the pipe without a close: both ends' Err is err.
func (e *End) Break(err error) { e.finish(err, err) }

func (e *End) finish(ours, theirs error) {
	e.link.end.Do(func() {
		e.link.errs[e.side], e.link.errs[1-e.side] = ours, theirs
		e.link.kill()
	})
}

// Traits implements Pending and Carrier.
func (e *End) Traits() carrier.Traits { return Traits }

// Stats returns nothing: a pipe does not count.
func (e *End) Stats() carrier.Stats { return carrier.Stats{} }

// LocalAddr returns a name for this end.
func (e *End) LocalAddr() net.Addr { return addr(e.side) }

// RemoteAddr returns a name for the other end.
func (e *End) RemoteAddr() net.Addr { return addr(1 - e.side) }

// Protocol returns ALPN.
func (e *End) Protocol() string { return carrier.ALPN }

// ExportKey derives n bytes from a secret of this pipe alone.
func (e *End) ExportKey(label string, n int) ([]byte, error) {
	return hkdf.Expand(sha256.New, e.link.secret[:], label, n)
}

// Handshake implements Pending.
func (e *End) Handshake(ctx context.Context) (io.ReadWriter, error) {
	if e.side == 0 {
		e.link.open.Do(func() { close(e.link.opened) })
	}
	select {
	case <-e.link.opened:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.link.done:
		return nil, e.Err()
	}
	e.unbind = context.AfterFunc(ctx, func() { e.control.SetDeadline(carrier.LongAgo) })
	return handshake{e}, nil
}

// handshake is the control stream, whose errors tell why the pipe ended.
type handshake struct{ e *End }

func (h handshake) Read(p []byte) (int, error) {
	n, err := h.e.control.Read(p)
	return n, h.reason(err)
}

func (h handshake) Write(p []byte) (int, error) {
	n, err := h.e.control.Write(p)
	return n, h.reason(err)
}

func (h handshake) reason(err error) error {
	if ended := h.e.Err(); err != nil && ended != nil {
		return ended
	}
	return err
}

// Start implements Pending. The carrier is e itself.
func (e *End) Start(ctx context.Context) (carrier.Carrier, error) {
	if e.unbind == nil {
		return nil, errors.New("Start before Handshake")
	}
	if !e.unbind() {
		return nil, os.ErrDeadlineExceeded
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.Err(); err != nil {
		return nil, err
	}
	e.control.SetDeadline(time.Time{})
	return e, nil
}

// Close implements Pending and Carrier.
func (e *End) Close(code carrier.ErrorCode, reason string) {
	e.finish(net.ErrClosed, &carrier.CloseError{Code: code, Reason: carrier.CutReason(reason)})
}

type addr int

func (addr) Network() string { return "pipe" }

func (a addr) String() string {
	if a == 0 {
		return "pipe-client"
	}
	return "pipe-server"
}

// Done implements Carrier.
func (e *End) Done() <-chan struct{} { return e.link.done }

// Err implements Carrier.
func (e *End) Err() error { return e.link.ended(e.side) }

// MaxBundle implements Carrier.
func (e *End) MaxBundle() int { return carrier.MaxBundleSize }

// Control implements Carrier.
func (e *End) Control() io.ReadWriter { return e.control }

// SendBundle implements Carrier.
func (e *End) SendBundle(b []byte) error {
	if len(b) > carrier.MaxBundleSize {
		return &carrier.BundleTooLargeError{Max: carrier.MaxBundleSize}
	}
	if !e.bundles.send(b) {
		return e.Err()
	}
	return nil
}

// ReceiveBundles implements Carrier.
func (e *End) ReceiveBundles(dst [][]byte) (int, error) {
	n, ok := e.peer.bundles.receive(dst)
	if !ok {
		return 0, e.Err()
	}
	return n, nil
}

// OpenStream implements Carrier.
func (e *End) OpenStream(ctx context.Context) (carrier.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.Err(); err != nil {
		return nil, err
	}
	ours, theirs := newStreams(e, e.peer)
	select {
	case e.streams <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.link.done:
		return nil, e.Err()
	}
}

// AcceptStream implements Carrier.
func (e *End) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	select {
	case s := <-e.peer.streams:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.link.done:
		return nil, e.Err()
	}
}

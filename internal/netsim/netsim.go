// Package netsim is a connection in memory whose network tests choose: with delay, jitter, loss, a rate, cuts.
// Its times work in testing/synctest.
package netsim

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
	"sync/atomic"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/pipe"
)

const (
	maxBundles = 64 // bundles under way in one direction, by default
	maxStreams = 64 // streams that wait for AcceptStream

	maxUnread = 128 << 10 // bytes written and not read, in one direction of a stream
	minBuffer = 4 << 10   // bytes that a stream's buffer begins with
)

// Config is the path of what one end of a pipe sends. The zero value is
// perfect: immediate, ordered, nothing lost, and SendBundle waits for the
// receiver. Delay, Jitter and Rate need no goroutine and work in testing/synctest.
type Config struct {
	Traits carrier.Traits // that the end has; zero is those of a pipe

	MaxBundle int           // in bytes, MinBundle..MaxBundleSize; 0 is MaxBundleSize
	Queue     int           // bundles under way, delayed ones included; 0 is 64
	Delay     time.Duration // of everything: bundles, control, streams
	Jitter    time.Duration // at most this much more for a bundle, evenly spread
	Rate      int           // of bundles, in bytes per second; 0 is no limit

	// Lossy makes bundles what they are over UDP: a full queue drops the newest
	// instead of waiting, and jitter reorders.
	Lossy bool
	Loss  float64 // the share of bundles that vanish, 0..1
	Seed  uint64  // of the dice for Loss and Jitter
}

// New returns the two ends of a connection in memory; the first is the client.
func New(client, server Config) (*End, *End) {
	link := &link{opened: make(chan struct{})}
	link.life, link.kill = context.WithCancel(context.Background())
	link.done = link.life.Done()
	rand.Read(link.secret[:])
	c := &End{link: link, side: 0, config: client}
	s := &End{link: link, side: 1, config: server}
	for _, e := range []*End{c, s} {
		e.SetMaxBundle(e.config.MaxBundle)
		e.bundles = newBundles(link, e.config)
		e.streams = make(chan *stream, maxStreams)
	}
	c.peer, s.peer = s, c
	c.control, s.control = newStreams(c, s)
	return c, s
}

// link is what the two ends share.
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
	link   *link
	side   int // 0 is the client
	peer   *End
	config Config

	max     atomic.Int64
	muted   atomic.Bool
	eats    atomic.Int64 // bundles larger than this many bytes vanish; 0 is none
	bundles *bundles     // what we send
	streams chan *stream // what we opened and the peer has not accepted
	control *stream
	unbind  func() bool // undoes the handshake's bound
}

var (
	_ carrier.Pending = (*End)(nil)
	_ carrier.Carrier = (*End)(nil)
)

// Break cuts the pipe as a dying network would: both ends' Err is err.
func (e *End) Break(err error) { e.finish(err, err) }

// SetMaxBundle changes MaxBundle, as a change of path would; 0 is MaxBundleSize.
func (e *End) SetMaxBundle(n int) {
	if n == 0 {
		n = carrier.MaxBundleSize
	}
	e.max.Store(int64(min(max(n, carrier.MinBundle), carrier.MaxBundleSize)))
}

func (e *End) finish(ours, theirs error) {
	e.link.end.Do(func() {
		e.link.errs[e.side], e.link.errs[1-e.side] = ours, theirs
		e.link.kill()
	})
}

// Traits returns the configuration's.
func (e *End) Traits() carrier.Traits {
	if e.config.Traits != (carrier.Traits{}) {
		return e.config.Traits
	}
	return pipe.Traits
}

// Stats returns nothing.
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
		return nil, e.link.errs[e.side]
	}
	e.unbind = context.AfterFunc(ctx, func() { e.control.SetDeadline(carrier.LongAgo) })
	return handshake{e}, nil
}

// handshake tells the end of the pipe by its reason.
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
	if ended := h.e.link.ended(h.e.side); err != nil && ended != nil {
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
	if err := e.link.ended(e.side); err != nil {
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
func (e *End) MaxBundle() int { return int(e.max.Load()) }

// Control implements Carrier.
func (e *End) Control() io.ReadWriter { return e.control }

// SendBundle implements Carrier.
func (e *End) SendBundle(b []byte) error {
	if eats := int(e.eats.Load()); e.muted.Load() || eats > 0 && len(b) > eats {
		return nil
	}
	if n := e.MaxBundle(); len(b) > n {
		return &carrier.BundleTooLargeError{Max: n}
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
	ours, theirs := newStreams(e, e.peer)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := e.Err(); err != nil {
		return nil, err
	}
	if e.muted.Load() {
		return ours, nil
	}
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

// Mute makes what this end sends from now on vanish, or not, as a path does that
// fails without a word.
func (e *End) Mute(mute bool) { e.muted.Store(mute) }

// Eat makes bundles larger than so many bytes vanish; 0 is none.
func (e *End) Eat(above int) { e.eats.Store(int64(above)) }

// Lose changes the share of bundles that vanish, 0..1.
func (e *End) Lose(share float64) { e.bundles.lose(share) }

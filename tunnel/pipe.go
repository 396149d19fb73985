package tunnel

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
)

const (
	pipeQueue   = 64 // bundles under way in one direction, by default
	pipeStreams = 64 // streams that wait for AcceptStream
)

// PipeTraits are those of a pipe.
var PipeTraits = carrier.Traits{Kind: carrier.KindPipe, Name: "pipe"}

// PipeConfig is the path of what one end of a pipe sends. The zero value is
// perfect: immediate, ordered, nothing lost, and SendBundle waits for the
// receiver. Delay, Jitter and Rate need no goroutine and work in testing/synctest.
type PipeConfig struct {
	Traits carrier.Traits // that the end has; zero is PipeTraits

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

// NewPipe returns the two ends of a connection in memory; the first is the client.
func NewPipe(client, server PipeConfig) (*PipeEnd, *PipeEnd) {
	link := &pipeLink{opened: make(chan struct{})}
	link.life, link.kill = context.WithCancel(context.Background())
	link.done = link.life.Done()
	rand.Read(link.secret[:])
	c := &PipeEnd{link: link, side: 0, config: client}
	s := &PipeEnd{link: link, side: 1, config: server}
	for _, e := range []*PipeEnd{c, s} {
		e.SetMaxBundle(e.config.MaxBundle)
		e.bundles = newPipeBundles(link, e.config)
		e.streams = make(chan *pipeStream, pipeStreams)
	}
	c.peer, s.peer = s, c
	c.control, s.control = newPipeStreams(c, s)
	return c, s
}

// pipeLink is what the two ends share.
type pipeLink struct {
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
func (l *pipeLink) ended(side int) error {
	select {
	case <-l.done:
		return l.errs[side]
	default:
		return nil
	}
}

// PipeEnd is one end of a pipe: a Pending, and after Start the Carrier too.
type PipeEnd struct {
	link   *pipeLink
	side   int // 0 is the client
	peer   *PipeEnd
	config PipeConfig

	max     atomic.Int64
	muted   atomic.Bool
	eats    atomic.Int64     // bundles larger than this many bytes vanish; 0 is none
	bundles *pipeBundles     // what we send
	streams chan *pipeStream // what we opened and the peer has not accepted
	control *pipeStream
	unbind  func() bool // undoes the handshake's bound
}

var (
	_ carrier.Pending = (*PipeEnd)(nil)
	_ carrier.Carrier = pipeCarrier{}
)

// Break cuts the pipe as a dying network would: both ends' Err is err.
func (e *PipeEnd) Break(err error) { e.finish(err, err) }

// SetMaxBundle changes MaxBundle, as a change of path would; 0 is MaxBundleSize.
func (e *PipeEnd) SetMaxBundle(n int) {
	if n == 0 {
		n = carrier.MaxBundleSize
	}
	e.max.Store(int64(min(max(n, carrier.MinBundle), carrier.MaxBundleSize)))
}

func (e *PipeEnd) finish(ours, theirs error) {
	e.link.end.Do(func() {
		e.link.errs[e.side], e.link.errs[1-e.side] = ours, theirs
		e.link.kill()
	})
}

// Traits are the configuration's.
func (e *PipeEnd) Traits() carrier.Traits {
	if e.config.Traits != (carrier.Traits{}) {
		return e.config.Traits
	}
	return PipeTraits
}

// Stats are not counted.
func (e *PipeEnd) Stats() carrier.Stats { return carrier.Stats{} }

// LocalAddr is a name for this end.
func (e *PipeEnd) LocalAddr() net.Addr { return pipeAddr(e.side) }

// RemoteAddr is a name for the other end.
func (e *PipeEnd) RemoteAddr() net.Addr { return pipeAddr(1 - e.side) }

// Protocol is ALPN.
func (e *PipeEnd) Protocol() string { return carrier.ALPN }

// ExportKey derives n bytes from a secret of this pipe alone.
func (e *PipeEnd) ExportKey(label string, n int) ([]byte, error) {
	return hkdf.Expand(sha256.New, e.link.secret[:], label, n)
}

// Handshake is Pending's.
func (e *PipeEnd) Handshake(ctx context.Context) (io.ReadWriter, error) {
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
	return pipeHandshake{e}, nil
}

// pipeHandshake tells the end of the pipe by its reason.
type pipeHandshake struct{ e *PipeEnd }

func (h pipeHandshake) Read(p []byte) (int, error) {
	n, err := h.e.control.Read(p)
	return n, h.reason(err)
}

func (h pipeHandshake) Write(p []byte) (int, error) {
	n, err := h.e.control.Write(p)
	return n, h.reason(err)
}

func (h pipeHandshake) reason(err error) error {
	if ended := h.e.link.ended(h.e.side); err != nil && ended != nil {
		return ended
	}
	return err
}

// Start is Pending's.
func (e *PipeEnd) Start(ctx context.Context) (carrier.Carrier, error) {
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
	return pipeCarrier{e}, nil
}

// Close is Pending's and Carrier's.
func (e *PipeEnd) Close(code carrier.ErrorCode, reason string) {
	e.finish(net.ErrClosed, &carrier.CloseError{Code: code, Reason: carrier.CutReason(reason)})
}

type pipeAddr int

func (pipeAddr) Network() string { return "pipe" }

func (a pipeAddr) String() string {
	if a == 0 {
		return "pipe-client"
	}
	return "pipe-server"
}

// pipeCarrier is a PipeEnd after Start.
type pipeCarrier struct{ *PipeEnd }

func (c pipeCarrier) Done() <-chan struct{}  { return c.link.done }
func (c pipeCarrier) Err() error             { return c.link.ended(c.side) }
func (c pipeCarrier) MaxBundle() int         { return int(c.max.Load()) }
func (c pipeCarrier) Control() io.ReadWriter { return c.control }

func (c pipeCarrier) SendBundle(b []byte) error {
	if eats := int(c.eats.Load()); c.muted.Load() || eats > 0 && len(b) > eats {
		return nil
	}
	if n := c.MaxBundle(); len(b) > n {
		return &carrier.BundleTooLargeError{Max: n}
	}
	if !c.bundles.send(b) {
		return c.Err()
	}
	return nil
}

func (c pipeCarrier) ReceiveBundles(dst [][]byte) (int, error) {
	n, ok := c.peer.bundles.receive(dst)
	if !ok {
		return 0, c.Err()
	}
	return n, nil
}

func (c pipeCarrier) OpenStream(ctx context.Context) (carrier.Stream, error) {
	ours, theirs := newPipeStreams(c.PipeEnd, c.peer)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	if c.muted.Load() {
		return ours, nil
	}
	select {
	case c.streams <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.link.done:
		return nil, c.Err()
	}
}

func (c pipeCarrier) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	select {
	case s := <-c.peer.streams:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.link.done:
		return nil, c.Err()
	}
}

// Mute makes what this end sends from now on vanish, or not, as a path does that
// fails without a word.
func (e *PipeEnd) Mute(mute bool) { e.muted.Store(mute) }

// Eat makes bundles larger than so many bytes vanish; 0 is none.
func (e *PipeEnd) Eat(above int) { e.eats.Store(int64(above)) }

// Lose changes the share of bundles that vanish, 0..1.
func (e *PipeEnd) Lose(share float64) { e.bundles.lose(share) }

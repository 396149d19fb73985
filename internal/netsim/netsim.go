// Package netsim is a connection in memory whose network tests choose: with delay, jitter, loss, a rate, cuts.
// Its times work in testing/synctest.
package netsim

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"wmproxy/tunnel/carrier"
	"wmproxy/tunnel/pipe"
)

const (
	maxBundles = 64 // bundles under way in one direction, by default
	maxStreams = 64 // streams that wait for AcceptStream

	maxUnread = 128 << 10 // bytes written and not read, in one direction of a stream
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

	// Lossy treats bundles as UDP does: a full queue drops the newest instead of making the
	// sender wait, and jitter reorders.
	Lossy bool
	Loss  float64 // the share of bundles that vanish, 0..1
	Seed  uint64  // of the dice for Loss and Jitter
}

// New returns the two ends of a connection in memory; the first is the client.
func New(client, server Config) (*End, *End) {
	near, far := pipe.New()
	life, kill := context.WithCancel(context.Background())
	c := &End{End: near, config: client, life: life, kill: kill}
	s := &End{End: far, config: server, life: life, kill: kill}
	for _, e := range []*End{c, s} {
		e.SetMaxBundle(e.config.MaxBundle)
		e.bundles = newBundles(life.Done(), e.config)
		e.streams = make(chan *stream, maxStreams)
	}
	c.peer, s.peer = s, c
	c.control, s.control = newStreams(c, s)
	return c, s
}

// End is one end of a pipe: a Pending, and after Start the Carrier too. Its bundles and streams take the
// configured path instead of the pipe.
type End struct {
	*pipe.End
	peer   *End
	config Config

	life context.Context // of the connection, which both ends share
	kill context.CancelFunc

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

// Break cuts the connection as a dying network would: both ends' Err is err.
func (e *End) Break(err error) { e.End.Break(err); e.kill() }

// Close implements Pending and Carrier.
func (e *End) Close(code carrier.ErrorCode, reason string) { e.End.Close(code, reason); e.kill() }

// Done implements Carrier.
func (e *End) Done() <-chan struct{} { return e.life.Done() }

// SetMaxBundle changes MaxBundle, as a change of path would; 0 is MaxBundleSize.
func (e *End) SetMaxBundle(n int) {
	if n == 0 {
		n = carrier.MaxBundleSize
	}
	e.max.Store(int64(min(max(n, carrier.MinBundle), carrier.MaxBundleSize)))
}

// Traits returns the configuration's.
func (e *End) Traits() carrier.Traits {
	if e.config.Traits != (carrier.Traits{}) {
		return e.config.Traits
	}
	return pipe.Traits
}

// Handshake implements Pending.
func (e *End) Handshake(ctx context.Context) (io.ReadWriter, error) {
	if _, err := e.End.Handshake(ctx); err != nil {
		return nil, err
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
	if ended := h.e.Err(); err != nil && ended != nil {
		return ended
	}
	return err
}

// Start implements Pending. The carrier is e itself.
func (e *End) Start(ctx context.Context) (carrier.Carrier, error) {
	if _, err := e.End.Start(ctx); err != nil {
		return nil, err
	}
	if !e.unbind() {
		return nil, os.ErrDeadlineExceeded
	}
	e.control.SetDeadline(time.Time{})
	return e, nil
}

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
	case <-e.Done():
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
	case <-e.Done():
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

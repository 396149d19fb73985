// Package tcp carries a session by yamux over TLS over TCP.
package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/quic-go/quic-go/quicvarint"

	"wmproxy/internal/notify"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel/carrier"
)

var (
	errStalled = errors.New("the connection took no data for too long")
	errEnded   = errors.New("the connection ended without a close")

	// errNotYamux stands for yamux's own complaints, which it keeps to itself.
	errNotYamux = errors.New("the peer does not speak yamux")
)

// Traits are those of yamux over TLS over TCP: it passes where only TCP does.
var Traits = carrier.Traits{Kind: carrier.KindYamux, DatagramRank: 1, StreamRank: 2, InOrder: true, OwnDescriptor: true}

// newConfig is for connections whose Timers.Dead is dead. When one has taken no byte
// at all for longer, yamux is in no defined state (GHSA-29qp-crvh-w22m) and the carrier ends.
func newConfig(dead time.Duration, w carrier.Windows) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          backlog,
		EnableKeepAlive:        false, // sessions have heartbeats
		KeepAliveInterval:      time.Minute,
		ConnectionWriteTimeout: carrier.IdleTimeout(dead),
		MaxStreamWindowSize:    uint32(w.WithDefaults().Stream),
		// Both timeouts are off: the first closes the whole session, the second
		// cuts the tail off for a peer that reads slowly.
		StreamOpenTimeout:  0,
		StreamCloseTimeout: 0,
		Logger:             log.New(io.Discard, "", 0),
	}
}

// pending is a TCP connection with TLS on it: passed on the client, on
// the server still to come, in Handshake.
type pending struct {
	raw        net.Conn
	records    *recordConn // raw, below TLS
	tls        *tls.Conn
	client     bool
	dead       time.Duration
	windows    carrier.Windows
	small      bool        // in segments of smallSegment
	congestion string      // of the kernel, once it is set
	unbind     func() bool // undoes the handshake's bound
}

// Traits says nothing of congestion control on the server before Handshake has returned.
func (p *pending) Traits() carrier.Traits {
	t := Traits
	t.SmallSegments, t.Congestion, t.LossTolerant = p.small, p.congestion, p.congestion == bbr
	return t
}

func (p *pending) LocalAddr() net.Addr  { return p.raw.LocalAddr() }
func (p *pending) RemoteAddr() net.Addr { return p.raw.RemoteAddr() }

// Protocol is "" on the server before Handshake has returned.
func (p *pending) Protocol() string {
	return p.tls.ConnectionState().NegotiatedProtocol
}

// ExportKey fails on the server before Handshake has returned.
func (p *pending) ExportKey(label string, n int) ([]byte, error) {
	cs := p.tls.ConnectionState()
	if !cs.HandshakeComplete {
		return nil, errors.New("no keys before the TLS handshake")
	}
	return cs.ExportKeyingMaterial(label, nil, n)
}

func (p *pending) Handshake(ctx context.Context) (io.ReadWriter, error) {
	if err := p.tls.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	if !p.client {
		// Not before: a flood would be dear by the system calls alone.
		p.congestion = tuneTCP(p.raw, p.dead)
	}
	p.unbind = context.AfterFunc(ctx, func() { p.raw.SetDeadline(carrier.LongAgo) })
	return p.tls, nil
}

// Start runs yamux on the connection. The client opens three streams: control,
// bundles, signals. Whatever opens after them is data.
func (p *pending) Start(ctx context.Context) (carrier.Carrier, error) {
	if p.unbind == nil {
		return nil, errors.New("Start before Handshake")
	}
	if !p.unbind() {
		return nil, os.ErrDeadlineExceeded
	}
	p.raw.SetDeadline(time.Time{})
	release := context.AfterFunc(ctx, func() { p.raw.SetDeadline(carrier.LongAgo) })

	c := &connection{
		conn:     newCoalescer(p.tls, p.records, p.raw),
		slots:    make(chan struct{}, maxStreams),
		openings: make(chan *opening),
		finished: notify.New(),
		read:     notify.New(),
		turn:     make(chan struct{}, 1),
		client:   p.client,
		traits:   p.Traits(),
		ended:    make(chan struct{}),
		streams:  make(map[uint32]*chunkStream),
		early:    make(map[uint32]carrier.ErrorCode),
	}
	c.life, c.kill = context.WithCancelCause(context.Background())
	c.conn.frames.arriving = c.arriving
	c.conn.closing = c.sessionClosing
	var err error
	if p.client {
		c.y, err = yamux.Client(c.conn, newConfig(p.dead, p.windows))
	} else {
		c.y, err = yamux.Server(c.conn, newConfig(p.dead, p.windows))
	}
	if err != nil {
		c.conn.Close()
		return nil, err
	}
	for _, s := range []**yamux.Stream{&c.control.y, &c.bundles, &c.signals} {
		if p.client {
			*s, err = c.y.OpenStream()
		} else {
			*s, err = c.y.AcceptStreamWithContext(ctx)
		}
		if err != nil {
			c.y.Close()
			return nil, fmt.Errorf("start yamux: %w", err)
		}
	}
	if !release() {
		c.y.Close()
		return nil, os.ErrDeadlineExceeded
	}
	if !p.client {
		c.mu.Lock()
		c.lastAccepted = c.signals.StreamID()
		c.mu.Unlock()
	}
	c.start()
	return c, nil
}

func (p *pending) Close(carrier.ErrorCode, string) {
	cut := time.AfterFunc(closeBound, func() { p.raw.Close() })
	defer cut.Stop()
	p.tls.Close()
}

// connection is a Carrier over yamux over TLS over TCP.
type connection struct {
	client  bool
	traits  carrier.Traits
	conn    *coalescer
	y       *yamux.Session
	control control
	bundles *yamux.Stream
	signals *yamux.Stream

	sending   []byte // belongs to SendBundle
	receiving bundleReader

	slots    chan struct{} // one token for each stream that we have open
	openings chan *opening
	finished notify.Signal // wakes releaseStreams
	read     notify.Signal // wakes freeReceived
	turn     chan struct{} // one token: held by the stream that hands a frame to yamux

	unread atomic.Int64 // bytes that have arrived for streams, and that were not taken from yamux

	mu           sync.Mutex
	streams      map[uint32]*chunkStream      // by yamux id, until Reset
	accepted     int                          // those among them that the peer opened
	lastAccepted uint32                       // the peer's ids rise
	lastOpened   uint32                       // and ours
	early        map[uint32]carrier.ErrorCode // resets of streams that wait for AcceptStream
	releases     []release

	ended    chan struct{}
	err      error   // why; set before ended is closed
	farewell *signal // what the peer is told about it; nil is nothing

	life context.Context // of streams; ends with it, or drainTime later
	kill context.CancelCauseFunc

	closing atomic.Bool // yamux's session is; see sessionClosing

	signalReader sync.WaitGroup
	loops        sync.WaitGroup // openStreams, releaseStreams, freeReceived
	all          sync.WaitGroup // run, which waits for the others
}

var (
	_ carrier.Carrier = (*connection)(nil)
	_ carrier.Holder  = (*connection)(nil)
	_ carrier.Holder  = (*chunkStream)(nil)
)

// release is a stream that its user is done with.
type release struct {
	y    *yamux.Stream
	code carrier.ErrorCode
	tell bool // it was abandoned, and the peer does not know
}

func (c *connection) start() {
	c.control.c = c
	c.signalReader.Go(c.readSignals)
	c.loops.Go(c.openStreams)
	c.loops.Go(c.releaseStreams)
	c.loops.Go(c.freeReceived)
	c.all.Go(c.run)
}

func (c *connection) Traits() carrier.Traits { return c.traits }
func (c *connection) Stats() carrier.Stats   { return tcpStats(c.conn.raw) }
func (c *connection) LocalAddr() net.Addr    { return c.conn.LocalAddr() }
func (c *connection) RemoteAddr() net.Addr   { return c.conn.RemoteAddr() }
func (c *connection) Control() io.ReadWriter { return &c.control }
func (c *connection) Done() <-chan struct{}  { return c.ended }

// MaxBundle is less on a slow connection, where a bundle keeps others waiting.
func (c *connection) MaxBundle() int { return min(carrier.MaxBundleSize, c.conn.bound()) }

// frame returns how many of n bytes a stream may write in one frame at present: a bundle may
// have to wait behind it.
func (c *connection) frame(n int) int {
	return min(n, max(c.conn.fit(yamuxHead+n)-yamuxHead, slowFrame))
}

func (c *connection) Err() error {
	select {
	case <-c.ended:
		return c.err
	default:
		return nil
	}
}

func (c *connection) Close(code carrier.ErrorCode, reason string) {
	c.end(net.ErrClosed, &signal{kind: signalClose, code: code, reason: carrier.CutReason(reason)})
	c.all.Wait()
}

// end puts down, once, why the carrier ended; run does the rest.
func (c *connection) end(err error, farewell *signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ended:
		return
	default:
	}
	c.err, c.farewell = err, farewell
	close(c.ended)
	kill := func() { c.kill(&carrier.ResetError{Cause: err}) }
	if len(c.streams) == 0 {
		kill()
	} else {
		time.AfterFunc(drainTime, kill)
	}
}

// violation ends the carrier because of what the peer did and returns why it ended.
func (c *connection) violation(err error) error {
	c.end(fmt.Errorf("the peer broke the protocol: %w", err),
		&signal{kind: signalClose, code: carrier.CodeProtocol, reason: err.Error()})
	return c.err
}

// ending returns why the carrier ended to a caller that yamux has told no more than err.
func (c *connection) ending(err error) error {
	switch {
	case errors.Is(err, yamux.ErrConnectionWriteTimeout):
		c.end(errStalled, nil)
	case c.y.IsClosed():
	case errors.Is(err, io.EOF), errors.Is(err, yamux.ErrConnectionReset), errors.Is(err, yamux.ErrStreamClosed),
		errors.Is(err, yamux.ErrRemoteGoAway), errors.Is(err, yamux.ErrStreamsExhausted):
		c.violation(err)
	}
	<-c.ended
	return c.err
}

// run waits for the end and frees everything.
func (c *connection) run() {
	select {
	case <-c.y.CloseChan():
	case <-c.ended:
		c.sayFarewell()
	}
	c.y.Close()
	// A closed session still hands out what it received: perhaps the peer's close.
	c.signalReader.Wait()
	err := c.conn.cause()
	if err == nil {
		err = errNotYamux
	}
	c.end(fmt.Errorf("%w: %v", errEnded, err), nil)
	c.loops.Wait()
}

// sessionClosing is called by yamux while its session closes, which wakes each waiting
// stream once and for all: from then on its Read and Write spin until the session
// gets to the stream. With a few hundred streams on one processor that took minutes.
// A deadline that has passed makes them return instead.
func (c *connection) sessionClosing() {
	c.closing.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		s.y.SetDeadline(carrier.LongAgo)
	}
}

// sayFarewell tells the peer why and waits until it hangs up: closing at once
// could answer its bytes under way with a TCP reset that overtakes ours.
func (c *connection) sayFarewell() {
	if c.farewell == nil {
		return
	}
	cut := time.AfterFunc(closeBound, func() { c.conn.raw.Close() })
	defer cut.Stop()
	if _, err := c.signals.Write(appendSignal(nil, *c.farewell)); err == nil {
		<-c.y.CloseChan()
	}
}

// readSignals ends with the session.
func (c *connection) readSignals() {
	var buf [maxSignal]byte
	have := 0
	for {
		s, size, err := parseSignal(buf[:have])
		if err != nil {
			c.violation(err)
			return
		}
		if size > 0 {
			have = copy(buf[:], buf[size:have])
			if s.kind == signalClose {
				c.end(&carrier.CloseError{Code: s.code, Reason: s.reason}, nil)
				return
			}
			c.peerReset(s.stream, s.code)
			continue
		}
		n, err := c.signals.Read(buf[have:])
		have += n
		if n == 0 && err != nil {
			if !c.y.IsClosed() {
				c.violation(err)
			}
			return
		}
	}
}

// peerReset marks a stream as reset. One that is not known is either finished
// or still waits for AcceptStream.
func (c *connection) peerReset(id uint32, code carrier.ErrorCode) {
	c.mu.Lock()
	s := c.streams[id]
	if s == nil && id > c.lastAccepted && c.peerID(id) {
		c.early[id] = code
	}
	flood := len(c.early) > backlog
	c.mu.Unlock()
	if s != nil {
		s.end(&carrier.ResetError{Code: code})
	}
	if flood {
		c.violation(errors.New("resets of streams that were never opened"))
	}
}

// peerID says whether the peer opened the stream: a yamux client's ids are odd.
func (c *connection) peerID(id uint32) bool { return (id%2 == 0) == c.client }

func (c *connection) SendBundle(b []byte) error {
	if len(b) > carrier.MaxBundleSize {
		return &carrier.BundleTooLargeError{Max: carrier.MaxBundleSize}
	}
	c.sending = append(quicvarint.Append(c.sending[:0], uint64(len(b))), b...)
	if _, err := c.bundles.Write(c.sending); err != nil {
		return c.ending(err)
	}
	return nil
}

func (c *connection) ReceiveBundles(dst [][]byte) (int, error) {
	n, err := c.receiving.next(c.bundles, dst)
	switch {
	case n > 0 || err == nil:
		return n, nil // an error comes again
	case errors.Is(err, errBundleLength):
		return 0, c.violation(err)
	}
	return 0, c.ending(err)
}

// control is the first stream, as it is.
type control struct {
	c *connection
	y *yamux.Stream
}

func (s *control) Read(p []byte) (int, error) {
	n, err := s.y.Read(p)
	if n == 0 && err != nil {
		return 0, s.c.ending(err)
	}
	return n, nil
}

func (s *control) Write(p []byte) (int, error) {
	n, err := s.y.Write(p)
	if err != nil {
		return n, s.c.ending(err)
	}
	return n, nil
}

// Held counts streams that wait for AcceptStream, and streams that were reset while the peer reads
// nothing: yamux keeps the data that arrived for them.
func (c *connection) Held() (heap, kernel int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	heap = c.unread.Load()
	for _, s := range c.streams {
		unread, _ := s.Held()
		heap -= unread
	}
	return max(heap, 0), carrier.KernelOverhead * udpio.Buffered(c.conn.raw)
}

// Package quic carries a session over QUIC: bundles as datagrams, streams as streams.
package quic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/tunnel/carrier"
)

// Why a carrier ended without a word from the peer.
var (
	// errSilent means that nothing came from the peer for longer than Timers.Dead.
	errSilent = errors.New("the peer fell silent")
	// errForgotten means that the peer is there but does not know the connection
	// any more, because it restarted: a stateless reset (RFC 9000 section 10.3).
	errForgotten = errors.New("the peer no longer knows the connection")
)

// Traits are those of QUIC: datagrams do not wait for lost ones.
var Traits = carrier.Traits{Kind: carrier.KindQUIC, DatagramRank: 2, StreamRank: 1, Exact: true}

// newConfig is for connections whose Timers.Dead is dead. The shorter idle timeout
// of the two sides counts.
func newConfig(dead time.Duration, w carrier.Windows) *quic.Config {
	w = w.WithDefaults()
	return &quic.Config{
		HandshakeIdleTimeout:           handshakeIdle,
		MaxIdleTimeout:                 carrier.IdleTimeout(dead),
		KeepAlivePeriod:                keepAlive,
		InitialStreamReceiveWindow:     firstWindow,
		MaxStreamReceiveWindow:         w.Stream,
		InitialConnectionReceiveWindow: connectionWindow(w.Stream),
		MaxConnectionReceiveWindow:     connectionWindow(w.Stream),
		MaxIncomingStreams:             maxStreams,
		MaxIncomingUniStreams:          -1,
		EnableDatagrams:                true,
		InitialPacketSize:              packetSize,
	}
}

// link is one QUIC connection and its socket, which on the client is its alone.
type link struct {
	conn      *quic.Conn
	transport *quic.Transport // nil on the server, where connections share one
	socket    net.PacketConn
	delivered func() // see udpio.PacketConn.Delivered

	window    int64        // the largest of a stream, in bytes
	abandoned atomic.Int64 // the most in bytes that quic-go holds for streams that were reset
	taken     atomic.Int64 // bytes of streams and bundles that were read

	readers *readers
	watcher sync.WaitGroup
	done    chan struct{}
	err     error // set before done is closed
}

func newLink(conn *quic.Conn, tr *quic.Transport, socket net.PacketConn, w carrier.Windows) *link {
	l := &link{
		conn: conn, transport: tr, socket: socket, window: int64(w.WithDefaults().Stream),
		readers: newReaders(), done: make(chan struct{}), delivered: func() {},
	}
	if told, ok := socket.(interface{ Delivered() }); ok {
		l.delivered = told.Delivered
	}
	l.watcher.Go(l.watch)
	return l
}

// watch frees what belongs to the connection when it ends, whoever ended it.
func (l *link) watch() {
	<-l.conn.Context().Done()
	if l.transport != nil {
		l.transport.Close()
		l.socket.Close()
	}
	l.err = endError(context.Cause(l.conn.Context()))
	close(l.done)
}

func (l *link) Traits() carrier.Traits { return Traits }
func (l *link) LocalAddr() net.Addr    { return l.conn.LocalAddr() }
func (l *link) RemoteAddr() net.Addr   { return l.conn.RemoteAddr() }
func (l *link) Done() <-chan struct{}  { return l.done }

func (l *link) Err() error {
	select {
	case <-l.done:
		return l.err
	default:
		return nil
	}
}

func (l *link) Close(code carrier.ErrorCode, reason string) {
	l.conn.CloseWithError(quic.ApplicationErrorCode(code), carrier.CutReason(reason))
	l.watcher.Wait()
}

// endError says why a connection ended. quic-go's errors all unwrap to
// net.ErrClosed, which is our word for "we closed it", so they are not wrapped.
func endError(err error) error {
	if app, ok := errors.AsType[*quic.ApplicationError](err); ok {
		if app.Remote {
			return &carrier.CloseError{Code: carrier.ErrorCode(app.ErrorCode), Reason: app.ErrorMessage}
		}
		return net.ErrClosed
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return errSilent
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return errForgotten
	}
	if errors.Is(err, quic.ErrTransportClosed) {
		return net.ErrClosed
	}
	return fmt.Errorf("quic connection: %v", err)
}

// pending is a QUIC connection after its TLS handshake.
type pending struct {
	*link
	client bool

	stream   *quic.Stream // the first: Hello and Welcome, then control
	unbind   func() bool  // undoes the handshake's bound on stream
	guard    sync.WaitGroup
	unguard  context.CancelFunc // nil on the client
	unguards sync.Once
	second   *quic.Stream // a stream that came while the guard was called off
	first    []byte       // a bundle that did
}

func (p *pending) Protocol() string {
	return p.conn.ConnectionState().TLS.NegotiatedProtocol
}

func (p *pending) ExportKey(label string, n int) ([]byte, error) {
	cs := p.conn.ConnectionState().TLS
	return cs.ExportKeyingMaterial(label, nil, n)
}

func (p *pending) Handshake(ctx context.Context) (io.ReadWriter, error) {
	var err error
	if p.client {
		p.stream, err = p.conn.OpenStreamSync(ctx)
	} else {
		p.stream, err = p.acceptFirst(ctx)
	}
	if err != nil {
		return nil, p.callError(ctx, err)
	}
	s := p.stream
	p.unbind = context.AfterFunc(ctx, func() { s.SetDeadline(carrier.LongAgo) })
	return (*handshake)(p), nil
}

// acceptFirst waits for the client's first stream. Until the client has seen our
// answer on it, it may hold this one stream and nothing more: the guard closes a
// connection that brings anything else.
func (p *pending) acceptFirst(ctx context.Context) (*quic.Stream, error) {
	guarding, unguard := context.WithCancel(context.Background())
	p.unguard = unguard
	p.guard.Go(func() { p.refuseDatagram(guarding) })
	s, err := p.conn.AcceptStream(ctx)
	if err != nil {
		return nil, err
	}
	p.guard.Go(func() { p.refuseSecond(guarding) })
	return s, nil
}

func (p *pending) refuseSecond(ctx context.Context) {
	s, err := p.conn.AcceptStream(ctx)
	switch {
	case err != nil:
	case ctx.Err() != nil:
		p.second = s
	default:
		p.conn.CloseWithError(quic.ApplicationErrorCode(carrier.CodeProtocol), "a second stream before the handshake ended")
	}
}

func (p *pending) refuseDatagram(ctx context.Context) {
	b, err := p.conn.ReceiveDatagram(ctx)
	switch {
	case err != nil:
	case ctx.Err() != nil:
		p.first = b
	default:
		p.conn.CloseWithError(quic.ApplicationErrorCode(carrier.CodeProtocol), "a datagram before the handshake ended")
	}
}

// answering calls the guard off: from the first byte of our answer on, the client may go ahead.
func (p *pending) answering() {
	if p.unguard != nil {
		p.unguards.Do(func() {
			p.unguard()
			p.guard.Wait()
		})
	}
}

// settle waits for the carrier's end where err is the connection's. quic-go tells its
// streams first; whoever then looks at the carrier must find that it has ended.
func (l *link) settle(err error) {
	if errors.Is(err, net.ErrClosed) { // all of quic-go's that end a connection
		<-l.done
	}
}

// callError is the error of a call that ctx bounds.
func (l *link) callError(ctx context.Context, err error) error {
	if ctx.Err() != nil && l.conn.Context().Err() == nil {
		return ctx.Err()
	}
	l.settle(err)
	return endError(err)
}

func (p *pending) Start(ctx context.Context) (carrier.Carrier, error) {
	if p.stream == nil {
		return nil, errors.New("Start before Handshake")
	}
	p.answering()
	if !p.unbind() {
		return nil, os.ErrDeadlineExceeded
	}
	p.stream.SetDeadline(time.Time{})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !p.conn.ConnectionState().SupportsDatagrams.Remote {
		return nil, errors.New("the peer does not take QUIC datagrams (RFC 9221)")
	}
	c := &connection{link: p.link, control: &stream{s: p.stream, link: p.link}, first: p.first}
	c.early.Store(p.second)
	if err := c.probe(); err != nil {
		return nil, err
	}
	return c, nil
}

func (p *pending) Close(code carrier.ErrorCode, reason string) {
	p.link.Close(code, reason)
	p.guard.Wait() // the guard ends with the connection
}

// handshake is the stream for Hello and Welcome.
type handshake pending

func (h *handshake) Read(b []byte) (int, error) {
	n, err := h.stream.Read(b)
	return n, h.streamError(err)
}

func (h *handshake) Write(b []byte) (int, error) {
	(*pending)(h).answering()
	n, err := h.stream.Write(b)
	return n, h.streamError(err)
}

// streamError tells a connection's end by its reason, so that a refusal arrives
// as the *CloseError it is.
func (h *handshake) streamError(err error) error {
	err = streamError(err)
	if reset, ok := errors.AsType[*carrier.ResetError](err); ok && reset.Cause != nil {
		return reset.Cause
	}
	return err
}

// connection is a Carrier over one QUIC connection: a bundle is one DATAGRAM
// frame (RFC 9221), a stream one bidirectional QUIC stream.
type connection struct {
	*link
	control *stream
	early   atomic.Pointer[quic.Stream] // accepted before Start
	first   []byte                      // received before Start; belongs to ReceiveBundles
	max     atomic.Int64                // MaxBundle
	probed  time.Time                   // belongs to SendBundle
}

var (
	_ carrier.Carrier        = (*connection)(nil)
	_ carrier.WindowHolder   = (*connection)(nil)
	_ carrier.WindowedStream = (*stream)(nil)
)

// oversize is larger than any path's limit and never sent.
var oversize [carrier.MaxBundleSize]byte

// probe asks for the path's limit: quic-go tells it only by refusing what is larger.
func (c *connection) probe() error {
	err := c.conn.SendDatagram(oversize[:])
	large, ok := errors.AsType[*quic.DatagramTooLargeError](err)
	if !ok {
		return endError(err)
	}
	if large.MaxDatagramPayloadSize < carrier.MinBundle {
		return fmt.Errorf("the peer or the path takes datagrams of %d bytes only", large.MaxDatagramPayloadSize)
	}
	c.max.Store(large.MaxDatagramPayloadSize)
	return nil
}

func (c *connection) MaxBundle() int { return int(c.max.Load()) }

func (c *connection) SendBundle(b []byte) error {
	if now := time.Now(); now.Sub(c.probed) >= probeInterval {
		c.probed = now
		if err := c.probe(); err != nil {
			return err
		}
	}
	err := c.conn.SendDatagram(b)
	if err == nil {
		return nil
	}
	if large, ok := errors.AsType[*quic.DatagramTooLargeError](err); ok {
		c.max.Store(large.MaxDatagramPayloadSize)
		return &carrier.BundleTooLargeError{Max: int(large.MaxDatagramPayloadSize)}
	}
	return endError(err)
}

// pollContext makes ReceiveDatagram return what is queued and not wait: it looks
// at Err first, then at the queue, and at Done last.
type pollContext struct{}

var polled = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

func (pollContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (pollContext) Done() <-chan struct{}       { return polled }
func (pollContext) Err() error                  { return nil }
func (pollContext) Value(any) any               { return nil }

func (c *connection) ReceiveBundles(dst [][]byte) (int, error) {
	if b := c.first; len(b) > 0 && len(dst) > 0 {
		dst[0], c.first = b, nil
		return 1, nil
	}
	var ctx context.Context = context.Background()
	n := 0
	for n < len(dst) {
		b, err := c.conn.ReceiveDatagram(ctx)
		if n == 0 {
			c.delivered()
		}
		if err != nil {
			if n > 0 {
				return n, nil // the next call meets the error again
			}
			return 0, endError(err)
		}
		if b == nil {
			return n, nil // polled, and nothing was there
		}
		c.taken.Add(int64(len(b)))
		if len(b) == 0 {
			continue // not a bundle
		}
		dst[n] = b
		n++
		ctx = pollContext{}
	}
	return n, nil
}

func (c *connection) Control() io.ReadWriter { return c.control }

func (c *connection) OpenStream(ctx context.Context) (carrier.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := c.conn.OpenStream()
	if _, full := errors.AsType[*quic.StreamLimitReachedError](err); full {
		return nil, carrier.ErrStreamLimit
	}
	if err != nil {
		return nil, c.callError(ctx, err)
	}
	return newStream(s, c.link), nil
}

func (c *connection) AcceptStream(ctx context.Context) (carrier.Stream, error) {
	if s := c.early.Swap(nil); s != nil {
		return newStream(s, c.link), nil
	}
	s, err := c.conn.AcceptStream(ctx)
	if err != nil {
		return nil, c.callError(ctx, err)
	}
	return newStream(s, c.link), nil
}

// connectionWindow returns the window of all streams together, where stream is the largest of one.
// Unread streams would keep the others from it: it has room for maxStalled of them and for others.
func connectionWindow(stream uint64) uint64 { return (maxStalled + 8) * stream }

// Stats returns what QUIC counts.
func (c *connection) Stats() carrier.Stats {
	s := c.conn.ConnectionStats()
	return carrier.Stats{
		RTT: s.SmoothedRTT, BytesUp: s.BytesSent, BytesDown: s.BytesReceived,
		PacketsUp: s.PacketsSent, PacketsLost: s.PacketsLost,
	}
}

// Held counts streams that were reset until the peer has answered: quic-go keeps
// their data until then.
func (c *connection) Held() (heap, kernel int64) { return min(c.abandoned.Load(), c.Window()), 0 }

// Window returns the most that quic-go may hold for all streams: the connection's window.
func (c *connection) Window() int64 { return int64(connectionWindow(uint64(c.window))) }

// Unread returns the bytes that have arrived and were not read, less the packets' overhead.
func (c *connection) Unread() int64 {
	s := c.conn.ConnectionStats()
	return max(0, int64(s.BytesReceived)-packetCost*int64(s.PacketsReceived)-c.taken.Load())
}

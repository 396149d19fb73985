package tunnel

import (
	"math"
	"time"

	"wmproxy/internal/udpio"
)

// memoryHolder is a carrier or a stream that can report how many bytes it holds for
// a peer: on the heap, and in the kernel with the kernel's own overhead.
type memoryHolder interface {
	held() (heap, kernel int64)
}

var (
	_ memoryHolder = (*quicCarrier)(nil)
	_ memoryHolder = (*yamuxCarrier)(nil)
	_ memoryHolder = (*chunkStream)(nil)
)

// held counts streams that were reset until the peer has answered: quic-go keeps
// their data until then.
func (c *quicCarrier) held() (heap, kernel int64) { return min(c.abandoned.Load(), c.most()), 0 }

// most is the most that quic-go may hold for all streams, in bytes: the connection's window.
func (c *quicCarrier) most() int64 { return int64(Windows{Stream: uint64(c.window)}.connection()) }

// unread returns the bytes that have arrived and were not read, less the packets' overhead:
// an upper bound of the payload that quic-go holds.
func (c *quicCarrier) unread() int64 {
	s := c.conn.ConnectionStats()
	return max(0, int64(s.BytesReceived)-quicPacketCost*int64(s.PacketsReceived)-c.taken.Load())
}

// held counts streams that wait for AcceptStream, and streams that were reset while the peer reads
// nothing: yamux keeps the data that arrived for them.
func (c *yamuxCarrier) held() (heap, kernel int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	heap = c.unread.Load()
	for _, s := range c.streams {
		unread, _ := s.held()
		heap -= unread
	}
	return max(heap, 0), kernelOverhead * udpio.Buffered(c.conn.raw)
}

// held returns the most that quic-go may hold, as it does not report how much it does:
// the stream's window, which it doubles whenever a quarter of it has been read.
func (s *quicStream) held() int64 { return min(s.link.window, quicStreamWindow+4*s.read.Load()) }

func (s *chunkStream) held() (heap, kernel int64) {
	taken := s.taken.Load()
	return int64(s.arrived.Load() - min(s.arrived.Load(), taken)), 0
}

// add adds the carrier of a and its streams to the holdings of their user.
func (h *holdings) add(p *Path) {
	u := h.of(p.s.cfg.User)
	windows := p.addStreams(h, u)
	if _, ok := p.c.(memoryHolder); !ok || !p.s.server {
		return // a client's own, or the only one of a proxy
	}
	own := holding{user: p.s.cfg.User, carrier: true, free: func() {
		p.s.spawn(func() { // else it closes by itself
			p.closeFor(CodeLimit, "the server is short of memory, and this user holds most of it")
		})
	}}
	own.count(h, p.c)
	if c, ok := p.c.(*quicCarrier); ok {
		own.unread = min(c.unread(), windows+c.abandoned.Load())
	}
	if p.c.Err() != nil {
		h.closing += own.bytes
		return
	}
	own.bytes += carrierCost
	u.add(own)
}

// addStreams adds the streams of a, and returns the windows of those over QUIC in bytes.
func (p *Path) addStreams(h *holdings, u *holder) (windows int64) {
	now := p.s.now()
	room := int64(math.MaxInt64) // for streams of QUIC
	if c, ok := p.c.(*quicCarrier); ok {
		room = c.most()
	}
	p.carried.mu.Lock()
	defer p.carried.mu.Unlock()
	for s := range p.carried.all {
		one := holding{user: p.s.cfg.User, bytes: streamCost, stalled: s.stoodStill(now), free: func() { s.Stream.Reset(CodeLimit) }}
		if beside := s.beside.Load(); beside != nil {
			kernel := kernelOverhead * (*beside)()
			one.bytes += kernel
			h.kernel += kernel
		}
		if q, ok := s.Stream.(*quicStream); ok {
			most := q.held()
			windows += most
			if !one.stalled {
				// It is read as it arrives, unless the peer leaves a gap and sends data beyond it. With
				// the first window alone that is not much more than streamCost.
				most -= quicStreamWindow
			}
			most = min(most, room)
			room -= most
			one.bytes += most
		} else {
			one.count(h, s.Stream)
		}
		u.add(one)
	}
	return windows
}

// count adds the bytes that the carrier or stream holds, if it can report them.
func (one *holding) count(h *holdings, where any) {
	if m, ok := where.(memoryHolder); ok {
		heap, kernel := m.held()
		one.bytes += heap + kernel
		h.kernel += kernel
	}
}

// stoodStill reports whether the stream's user has not come back to read, or has
// waited for the peer to read, for budgetStalled.
func (s *carriedStream) stoodStill(now time.Duration) bool {
	for _, since := range []int64{s.since.Load(), s.writing.Load()} {
		if since != 0 && now-time.Duration(since) >= budgetStalled {
			return true
		}
	}
	return false
}

// CountBeside makes a Budget count buffered's bytes as held for the stream: the bytes
// that the kernel keeps for the connection that the stream is copied to.
func (s *carriedStream) CountBeside(buffered func() int64) { s.beside.Store(&buffered) }

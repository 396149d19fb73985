package tunnel

import (
	"time"

	"wmproxy/internal/udpio"
)

// memoryHolder is a carrier or a stream that can tell how many bytes it holds for
// a peer: on the heap, and in the kernel with the kernel's own overhead.
type memoryHolder interface {
	held() (heap, kernel int64)
}

var (
	_ memoryHolder = (*quicCarrier)(nil)
	_ memoryHolder = (*yamuxCarrier)(nil)
	_ memoryHolder = (*quicStream)(nil)
	_ memoryHolder = (*chunkStream)(nil)
)

// held counts streams that were reset until the peer has answered: quic-go keeps
// their data until then.
func (c *quicCarrier) held() (heap, kernel int64) { return c.abandoned.Load(), 0 }

func (c *yamuxCarrier) held() (heap, kernel int64) {
	return 0, kernelOverhead * udpio.Buffered(c.conn.raw)
}

// held is the most that quic-go may hold, which does not tell how much it does: the
// stream's window, which quic-go doubles whenever a quarter of it has been read.
func (s *quicStream) held() (heap, kernel int64) {
	return min(s.link.window, quicStreamWindow+4*s.read.Load()), 0
}

func (s *chunkStream) held() (heap, kernel int64) {
	taken := s.taken.Load()
	return int64(s.arrived.Load() - min(s.arrived.Load(), taken)), 0
}

// addHoldings adds the carrier and its streams to their user's holdings, and
// returns the kernel's part.
func (a *Attachment) addHoldings(u *holder, user string) (kernel int64) {
	if a.c.Err() != nil {
		return 0
	}
	now := a.s.now()
	add := func(h holding, where any) {
		if m, ok := where.(memoryHolder); ok {
			heap, k := m.held()
			h.bytes += heap + k
			kernel += k
		}
		u.bytes += h.bytes
		u.all = append(u.all, h)
	}
	a.carried.mu.Lock()
	for s := range a.carried.all {
		h := holding{user: user, bytes: streamCost, stalled: s.stoodStill(now), free: func() { s.Stream.Reset(CodeLimit) }}
		if beside := s.beside.Load(); beside != nil {
			k := kernelOverhead * (*beside)()
			h.bytes += k
			kernel += k
		}
		if _, ok := s.Stream.(*quicStream); ok && !h.stalled {
			add(h, nil) // read as it comes
		} else {
			add(h, s.Stream)
		}
	}
	a.carried.mu.Unlock()
	if _, ok := a.c.(memoryHolder); !ok || !a.s.server {
		return kernel // a client's own, or the only one of a proxy
	}
	add(holding{user: user, bytes: carrierCost, carrier: true, free: func() {
		a.s.spawn(func() { // else it closes by itself
			a.closeFor(CodeLimit, "the server is short of memory, and this user holds most of it")
		})
	}}, a.c)
	return kernel
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

// CountBeside has a Budget count buffered's bytes as held for the stream: those that
// the kernel keeps for the connection that the stream is copied to.
func (s *carriedStream) CountBeside(buffered func() int64) { s.beside.Store(&buffered) }

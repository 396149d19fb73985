package tunnel

import (
	"math"
	"time"

	"wmproxy/tunnel/carrier"
)

// add adds the carrier of a and its streams to the holdings of their user.
func (h *holdings) add(p *Path) {
	u := h.of(p.s.cfg.User)
	windows := p.addStreams(h, u)
	if _, ok := p.c.(carrier.Holder); !ok || !p.s.server {
		return // a client's own, or the only one of a proxy
	}
	own := holding{user: p.s.cfg.User, carrier: true, free: func() {
		p.s.spawn(func() { // else it closes by itself
			p.closeFor(carrier.CodeLimit, "the server is short of memory, and this user holds most of it")
		})
	}}
	own.count(h, p.c)
	if c, ok := p.c.(carrier.WindowHolder); ok {
		own.unread = min(c.Unread(), windows+own.bytes)
	}
	if p.c.Err() != nil {
		h.closing += own.bytes
		return
	}
	own.bytes += carrierCost
	u.add(own)
}

// addStreams adds the streams of a, and returns the sum of their windows in bytes.
func (p *Path) addStreams(h *holdings, u *holder) (windows int64) {
	now := p.s.now()
	room := int64(math.MaxInt64) // for streams with windows
	if c, ok := p.c.(carrier.WindowHolder); ok {
		room = c.Window()
	}
	p.carried.mu.Lock()
	defer p.carried.mu.Unlock()
	for s := range p.carried.all {
		one := holding{user: p.s.cfg.User, bytes: streamCost, stalled: s.stoodStill(now), free: func() { s.Stream.Reset(carrier.CodeLimit) }}
		if beside := s.beside.Load(); beside != nil {
			kernel := carrier.KernelOverhead * (*beside)()
			one.bytes += kernel
			h.kernel += kernel
		}
		if w, ok := s.Stream.(carrier.WindowedStream); ok {
			most, first := w.Window()
			windows += most
			if !one.stalled {
				// It is read as it arrives, unless the peer leaves a gap and sends data beyond it. With
				// the first window alone that is not much more than streamCost.
				most -= first
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
	if m, ok := where.(carrier.Holder); ok {
		heap, kernel := m.Held()
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

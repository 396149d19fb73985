package wire

import (
	"sync"
	"time"
)

// Reassembler puts fragments together again. It has no clock and no lock: it
// belongs to the one goroutine that receives from a carrier. The zero value works.
type Reassembler struct {
	parts []*partial // oldest first
	done  []byte     // the buffer of the datagram returned last
	Drops uint64     // datagrams given up: too old, too many or inconsistent
}

type fragmentKey struct {
	flow    uint64
	message uint16
}

// partial is a datagram of which some fragments have arrived. They stand in buf
// in the order of arrival, which is nearly always the order of their indexes.
type partial struct {
	key   fragmentKey
	since time.Duration
	buf   []byte
	at    [maxFragments]struct{ off, len uint32 }
	have  int
	top   uint8 // the highest index that arrived
	count uint8 // 0 while the last one is missing
	mixed bool  // some arrived out of order
}

var (
	partialPool = sync.Pool{New: func() any { return new(partial) }}
	smallPool   = sync.Pool{New: func() any { return new([smallPartial]byte) }}
	largePool   = sync.Pool{New: func() any { return new([MaxBody]byte) }}
)

func getPartialBuffer(size int) []byte {
	if size <= smallPartial {
		return smallPool.Get().(*[smallPartial]byte)[:0]
	}
	return largePool.Get().(*[MaxBody]byte)[:0]
}

// putPartialBuffer gives a buffer back as a pointer to its array, which unlike a
// slice goes into the pool without an allocation.
func putPartialBuffer(b []byte) {
	switch cap(b) {
	case smallPartial:
		smallPool.Put((*[smallPartial]byte)(b[:smallPartial]))
	case MaxBody:
		largePool.Put((*[MaxBody]byte)(b[:MaxBody]))
	}
}

// Add takes one fragment and returns the whole datagram once it is complete, or
// nil. The datagram is valid until the next call. now is any steady clock.
func (r *Reassembler) Add(rec *Record, now time.Duration) []byte {
	if r.done != nil {
		putPartialBuffer(r.done)
		r.done = nil
	}
	r.Expire(now)
	if len(rec.Body) == 0 {
		return nil
	}
	key := fragmentKey{rec.Flow, rec.message}
	i := r.find(key)
	if i < 0 {
		if len(r.parts) == maxPartials {
			r.drop(0)
		}
		p := partialPool.Get().(*partial)
		*p = partial{key: key, since: now, buf: getPartialBuffer(len(rec.Body))}
		r.parts = append(r.parts, p)
		i = len(r.parts) - 1
	}
	p := r.parts[i]
	if !p.put(rec) {
		r.drop(i)
		return nil
	}
	if p.count == 0 || p.have < int(p.count) {
		return nil
	}
	r.done = p.join()
	r.remove(i)
	return r.done
}

// put stores one fragment; false says that it contradicts those before it.
func (p *partial) put(rec *Record) bool {
	at := &p.at[rec.index]
	if at.len != 0 {
		return true // seen already
	}
	if p.count != 0 && (rec.index >= p.count || rec.count != 0) ||
		rec.count != 0 && p.have > 0 && p.top >= rec.index ||
		len(p.buf)+len(rec.Body) > MaxBody {
		return false
	}
	if cap(p.buf)-len(p.buf) < len(rec.Body) {
		grown := append(getPartialBuffer(MaxBody), p.buf...)
		putPartialBuffer(p.buf)
		p.buf = grown
	}
	at.off, at.len = uint32(len(p.buf)), uint32(len(rec.Body))
	p.buf = append(p.buf, rec.Body...)
	p.mixed = p.mixed || int(rec.index) != p.have
	p.have++
	p.top = max(p.top, rec.index)
	if rec.count != 0 {
		p.count = rec.count
	}
	return true
}

// join returns the datagram in a buffer that is now the caller's.
func (p *partial) join() []byte {
	b := p.buf
	p.buf = nil
	if !p.mixed {
		return b
	}
	out := getPartialBuffer(len(b))
	for _, at := range p.at[:p.count] {
		out = append(out, b[at.off:at.off+at.len]...)
	}
	putPartialBuffer(b)
	return out
}

func (r *Reassembler) find(key fragmentKey) int {
	for i, p := range r.parts {
		if p.key == key {
			return i
		}
	}
	return -1
}

// Expire gives up datagrams that have been in parts for too long.
func (r *Reassembler) Expire(now time.Duration) {
	for len(r.parts) > 0 && now-r.parts[0].since > reassemblyTimeout {
		r.drop(0)
	}
}

func (r *Reassembler) drop(i int) {
	r.Drops++
	r.remove(i)
}

func (r *Reassembler) remove(i int) {
	p := r.parts[i]
	if p.buf != nil {
		putPartialBuffer(p.buf)
		p.buf = nil
	}
	partialPool.Put(p)
	r.parts = append(r.parts[:i], r.parts[i+1:]...)
}

// Close frees everything.
func (r *Reassembler) Close() {
	for len(r.parts) > 0 {
		r.remove(0)
	}
	if r.done != nil {
		putPartialBuffer(r.done)
		r.done = nil
	}
}

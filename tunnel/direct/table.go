package direct

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxIDs bounds the connection IDs of one table, those of closed rings among them.
	maxIDs = 1 << 16

	// maxRingIDs bounds those of one ring: the present one, and those of paths that it moves to or comes from.
	maxRingIDs = 8

	// An ID stays known for closedTime after its end, if no more than maxClosed ended later, so
	// that quic-go does not answer late packets.
	closedTime = 30 * time.Second
	maxClosed  = 1 << 14

	// chunkSize is the size of a chunk in bytes, and chunkPackets the number of packets in it at most.
	chunkSize    = 32 << 10
	chunkPackets = 128

	// maxRingChunks bounds the chunks of one ring, and maxTableChunks those of all rings of a
	// table: 16 MiB of packets.
	maxRingChunks  = 16
	maxTableChunks = 512
)

var errTooManyIDs = errors.New("too many connection IDs for direct packets")

// Arrival is a packet that has arrived.
type Arrival struct {
	Packet []byte
	At     time.Duration  // by the clock of the reader
	From   netip.AddrPort // the peer's address
	To     netip.Addr     // our address, if it is known
	CE     bool           // marked by ECN (RFC 3168)
}

// Table finds the ring for each packet that arrives on one socket. Its zero value is ready.
type Table struct {
	mu     sync.Mutex
	ids    map[ConnectionID]owner
	closed []ConnectionID // in the order of their ends

	chunks atomic.Int64 // of all rings
}

// owner is a ring, or nil and the time until which the ID stays known.
type owner struct {
	ring  *Ring
	until time.Duration
}

// Ring keeps packets that have arrived for one carrier until it takes them. The socket's reader
// fills it, and one other goroutine takes from it.
type Ring struct {
	table *Table
	ids   []ConnectionID // guarded by table.mu
	ready chan struct{}

	mu          sync.Mutex
	first, last *chunk
	count       int // chunks
	taken       int // packets of first
	waiting     bool
	closed      bool
	dropped     uint64
}

// chunk is a part of a ring that never moves. Chunks come from a pool, so that a ring without packets has none.
type chunk struct {
	next    *chunk
	packets int
	used    int // bytes
	arrived [chunkPackets]Arrival
	buf     [chunkSize]byte
}

var chunkPool = sync.Pool{New: func() any { return new(chunk) }}

// NewRing returns a ring without a connection ID.
func (t *Table) NewRing() *Ring { return &Ring{table: t, ready: make(chan struct{}, 1)} }

// Deliver reports whether the packet belongs to a ring, or did until recently, and puts a copy into it. The packet
// then concerns nobody else. Full rings drop it.
func (t *Table) Deliver(a *Arrival) bool {
	if len(a.Packet) < numberOffset || a.Packet[0]&longHeader != 0 {
		return false
	}
	id := ConnectionID(a.Packet[1:numberOffset])
	t.mu.Lock()
	o, known := t.ids[id]
	if known && o.ring == nil {
		known = a.At < o.until
	}
	t.mu.Unlock()
	if o.ring != nil {
		o.ring.put(a)
	}
	return known
}

// AddID returns a new connection ID whose packets go to the ring.
func (r *Ring) AddID() (ConnectionID, error) {
	t := r.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(r.ids) >= maxRingIDs || len(t.ids) >= maxIDs {
		return ConnectionID{}, errTooManyIDs
	}
	if t.ids == nil {
		t.ids = make(map[ConnectionID]owner)
	}
	id := newConnectionID()
	t.ids[id] = owner{ring: r}
	r.ids = append(r.ids, id)
	return id, nil
}

// RemoveID ends one of the ring's connection IDs. Its packets are consumed for a while, and dropped.
func (r *Ring) RemoveID(id ConnectionID, now time.Duration) {
	t := r.table
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, own := range r.ids {
		if own == id {
			r.ids = append(r.ids[:i], r.ids[i+1:]...)
			t.closeLocked(id, now)
			return
		}
	}
}

// Close ends all connection IDs of the ring and drops its packets. Those that Take returned last stay valid.
func (r *Ring) Close(now time.Duration) {
	t := r.table
	t.mu.Lock()
	for _, id := range r.ids {
		t.closeLocked(id, now)
	}
	r.ids = nil
	t.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	// The chunks do not return to the pool: the last Take's user may still read.
	t.chunks.Add(-int64(r.count))
	r.first, r.last, r.count, r.taken, r.closed = nil, nil, 0, 0, true
}

func (t *Table) closeLocked(id ConnectionID, now time.Duration) {
	t.ids[id] = owner{until: now + closedTime}
	t.closed = append(t.closed, id)
	for len(t.closed) > maxClosed || t.ids[t.closed[0]].until <= now {
		delete(t.ids, t.closed[0])
		t.closed = t.closed[1:]
	}
}

// put copies the packet into the ring.
func (r *Ring) put(a *Arrival) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.last
	if c == nil || c.packets == chunkPackets || chunkSize-c.used < len(a.Packet) {
		if c = r.grow(len(a.Packet)); c == nil {
			r.dropped++
			return
		}
	}
	end := c.used + copy(c.buf[c.used:], a.Packet)
	to := &c.arrived[c.packets]
	*to = *a
	to.Packet = c.buf[c.used:end:end]
	c.used = end
	c.packets++
	if r.waiting {
		r.waiting = false
		select {
		case r.ready <- struct{}{}:
		default:
		}
	}
}

// grow appends a chunk for a packet of that size, or returns nil if a bound forbids it.
func (r *Ring) grow(size int) *chunk {
	if r.closed || size > chunkSize || r.count >= maxRingChunks {
		return nil
	}
	if r.table.chunks.Add(1) > maxTableChunks {
		r.table.chunks.Add(-1)
		return nil
	}
	c := chunkPool.Get().(*chunk)
	c.next, c.packets, c.used = nil, 0, 0
	if r.last == nil {
		r.first = c
	} else {
		r.last.next = c
	}
	r.last = c
	r.count++
	return c
}

// Take moves packets that have arrived to dst and returns how many. They may be written to, and are
// valid until the next call. If there are none, Ready tells when to call again.
func (r *Ring) Take(dst []Arrival) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := r.first; c != nil && r.taken == c.packets; c = r.first {
		r.first, r.taken = c.next, 0
		if r.first == nil {
			r.last = nil
		}
		r.count--
		r.table.chunks.Add(-1)
		chunkPool.Put(c)
	}
	if r.first == nil {
		r.waiting = true
		return 0
	}
	n := copy(dst, r.first.arrived[r.taken:r.first.packets])
	r.taken += n
	return n
}

// Ready returns the channel that receives a value after Take has returned 0 and a packet has arrived since.
func (r *Ring) Ready() <-chan struct{} { return r.ready }

// Dropped returns the number of packets that found no room.
func (r *Ring) Dropped() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dropped
}

// Package queue is the datagrams of a session that wait to be sent, and the Sender by which a
// carrier pulls bundles of them.
package queue

import (
	"sync"
	"time"

	"wmproxy/internal/notify"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
	"wmproxy/tunnel/wire"
)

// Queue is a session's datagrams that wait for a carrier: a list for each flow,
// served in turn (deficit round robin). Producers never wait: when it is full,
// the oldest datagram of a flow that has more than its share makes room.
// Carriers pull bundles from it, so nothing is stranded on a dead one.
type Queue struct {
	mu     sync.Mutex
	bytes  int
	flows  int     // flows with datagrams waiting
	turn   *Flow   // ring of those flows; the one whose turn it is
	sender *Sender // the carrier that serves now; nil while none is attached
	closed bool
}

// Flow is one flow's part of the queue; it is guarded by Queue.mu.
type Flow struct {
	ID          uint64
	first, last *packet
	Drops       stats.Drops
	bytes       int
	deficit     int
	next, prev  *Flow // nil while nothing waits
}

// packet is one waiting datagram.
type packet struct {
	next  *packet
	since time.Duration
	buf   []byte

	// Where it is sent in fragments:
	off     int     // bytes already sent
	by      *Sender // the carrier they went over
	message uint16
	index   uint8
}

// Sender is a carrier's side of the queue.
type Sender struct {
	Exact   bool // bundles of exactly the limit leave cheaper (QUIC's trains)
	Pads    bool // up to that limit
	Wake    notify.Signal
	parked  bool   // waits on wake; guarded by Queue.mu
	message uint16 // number of the last datagram sent in fragments
	Late    bool   // the path is the limit, by congestedAfter; belongs to fill's caller
}

// NewSender returns a sender of bundles; exact is Traits.Exact of their carrier.
func NewSender(exact bool) *Sender {
	return &Sender{Exact: exact, Pads: exact, Wake: notify.New()}
}

// Packets come in a few sizes, so that small ones do not hold large buffers.
var packetPools = [...]struct {
	size int
	pool sync.Pool
}{
	{size: 256},
	{size: 2 << 10},
	{size: 16 << 10},
	{size: wire.MaxBody},
}

func getPacket(size int) *packet {
	for i := range packetPools {
		c := &packetPools[i]
		if size > c.size {
			continue
		}
		p, _ := c.pool.Get().(*packet)
		if p == nil {
			p = &packet{buf: make([]byte, 0, c.size)}
		}
		return p
	}
	return nil
}

func putPacket(p *packet) {
	for i := range packetPools {
		if c := &packetPools[i]; cap(p.buf) == c.size {
			*p = packet{buf: p.buf[:0]}
			c.pool.Put(p)
			return
		}
	}
}

// Push queues datagrams of one flow, in order, and wakes the sender.
func (q *Queue) Push(f *Flow, ms []udpio.Message, now time.Duration) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	for i := range ms {
		m := &ms[i]
		p := getPacket(m.Len())
		if p == nil {
			f.Drops.Drop(stats.TooLarge, 1)
			continue
		}
		p.buf = append(append(p.buf, m.Head...), m.Body...)
		p.since = now
		q.append(f, p)
	}
	q.shrink(f)
	q.wakeLocked()
	q.mu.Unlock()
}

// shrink drops what is more than may wait; f is where to begin, nil is anywhere.
func (q *Queue) shrink(f *Flow) {
	most := maxQueueBytes
	if q.sender == nil {
		most = maxDetachedBytes
	}
	for q.bytes > most {
		if f == nil || f.first == nil {
			f = q.turn
		}
		f = q.greedy(f)
		q.dropOldest(f, stats.QueueFull)
	}
}

// wakeLocked wakes the sender if it sleeps and there is something to send.
func (q *Queue) wakeLocked() {
	if s := q.sender; s != nil && s.parked && q.flows > 0 {
		s.parked = false
		s.Wake.Wake()
	}
}

func (q *Queue) append(f *Flow, p *packet) {
	if f.last == nil {
		f.first = p
		q.link(f)
	} else {
		f.last.next = p
	}
	f.last = p
	n := len(p.buf) + packetOverhead
	f.bytes += n
	q.bytes += n
}

// link puts f at the end of the ring: it is served after all that wait already.
func (q *Queue) link(f *Flow) {
	q.flows++
	f.deficit = quantum
	if q.turn == nil {
		f.next, f.prev = f, f
		q.turn = f
		return
	}
	f.next, f.prev = q.turn, q.turn.prev
	f.prev.next, f.next.prev = f, f
}

func (q *Queue) unlink(f *Flow) {
	q.flows--
	if q.turn == f {
		q.turn = f.next
		if q.turn == f {
			q.turn = nil
		}
	}
	f.prev.next, f.next.prev = f.next, f.prev
	f.next, f.prev = nil, nil
}

// greedy returns a flow that has at least its share of the queue: f itself where
// that is so, else the next one found.
func (q *Queue) greedy(f *Flow) *Flow {
	share := q.bytes / q.flows
	if f.bytes >= share {
		return f
	}
	g := q.turn
	for g.bytes < share {
		g = g.next
	}
	return g
}

// pop takes the oldest datagram off f.
func (q *Queue) pop(f *Flow) *packet {
	p := f.first
	f.first = p.next
	n := len(p.buf) + packetOverhead
	f.bytes -= n
	q.bytes -= n
	if f.first == nil {
		f.last = nil
		q.unlink(f)
	}
	return p
}

func (q *Queue) dropOldest(f *Flow, why stats.Reason) {
	f.Drops.Drop(why, 1)
	putPacket(q.pop(f))
}

// Waiting returns the size of the waiting datagrams, with the overhead counted for each.
func (q *Queue) Waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}

// Clear drops what f has waiting.
func (q *Queue) Clear(f *Flow) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for f.first != nil {
		putPacket(q.pop(f))
	}
}

// Use makes s the carrier that serves the queue; nil is none.
func (q *Queue) Use(s *Sender) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sender = s
	q.shrink(nil)
	q.wakeLocked()
}

// Close drops everything and wakes nobody: senders end with their carriers.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for q.turn != nil {
		putPacket(q.pop(q.turn))
	}
}

// Fill puts what is next into the bundle b, up to limit bytes; b is empty or holds
// a probe. It returns b as it is when there is nothing to send or s does not serve
// the queue. An empty one then means that s is parked: the caller waits on s.Wake. now is the clock that
// Push was given.
func (q *Queue) Fill(b []byte, limit int, s *Sender, now time.Duration) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.Late = q.turn != nil && now-q.turn.first.since >= congestedAfter
	for q.sender == s && q.turn != nil {
		f := q.turn
		if f.deficit <= 0 { // what it sent beyond its share, it waits for
			f.deficit += quantum
			q.turn = f.next
			continue
		}
		p := f.first
		if now-p.since > maxAge && (p.off == 0 || p.by != s) {
			q.dropOldest(f, stats.Stale)
			continue
		}
		before := len(b)
		var done bool
		b, done = q.appendPacket(b, limit, f, p, s)
		if len(b) == before {
			if s.Pads && len(b) > 0 && now-p.since < congestedAfter {
				b = Pad(b, limit)
			}
			break // full
		}
		f.deficit -= len(b) - before
		if done {
			putPacket(q.pop(f))
		}
	}
	if len(b) == 0 {
		s.parked = true
	}
	return b
}

// Pad fills b up to limit with padding: flow 0, length 0, and whatever follows.
func Pad(b []byte, limit int) []byte {
	n := len(b)
	b = b[:limit]
	clear(b[n:])
	return b
}

// appendPacket appends p, or a fragment of it, as far as there is room up to
// limit; nothing means that the bundle is full. done says that nothing of p is left.
func (q *Queue) appendPacket(b []byte, limit int, f *Flow, p *packet, s *Sender) (_ []byte, done bool) {
	room := limit - len(b)
	if p.off > 0 && p.by != s {
		p.off, p.index = 0, 0 // fragments stay on one carrier
	}
	least := wire.MinFragment
	if p.off == 0 {
		if wire.RecordLen(f.ID, len(p.buf)) <= room {
			b = wire.AppendRecordHeader(b, f.ID, len(p.buf))
			return append(b, p.buf...), true
		}
		// The first fragment may be small, since only one is.
		least = min(wire.MinFragment, limit/smallRoom)
	}
	left := p.buf[p.off:]
	n := min(len(left), room-wire.FragmentOverhead(f.ID, room))
	if n < len(left) && n < least {
		return b, false
	}
	if p.off == 0 {
		s.message++
		p.message, p.by = s.message, s
	}
	count := uint8(0)
	if n == len(left) {
		count = p.index + 1
	}
	b = wire.AppendFragmentHeader(b, f.ID, n, p.message, p.index, count)
	b = append(b, left[:n]...)
	p.off += n
	p.index++
	return b, count != 0
}

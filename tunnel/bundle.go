package tunnel

import (
	"sync"
	"time"

	"wmproxy/internal/notify"
	"wmproxy/internal/stats"
	"wmproxy/internal/udpio"
)

const (
	// maxQueueBytes bounds what one session has waiting to be sent, in bytes.
	maxQueueBytes = 2 << 20

	// maxDetachedBytes is the same while no carrier is attached: hardly any of it will
	// be young enough when one comes, and a server may hold many such sessions.
	maxDetachedBytes = 64 << 10

	// maxQueueAge is how long a datagram may wait; an older one is of no use to a
	// call or a game and is dropped when its turn comes.
	maxQueueAge = 120 * time.Millisecond

	// quantum is how many bytes a flow sends before it is the next one's turn.
	quantum = 1500

	// smallRoom is the share of a bundle, as a divisor, that is left empty or padded
	// when the next datagram does not fit: a seventh. A larger room gets the
	// datagram's first fragment.
	smallRoom = 7

	// congestedAfter is how long the next datagram must have waited for the path to
	// count as the limit. Then bytes are dearer than system calls: no padding.
	congestedAfter = 5 * time.Millisecond

	// packetOverhead is what a waiting datagram counts beside its own bytes.
	packetOverhead = 64
)

// queue is a session's datagrams that wait for a carrier: a list for each flow,
// served in turn (deficit round robin). Producers never wait: when it is full,
// the oldest datagram of a flow that has more than its share makes room.
// Carriers pull bundles from it, so nothing is stranded on a dead one.
type queue struct {
	mu     sync.Mutex
	bytes  int
	flows  int        // flows with datagrams waiting
	turn   *flowQueue // ring of those flows; the one whose turn it is
	sender *sender    // the carrier that serves now; nil while none is attached
	closed bool
}

// flowQueue is one flow's part of the queue; it is guarded by queue.mu.
type flowQueue struct {
	id          uint64
	first, last *packet
	drops       stats.Drops
	bytes       int
	deficit     int
	next, prev  *flowQueue // nil while nothing waits
}

// packet is one waiting datagram.
type packet struct {
	next  *packet
	since time.Duration
	buf   []byte

	// Where it is sent in fragments:
	off     int     // bytes already sent
	by      *sender // the carrier they went over
	message uint16
	index   uint8
}

// sender is a carrier's side of the queue.
type sender struct {
	exact   bool // bundles of exactly the limit leave cheaper (QUIC's trains)
	pads    bool // up to that limit
	wake    notify.Signal
	parked  bool   // waits on wake; guarded by queue.mu
	message uint16 // number of the last datagram sent in fragments
	late    bool   // the path is the limit, by congestedAfter; belongs to fill's caller
}

func newSender(exact bool) *sender {
	return &sender{exact: exact, pads: exact, wake: notify.New()}
}

// Packets come in a few sizes, so that small ones do not hold large buffers.
var packetPools = [...]struct {
	size int
	pool sync.Pool
}{
	{size: 256},
	{size: 2 << 10},
	{size: 16 << 10},
	{size: MaxBody},
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

// push queues datagrams of one flow, in order, and wakes the sender.
func (q *queue) push(f *flowQueue, ms []udpio.Message, now time.Duration) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return
	}
	for i := range ms {
		m := &ms[i]
		p := getPacket(m.Len())
		if p == nil {
			f.drops.Drop(stats.TooLarge, 1)
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
func (q *queue) shrink(f *flowQueue) {
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
func (q *queue) wakeLocked() {
	if s := q.sender; s != nil && s.parked && q.flows > 0 {
		s.parked = false
		s.wake.Wake()
	}
}

func (q *queue) append(f *flowQueue, p *packet) {
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
func (q *queue) link(f *flowQueue) {
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

func (q *queue) unlink(f *flowQueue) {
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
func (q *queue) greedy(f *flowQueue) *flowQueue {
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
func (q *queue) pop(f *flowQueue) *packet {
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

func (q *queue) dropOldest(f *flowQueue, why stats.Reason) {
	f.drops.Drop(why, 1)
	putPacket(q.pop(f))
}

// waiting returns the size of the waiting datagrams, with the overhead counted for each.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}

// clear drops what f has waiting.
func (q *queue) clear(f *flowQueue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for f.first != nil {
		putPacket(q.pop(f))
	}
}

// use makes s the carrier that serves the queue; nil is none.
func (q *queue) use(s *sender) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sender = s
	q.shrink(nil)
	q.wakeLocked()
}

// close drops everything and wakes nobody: senders end with their carriers.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for q.turn != nil {
		putPacket(q.pop(q.turn))
	}
}

// fill puts what is next into the bundle b, up to limit bytes; b is empty or holds
// a probe. It returns b as it is when there is nothing to send or s does not serve
// the queue. An empty one then means that s is parked: the caller waits on s.wake. now is the clock that
// push was given.
func (q *queue) fill(b []byte, limit int, s *sender, now time.Duration) []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.late = q.turn != nil && now-q.turn.first.since >= congestedAfter
	for q.sender == s && q.turn != nil {
		f := q.turn
		if f.deficit <= 0 { // what it sent beyond its share, it waits for
			f.deficit += quantum
			q.turn = f.next
			continue
		}
		p := f.first
		if now-p.since > maxQueueAge && (p.off == 0 || p.by != s) {
			q.dropOldest(f, stats.Stale)
			continue
		}
		before := len(b)
		var done bool
		b, done = q.appendPacket(b, limit, f, p, s)
		if len(b) == before {
			if s.pads && len(b) > 0 && now-p.since < congestedAfter {
				b = pad(b, limit)
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

// pad fills b up to limit with padding: flow 0, length 0, and whatever follows.
func pad(b []byte, limit int) []byte {
	n := len(b)
	b = b[:limit]
	clear(b[n:])
	return b
}

// appendPacket appends p, or a fragment of it, as far as there is room up to
// limit; nothing means that the bundle is full. done says that nothing of p is left.
func (q *queue) appendPacket(b []byte, limit int, f *flowQueue, p *packet, s *sender) (_ []byte, done bool) {
	room := limit - len(b)
	if p.off > 0 && p.by != s {
		p.off, p.index = 0, 0 // fragments stay on one carrier
	}
	least := minFragment
	if p.off == 0 {
		if recordLen(f.id, len(p.buf)) <= room {
			b = appendRecordHeader(b, f.id, len(p.buf))
			return append(b, p.buf...), true
		}
		// The first fragment may be small, since only one is.
		least = min(minFragment, limit/smallRoom)
	}
	left := p.buf[p.off:]
	n := min(len(left), room-fragmentOverhead(f.id, room))
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
	b = appendFragmentHeader(b, f.id, n, p.message, p.index, count)
	b = append(b, left[:n]...)
	p.off += n
	p.index++
	return b, count != 0
}

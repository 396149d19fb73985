//go:build linux

package netlab

import (
	"container/heap"
	"math/bits"
	"time"
)

const (
	// maxHeld bounds the packets in one direction of a link.
	maxHeld = 1 << 16
	// maxPacket bounds a packet, in bytes; a TUN device has an MTU of 1,500.
	maxPacket = 1600
)

// packet is an IP packet on its way.
type packet struct {
	due    time.Duration // the time at which it leaves the link
	number uint64        // orders packets that are due at the same time
	size   int
	data   [maxPacket]byte
}

// isUDP reports whether the packet holds UDP, without looking behind IPv6 extension headers.
func (p *packet) isUDP() bool {
	const udp = 17
	switch p.data[0] >> 4 {
	case 4:
		return p.data[9] == udp
	case 6:
		return p.data[6] == udp
	}
	return false
}

// isMulticast reports whether the packet is one of IPv6 for a group.
func (p *packet) isMulticast() bool { return p.data[0]>>4 == 6 && p.data[24] == 0xff }

// lane is one direction of a link. It has no clock: times are those of the caller's.
//
//	arrive → policer → queue, at the rate → loss → delay, jitter → leave
type lane struct {
	path  Path
	began time.Duration // of the random numbers
	seed  uint64
	free  []*packet

	queue   []*packet // waiting for the rate, the first being sent
	queued  int       // bytes of them
	sent    time.Duration
	flying  packets
	last    time.Duration // when the latest of flying is due
	number  uint64
	tokens  float64 // bytes that UDP may send at once
	tokenAt time.Duration

	traffic Traffic
	late    lateness
}

func newLane(p Path, seed uint64) *lane {
	l := &lane{seed: seed}
	l.set(p, 0)
	return l
}

// set changes the path.
func (l *lane) set(p Path, now time.Duration) {
	l.advance(now)
	before := l.path
	l.path = p.withDefaults()
	if l.path.Police != before.Police || l.path.Bucket != before.Bucket {
		l.tokens, l.tokenAt = float64(l.path.Bucket), now
	}
	if len(l.queue) > 0 {
		l.sent = now + l.sending(l.queue[0])
	}
}

// restart counts anew and begins the random numbers of a seed.
func (l *lane) restart(seed uint64, now time.Duration) {
	l.began, l.seed, l.number = now, seed, 0
	l.traffic, l.late = Traffic{}, lateness{}
}

// get returns a packet to read into.
func (l *lane) get() *packet {
	if n := len(l.free); n > 0 {
		p := l.free[n-1]
		l.free = l.free[:n-1]
		return p
	}
	return new(packet)
}

func (l *lane) put(p *packet) { l.free = append(l.free, p) }

// drop counts a packet as dropped for a reason.
func (l *lane) drop(p *packet, reason *int) {
	*reason++
	l.put(p)
}

// sending returns the time that the rate takes for a packet.
func (l *lane) sending(p *packet) time.Duration {
	if l.path.Rate == 0 {
		return 0
	}
	return time.Duration(int64(p.size) * 8 * int64(time.Second) / int64(l.path.Rate))
}

// arrive takes a packet that arrives now.
func (l *lane) arrive(p *packet, now time.Duration) {
	l.advance(now)
	t := &l.traffic
	t.Seen++
	t.SeenBytes += p.size
	switch udp := p.isUDP(); {
	case udp && l.path.BlockUDP:
		l.drop(p, &t.Blocked)
	case udp && !l.conforms(p, now):
		l.drop(p, &t.Policed)
	case len(l.queue)+len(l.flying) >= maxHeld:
		l.drop(p, &t.Overrun)
	case l.path.Rate == 0 && len(l.queue) == 0:
		l.launch(p, now)
	case l.queued+p.size > l.path.Queue:
		l.drop(p, &t.Queue)
	default:
		if len(l.queue) == 0 {
			l.sent = max(now, l.sent) + l.sending(p)
		}
		l.queue = append(l.queue, p)
		l.queued += p.size
	}
}

// conforms reports whether the policer lets a packet of UDP pass.
func (l *lane) conforms(p *packet, now time.Duration) bool {
	if l.path.Police == 0 {
		return true
	}
	l.tokens = min(l.tokens+(now-l.tokenAt).Seconds()*float64(l.path.Police)/8, float64(l.path.Bucket))
	l.tokenAt = now
	if l.tokens < float64(p.size) {
		return false
	}
	l.tokens -= float64(p.size)
	return true
}

// advance launches the packets that the rate has sent until now.
func (l *lane) advance(now time.Duration) {
	for len(l.queue) > 0 && l.sent <= now {
		p := l.queue[0]
		l.queue = l.queue[1:]
		l.queued -= p.size
		l.launch(p, l.sent)
		if len(l.queue) > 0 {
			l.sent += l.sending(l.queue[0])
		}
	}
}

// launch takes a packet that leaves the queue at this time, and delays or drops it.
func (l *lane) launch(p *packet, at time.Duration) {
	l.number++
	since := at - l.began
	switch chance := l.random(numberLoss, l.number); {
	case chance < l.path.Loss:
		l.drop(p, &l.traffic.Lost)
		return
	// The same number decides, so that a packet has one chance only.
	case l.isBad(since) && chance < l.path.Loss+(1-l.path.Loss)*l.path.Burst.Loss:
		l.drop(p, &l.traffic.Burst)
		return
	}
	p.number, p.due = l.number, at+l.path.Delay
	if j := l.path.Jitter; j > 0 {
		p.due += time.Duration(l.random(numberJitter, uint64(since/j)) * float64(j))
	}
	if !l.path.Reorder {
		p.due = max(p.due, l.last)
	}
	l.last = p.due
	heap.Push(&l.flying, p)
}

// isBad reports whether the link is in a bad state.
func (l *lane) isBad(since time.Duration) bool {
	b := l.path.Burst
	if b.Share <= 0 {
		return false
	}
	period := time.Duration(float64(b.Length) / b.Share)
	begin := time.Duration(l.random(numberBurst, uint64(since/period)) * float64(period-b.Length))
	in := since % period
	return begin <= in && in < begin+b.Length
}

// next returns the time at which a packet is due; ok is false if there is none.
func (l *lane) next() (at time.Duration, ok bool) {
	if len(l.queue) > 0 {
		at, ok = l.sent, true
	}
	if len(l.flying) > 0 && (!ok || l.flying[0].due < at) {
		at, ok = l.flying[0].due, true
	}
	return at, ok
}

// leave returns a packet that is due, or nil. The caller must call put afterwards.
func (l *lane) leave(now time.Duration) *packet {
	l.advance(now)
	if len(l.flying) == 0 || l.flying[0].due > now {
		return nil
	}
	p := heap.Pop(&l.flying).(*packet)
	l.late.add(now - p.due)
	l.traffic.Delivered++
	l.traffic.DeliveredBytes += p.size
	return p
}

// count returns the traffic since the restart.
func (l *lane) count() Traffic {
	t := l.traffic
	t.Late50, t.Late99, t.LateMax = l.late.quantile(0.5), l.late.quantile(0.99), l.late.most
	return t
}

// Kinds of random numbers.
const (
	numberLoss = iota + 1
	numberJitter
	numberBurst
)

// random returns the i-th random number of a kind, 0 to 1: a function of the seed alone.
func (l *lane) random(kind, i uint64) float64 {
	return float64(mix(mix(l.seed^kind<<56)+i)>>11) / (1 << 53)
}

// mix is the finalizer of SplitMix64: bits of nearby numbers become independent.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// packets is a heap, the one that is due first on top.
type packets []*packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if p[i].due == p[j].due {
		return p[i].number < p[j].number
	}
	return p[i].due < p[j].due
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(*packet)) }
func (p *packets) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	*p = (*p)[:last]
	return x
}

// lateness counts delays in steps of a quarter of an octave of nanoseconds.
type lateness struct {
	steps [4 * 64]int
	all   int
	most  time.Duration
}

func (l *lateness) add(d time.Duration) {
	d = max(d, 1)
	octave := bits.Len64(uint64(d)) - 1
	quarter := uint64(d) << (63 - octave) >> 61 & 3
	l.steps[4*octave+int(quarter)]++
	l.all++
	l.most = max(l.most, d)
}

// quantile returns the upper end of the quantile's step.
func (l *lateness) quantile(q float64) time.Duration {
	left := int(q * float64(l.all))
	for i, n := range l.steps {
		if left -= n; left < 0 {
			return min(time.Duration(5+i%4)<<(i/4)>>2, l.most)
		}
	}
	return l.most
}

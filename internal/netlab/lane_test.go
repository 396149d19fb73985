//go:build linux

package netlab

import (
	"math"
	"slices"
	"testing"
	"time"
)

// sent is one packet of a test: when it comes and its size. left is when it left, 0 if it did not.
type sent struct {
	at, left time.Duration
	size     int
}

// pass sends packets of UDP through a lane, in the order of their times, and fills in when they left.
func pass(l *lane, all []sent) (order []int) {
	next := 0
	for {
		at, ok := l.next()
		switch {
		case next < len(all) && (!ok || all[next].at < at):
			p := l.get()
			p.data[0], p.data[9], p.size = 4<<4, 17, all[next].size
			p.data[20], p.data[21], p.data[22] = byte(next>>16), byte(next>>8), byte(next)
			l.arrive(p, all[next].at)
			next++
		case !ok:
			return order
		default:
			for p := l.leave(at); p != nil; p = l.leave(at) {
				i := int(p.data[20])<<16 | int(p.data[21])<<8 | int(p.data[22])
				all[i].left = at
				order = append(order, i)
				l.put(p)
			}
		}
	}
}

// evenly is count packets, the first after one interval.
func evenly(count, size int, every time.Duration) (all []sent) {
	for i := range count {
		all = append(all, sent{at: time.Duration(i+1) * every, size: size})
	}
	return all
}

func TestLaneSendsAtItsRate(t *testing.T) {
	l := newLane(Path{Rate: 8_000_000, Queue: 10_000, Delay: 5 * time.Millisecond}, 1)
	all := evenly(20, 1000, time.Microsecond)
	pass(l, all)
	for i, s := range all[:10] {
		if want := all[0].at + time.Duration(i+1)*time.Millisecond + 5*time.Millisecond; s.left != want {
			t.Errorf("packet %d left at %v, want %v", i, s.left, want)
		}
	}
	if got := l.count(); got.Delivered != 10 || got.Queue != 10 || got.DeliveredBytes != 10_000 || got.Dropped() != 10 {
		t.Errorf("%+v, want 10 delivered, 10 dropped by the queue", got)
	}
}

func TestLaneRateChangesForWaitingPackets(t *testing.T) {
	l := newLane(Path{Rate: 8_000_000, Queue: 1 << 20}, 1)
	all := evenly(100, 1000, time.Microsecond)
	half := slices.Clone(all)
	for i := range half {
		p := l.get()
		p.size = half[i].size
		l.arrive(p, half[i].at)
	}
	left, last := 0, time.Duration(0)
	for at, ok := l.next(); ok; at, ok = l.next() {
		for p := l.leave(at); p != nil; p = l.leave(at) {
			if left++; left == 50 {
				l.set(Path{Rate: 80_000_000, Queue: 1 << 20}, at)
			}
			last = at
			l.put(p)
		}
	}
	if want := time.Microsecond + 55*time.Millisecond; left != 100 || last != want {
		t.Errorf("%d packets, the last at %v, want 100 until %v", left, last, want)
	}
}

func TestLaneLosesTheSameForASeed(t *testing.T) {
	lost := func(seed uint64) (missing []int) {
		l := newLane(Path{Loss: 0.03}, 99)
		l.restart(seed, 0)
		all := evenly(20_000, 100, time.Millisecond)
		pass(l, all)
		for i := range all {
			if all[i].left == 0 {
				missing = append(missing, i)
			}
		}
		if got := l.count().Lost; got != len(missing) {
			t.Errorf("%d counted as lost, %d are", got, len(missing))
		}
		return missing
	}
	one, again, other := lost(1), lost(1), lost(2)
	if !slices.Equal(one, again) || slices.Equal(one, other) {
		t.Errorf("%d, %d and %d are lost", len(one), len(again), len(other))
	}
	if share := float64(len(one)) / 20_000; math.Abs(share-0.03) > 0.004 {
		t.Errorf("%.4f are lost, want 0.03", share)
	}
}

func TestLaneLosesInBursts(t *testing.T) {
	l := newLane(Path{Burst: Burst{Share: 0.01, Length: 200 * time.Millisecond, Loss: 0.3}}, 7)
	all := evenly(600_000, 100, time.Millisecond) // ten minutes
	pass(l, all)
	bursts, last := 0, -time.Second
	for _, s := range all {
		if s.left != 0 {
			continue
		}
		if s.at-last > 200*time.Millisecond {
			bursts++
		}
		last = s.at
	}
	// 30 periods of 20 s, with a burst of some 60 packets in each.
	if got := l.count(); bursts != 30 || got.Burst < 1600 || got.Burst > 2000 || got.Dropped() != got.Burst {
		t.Errorf("%d bursts, %+v", bursts, got)
	}
}

func TestLanePolicesUDPAlone(t *testing.T) {
	l := newLane(Path{Police: 8_000_000, Bucket: 10_000}, 1)
	pass(l, evenly(10_000, 1000, 500*time.Microsecond)) // twice the rate for five seconds
	if got := l.count(); got.Delivered < 5000 || got.Delivered > 5012 || got.Policed != 10_000-got.Delivered {
		t.Errorf("%+v, want half and a bucket delivered", got)
	}
	p := l.get()
	p.data[0], p.data[9], p.size = 4<<4, 6, 1000
	l.arrive(p, 5*time.Second)
	if l.leave(5*time.Second) != p {
		t.Errorf("%+v, want the packet of TCP delivered", l.count())
	}
	l.set(Path{BlockUDP: true}, 5*time.Second)
	pass(l, []sent{{at: 6 * time.Second, size: 100}})
	if got := l.count().Blocked; got != 1 {
		t.Errorf("%d packets are blocked, want 1", got)
	}
}

func TestLaneJitterKeepsTheOrderUnlessTold(t *testing.T) {
	const delay, jitter = 30 * time.Millisecond, 15 * time.Millisecond
	for _, reorder := range []bool{false, true} {
		l := newLane(Path{Delay: delay, Jitter: jitter, Reorder: reorder}, 3)
		all := evenly(5000, 100, time.Millisecond)
		order := pass(l, all)
		if len(order) != len(all) || slices.IsSorted(order) == reorder {
			t.Errorf("reorder %v: %d left, in order: %v", reorder, len(order), slices.IsSorted(order))
		}
		least, most := time.Hour, time.Duration(0)
		for _, s := range all {
			least, most = min(least, s.left-s.at), max(most, s.left-s.at)
		}
		if least < delay || least > delay+jitter/10 || most > delay+jitter || most < delay+jitter*9/10 {
			t.Errorf("reorder %v: delays of %v to %v", reorder, least, most)
		}
	}
}

func TestLaneHoldsABoundedNumber(t *testing.T) {
	l := newLane(Path{Delay: time.Minute}, 1)
	pass(l, evenly(maxHeld+10, 100, time.Microsecond))
	if got := l.count(); got.Overrun != 10 || got.Delivered != maxHeld {
		t.Errorf("%+v", got)
	}
}

func TestLatenessQuantiles(t *testing.T) {
	var l lateness
	for i := range 1000 {
		l.add(time.Duration(i+1) * time.Microsecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond} {
		if got := l.quantile(q); got < want || got > want*5/4 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if l.most != time.Millisecond {
		t.Errorf("the worst is %v", l.most)
	}
}

//go:build linux

package main

import (
	"math"
	"time"

	"wmproxy/internal/netlab"
)

// path is one that the loads run over.
type path struct {
	name, title string
	rtt         time.Duration
	each        netlab.Path // of each direction, but for its delay
}

const megabit = 1_000_000

var paths = []path{
	{"P1", "20 ms, 100 Mbit/s", 20 * time.Millisecond, netlab.Path{Rate: 100 * megabit}},
	{"P2", "100 ms, 100 Mbit/s", 100 * time.Millisecond, netlab.Path{Rate: 100 * megabit}},
	{"P3", "100 ms, 100 Mbit/s, 1 % loss each way", 100 * time.Millisecond, netlab.Path{Rate: 100 * megabit, Loss: 0.01}},
	{"P4", "200 ms, 50 Mbit/s, 3 % loss each way", 200 * time.Millisecond, netlab.Path{Rate: 50 * megabit, Loss: 0.03}},
	{"P5", "50 ms, 10 Mbit/s, a queue of 500 ms", 50 * time.Millisecond, netlab.Path{Rate: 10 * megabit, Queue: queue(500*time.Millisecond, 10*megabit)}},
	{"P6", "30 ms, 20 Mbit/s, a queue of 20 ms", 30 * time.Millisecond, netlab.Path{Rate: 20 * megabit, Queue: queue(20*time.Millisecond, 20*megabit)}},
	{"P7", "50 ms, 50 Mbit/s, UDP policed to 5 Mbit/s", 50 * time.Millisecond, netlab.Path{Rate: 50 * megabit, Police: 5 * megabit}},
	{"P8", "50 ms, 50 Mbit/s, UDP blocked", 50 * time.Millisecond, netlab.Path{Rate: 50 * megabit, BlockUDP: true}},
	{"P9", "60 ms, 20 Mbit/s, 15 ms jitter, 30 % loss for 200 ms once in 20 s", 60 * time.Millisecond, netlab.Path{
		Rate: 20 * megabit, Jitter: 15 * time.Millisecond, Burst: netlab.Burst{Share: 0.01, Length: 200 * time.Millisecond, Loss: 0.3},
	}},
}

// queue returns the bytes that a rate sends in a time.
func queue(wait time.Duration, bits int) int { return int(wait.Seconds() * float64(bits) / 8) }

func pathNames() (names []string) {
	for _, p := range paths {
		names = append(names, p.name)
	}
	return names
}

// directions returns the path as the network lab takes it.
func (p path) directions() [2]netlab.Path {
	each := p.each
	each.Delay = p.rtt / 2
	return netlab.Symmetric(each)
}

// udpRate is the rate that datagrams have of the path, bit/s of IP packets.
func (p path) udpRate() int {
	if p.each.Police > 0 {
		return min(p.each.Police, p.each.Rate)
	}
	return p.each.Rate
}

// keeps is the share of the packets that random loss leaves, one way.
func (p path) keeps() float64 {
	b := p.each.Burst
	return (1 - p.each.Loss) * (1 - b.Share*b.Loss)
}

// roundTrips is the share of datagrams that can come back when they are sent at a multiple
// of the path's rate for UDP: what fits, less the loss of both ways.
func (p path) roundTrips(multiple float64) float64 {
	return 1 / max(1, multiple) * math.Pow(p.keeps(), 2)
}

// goodput is what TCP can carry at most, in Mbit/s of payload: full packets, less the loss.
func (p path) goodput() float64 {
	const payload, packet = 1448, 1500
	return float64(p.each.Rate) / megabit * payload / packet * p.keeps()
}

package e2e

import (
	"fmt"
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

// oldest bounds the age of a datagram that has waited in a queue of ours: 120 ms, and the time
// to notice.
const oldest = 150 * time.Millisecond

// A stalled TCP connection keeps the data that it has. Later datagrams wait in our queue, which
// must not deliver old ones.
func TestInTheLabStandstillDropsOldDatagrams(t *testing.T) {
	t.Parallel()
	const standstill = 3 * time.Second
	l := startLab(t, netlab.Config{}, "--transport", overYamux)
	c := l.startCall(rhythm{Every: 2 * time.Millisecond, Size: 200, OneWay: true})
	during(2 * time.Second)
	before := holdingsNow(t, l.client.process, false)
	cut := c.now()
	l.Drop(netlab.Both, netlab.TCP, netlab.All)
	during(standstill)
	meanwhile := holdingsNow(t, l.client.process, false)
	mended := c.now()
	l.Mend()
	during(4 * time.Second) // TCP decides when to retransmit
	after := holdingsNow(t, l.client.process, false)
	end := c.now() - time.Second
	c.Stop()

	s := c.standstill(cut, mended, end)
	t.Logf("TCP held %d datagrams, %d bytes, the oldest of them %v old when it came; %d were dropped; then they passed again %v after the link, the first of them %v old",
		s.held, s.held*c.rhythm.Size, s.heldAge.Round(time.Millisecond), s.dropped, (s.resumed - mended).Round(time.Millisecond), tenths(s.firstAge))
	t.Logf("client before %v\nduring %v\nafter %v", before, meanwhile, after)
	f := c.between(cut-time.Second, cut)
	if f.LostUp > 0 {
		c.fault(f, "some are lost before")
	}
	if s.firstAge > oldest {
		c.fault(f, "what waited was %v old when it left, want %v at most", s.firstAge, oldest)
	}
	if s.dropped < int((standstill-time.Second)/c.rhythm.Every) {
		t.Errorf("only %d of %v were dropped, so TCP held the rest", s.dropped, standstill)
	}
	for _, h := range []holdings{meanwhile, after} {
		if h.RSS > before.RSS+4<<20*raceFactor() {
			t.Errorf("the client's memory grew: before %v\nnow %v", before, h)
		}
	}
}

// standstill summarizes the datagrams around a standstill.
type standstill struct {
	held     int           // had left our queues before, or are in TCP
	heldAge  time.Duration // of the first of them, on arrival
	dropped  int
	resumed  time.Duration // arrival of the first one after those dropped
	firstAge time.Duration // its age
}

// standstill summarizes a call with a standstill from cut to mended.
func (c *call) standstill(cut, mended, end time.Duration) (s standstill) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	i := 0
	for i < len(c.passages) && (c.passages[i].sent < cut-time.Second || c.passages[i].heards > 0 && c.passages[i].heard < mended) {
		i++
	}
	for ; i < len(c.passages) && c.passages[i].heards > 0 && c.passages[i].sent < mended; i++ {
		s.heldAge = max(s.heldAge, c.passages[i].heard-c.passages[i].sent)
		s.held++
	}
	for ; i < len(c.passages) && c.passages[i].sent < end; i++ {
		if p := &c.passages[i]; p.heards == 0 {
			s.dropped++
		} else if s.resumed == 0 {
			s.resumed, s.firstAge = p.heard, p.heard-p.sent
		}
	}
	if s.resumed == 0 {
		c.t.Error("nothing comes after the standstill")
	}
	return s
}

// Padding makes packets that the kernel sends many at a time. It must not take bandwidth from
// payload.
func TestInTheLabFullLineCarriesPayload(t *testing.T) {
	t.Parallel()
	const (
		line   = 10_000_000 // bits per second
		warmUp = 2 * time.Second
		lasts  = 5 * time.Second

		// The overhead of a record, and that of a full packet beyond its bundle: Ethernet,
		// IP, UDP, QUIC, the frame's header.
		perRecord           = 2 + 1 + 1 + 4 + 2
		perPacket, inPacket = 14 + 20 + 8 + 1 + 17 + 2 + 16 + 3, 14 + 1500
	)
	for _, size := range []int{160, 720, 1200} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := startLab(t, netlab.Config{}, "--transport", overQUIC)
			every := time.Duration(float64(size*8) / (1.2 * line) * float64(time.Second))
			c := l.startCall(rhythm{Every: every, Size: size, OneWay: true})
			l.Rate(netlab.Up, line, 50*time.Millisecond)
			during(warmUp)
			from, wire := c.now(), l.Wire(netlab.Up)
			during(lasts)
			to, wired := c.now(), l.Wire(netlab.Up)-wire
			c.Stop()

			came := c.heardBetween(from, to)
			seconds := (to - from).Seconds()
			goodput := float64(came*size*8) / seconds
			bound := line * float64(inPacket-perPacket) / inPacket * float64(size) / float64(size+perRecord)
			f := c.between(from, to)
			t.Logf("%d B: goodput %.2f Mbit/s, %.1f %% of the bound %.2f; the line carried %.2f Mbit/s, %.3f bytes for one of payload; one way p50 %v, p99 %v",
				size, goodput/1e6, 100*goodput/bound, bound/1e6, float64(wired*8)/1e6/seconds, float64(wired)/float64(came*size), tenths(f.Up50), tenths(f.Up99))
			if goodput < 0.9*bound {
				c.fault(f, "the goodput is %.2f Mbit/s, want nine tenths of %.2f", goodput/1e6, bound/1e6)
			}
		})
	}
}

// heardBetween returns the number of datagrams that arrived at the target in an interval.
func (c *call) heardBetween(from, to time.Duration) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.passages {
		if p.heard >= from && p.heard < to && p.heards > 0 {
			n++
		}
	}
	return n
}

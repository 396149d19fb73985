package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/netlab"
)

// voice is the rhythm of a phone call.
var voice = rhythm{Every: 20 * time.Millisecond, Size: 160}

// rhythm is the size and the interval of a call's datagrams.
type rhythm struct {
	Every  time.Duration
	Size   int
	OneWay bool // the target does not answer
}

// call is a flow of numbered datagrams at a steady rate to a target that echoes them. Both
// ends use the same clock.
type call struct {
	t      testing.TB
	rhythm rhythm
	conn   net.PacketConn
	target *net.UDPConn
	began  time.Time
	stop   func()
	wg     sync.WaitGroup

	mu       sync.Mutex
	passages []passage // by number
	egress   []netip.AddrPort
}

// passage is the times of a datagram since the beginning of the call, 0 for never.
type passage struct {
	sent, heard, back time.Duration
	heards, backs     int
}

// startCall opens an association and starts a call to a new target.
func (l *lab) startCall(r rhythm) *call {
	l.t.Helper()
	return l.startCallOn(l.associate(), r)
}

// startPlainCall starts a call without a tunnel, for comparison.
func (l *lab) startPlainCall(r rhythm) *call {
	l.t.Helper()
	var conn net.PacketConn
	l.in(l.Home, func() { conn = listenUDP(l.t, "0.0.0.0:0") })
	return l.startCallOn(conn, r)
}

func (l *lab) startCallOn(conn net.PacketConn, r rhythm) *call {
	c := &call{t: l.t, rhythm: r, conn: conn, began: time.Now()}
	l.in(l.Targets, func() { c.target = listenUDP(l.t, netip.AddrPortFrom(netlab.TargetAddr(), 0).String()) })
	stopped := make(chan struct{})
	c.stop = sync.OnceFunc(func() { close(stopped) })
	l.t.Cleanup(func() {
		c.stop()
		c.conn.Close()
		c.target.Close()
		c.wg.Wait()
	})
	c.wg.Go(c.answer)
	c.wg.Go(c.listen)
	c.wg.Go(func() { c.speak(stopped) })
	return c
}

func (c *call) now() time.Duration { return time.Since(c.began) }

func (c *call) speak(stopped <-chan struct{}) {
	b := make([]byte, c.rhythm.Size)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for number := 0; ; number++ {
		timer.Reset(time.Duration(number)*c.rhythm.Every - c.now())
		select {
		case <-timer.C:
		case <-stopped:
			return
		}
		binary.BigEndian.PutUint64(b, uint64(number))
		c.mu.Lock()
		c.passages = append(c.passages, passage{sent: c.now()})
		c.mu.Unlock()
		if _, err := c.conn.WriteTo(b, c.target.LocalAddr()); err != nil {
			c.t.Errorf("the association has ended: %v", err)
			return
		}
	}
}

// answer runs the target.
func (c *call) answer() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.target.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		c.arrived(b[:n], func(p *passage) {
			if p.heards++; p.heards == 1 {
				p.heard = c.now()
			}
			if !slices.Contains(c.egress, from) {
				c.egress = append(c.egress, from)
			}
		})
		if !c.rhythm.OneWay {
			_, _ = c.target.WriteToUDPAddrPort(b[:n], from)
		}
	}
}

func (c *call) listen() {
	b := make([]byte, 1<<16)
	for {
		n, _, err := c.conn.ReadFrom(b)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				c.t.Errorf("the association has ended: %v", err)
			}
			return
		}
		c.arrived(b[:n], func(p *passage) {
			if p.backs++; p.backs == 1 {
				p.back = c.now()
			}
		})
	}
}

func (c *call) arrived(b []byte, record func(*passage)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) != c.rhythm.Size {
		c.t.Errorf("a datagram of %d bytes came, %d were sent", len(b), c.rhythm.Size)
		return
	}
	number := binary.BigEndian.Uint64(b)
	if number >= uint64(len(c.passages)) {
		c.t.Errorf("datagram %d came, which was never sent", number)
		return
	}
	record(&c.passages[number])
}

// flowing waits until ten consecutive datagrams that were sent from now on have come back,
// and returns the time until the first of them.
func (c *call) flowing(within time.Duration) time.Duration {
	c.t.Helper()
	from := c.now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		c.mu.Lock()
		run := 0
		for i := len(c.passages) - 1; i >= 0 && c.passages[i].sent >= from; i-- {
			if c.passages[i].backs == 0 && run == 0 {
				continue // on its way
			}
			if c.passages[i].backs == 0 {
				run = 0
				continue
			}
			if run++; run == 10 {
				first := c.passages[i].back
				c.mu.Unlock()
				return first
			}
		}
		c.mu.Unlock()
		if c.now()-from > within {
			c.t.Fatalf("no ten datagrams in a row come back within %v", within)
		}
	}
}

// Stop ends the call once outstanding datagrams have had time to arrive.
func (c *call) Stop() {
	c.t.Helper()
	c.stop()
	during(500 * time.Millisecond)
	c.conn.Close()
	c.target.Close()
	c.wg.Wait()
}

// figures summarizes the datagrams that were sent in an interval.
type figures struct {
	Sent, Lost    int           // on the way up or down
	LostUp        int           // on the way up
	Twice         int           // that arrived more than once, at either end
	Gap           time.Duration // the longest time without one that came back
	P50, P99, Max time.Duration // round trips
	Up50, Up99    time.Duration // one way
	Late          time.Duration // the largest delay of the sender
}

func (f figures) String() string {
	return fmt.Sprintf("gap %v; of %d datagrams %d lost (%d on the way up), %d twice; RTT p50 %v, p99 %v, most %v; sent up to %v late",
		f.Gap.Round(time.Millisecond), f.Sent, f.Lost, f.LostUp, f.Twice, tenths(f.P50), tenths(f.P99), tenths(f.Max), tenths(f.Late))
}

// busyMachine is the delay of the sender from which on the machine is too busy: the tunnel
// drops datagrams of that age, as it should.
const busyMachine = 100 * time.Millisecond

// fault fails the test, unless the machine is too busy.
func (c *call) fault(f figures, format string, args ...any) {
	c.t.Helper()
	what := fmt.Sprintf(format, args...) + ": " + f.String()
	if f.Late > busyMachine {
		c.t.Log("the machine is too busy to tell: " + what)
		return
	}
	c.t.Error(what)
}

func tenths(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// between returns the figures of the datagrams sent from one time to another.
func (c *call) between(from, to time.Duration) (f figures) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rtts, ups []time.Duration
	backs := []time.Duration{from, to}
	for number, p := range c.passages {
		if p.back > from && p.back < to {
			backs = append(backs, p.back)
		}
		if p.sent < from || p.sent >= to {
			continue
		}
		f.Sent++
		f.Late = max(f.Late, p.sent-time.Duration(number)*c.rhythm.Every)
		if p.heards == 0 {
			f.LostUp++
		} else {
			ups = append(ups, p.heard-p.sent)
		}
		if p.backs == 0 {
			f.Lost++
		} else {
			rtts = append(rtts, p.back-p.sent)
		}
		if p.heards > 1 || p.backs > 1 {
			f.Twice++
		}
	}
	slices.Sort(backs)
	for i := range backs[1:] {
		f.Gap = max(f.Gap, backs[i+1]-backs[i])
	}
	f.P50, f.P99, f.Max = percentile(rtts, 50), percentile(rtts, 99), percentile(rtts, 100)
	f.Up50, f.Up99 = percentile(ups, 50), percentile(ups, 99)
	return f
}

// percentile sorts its argument.
func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[(len(d)-1)*p/100]
}

// seenAs is who the target has heard, in turn.
func (c *call) seenAs() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.egress)
}

// firstBack is when the first datagram of all had come back.
func (c *call) firstBack() (first time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.passages {
		if p.backs > 0 && (first == 0 || p.back < first) {
			first = p.back
		}
	}
	return first
}

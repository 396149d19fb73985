//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// newNet makes a network, or skips the test.
func newNet(t *testing.T, cfg Config) *Net {
	t.Helper()
	if err := Missing(); err != nil {
		if os.Getenv("WMPROXY_TEST_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return New(t, cfg)
}

// listen opens a UDP socket on a host.
func listen(t *testing.T, h *Host, addr string) (c *net.UDPConn) {
	t.Helper()
	err := h.In(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// line is a socket at home and an echo at the targets that records its sources.
type line struct {
	t     *testing.T
	c     *net.UDPConn
	echo  *net.UDPAddr
	began time.Time

	mu    sync.Mutex
	heard []netip.AddrPort // sources, in the order of their first datagrams
}

func newLine(t *testing.T, n *Net) *line {
	t.Helper()
	echo := listen(t, n.Targets, "0.0.0.0:7")
	l := &line{t: t, c: listen(t, n.Home, "0.0.0.0:0"), echo: net.UDPAddrFromAddrPort(netip.AddrPortFrom(TargetAddr(), 7)), began: time.Now()}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2000)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			l.mu.Lock()
			if !slices.Contains(l.heard, from) {
				l.heard = append(l.heard, from)
			}
			l.mu.Unlock()
			_, _ = echo.WriteToUDPAddrPort(b[:n], from)
		}
	})
	t.Cleanup(func() {
		echo.Close()
		wg.Wait()
	})
	return l
}

// burst sends datagrams with a pause after each and returns the numbers of those that came
// back, in their order, and the median of their round trips.
func (l *line) burst(count, size int, pause time.Duration) (order []int, median time.Duration) {
	l.t.Helper()
	const quiet = 300 * time.Millisecond // the wait for the next datagram
	var rtts []time.Duration
	more := func() {
		if err := l.c.SetReadDeadline(time.Now().Add(quiet)); err != nil {
			l.t.Error(err)
		}
	}
	more()
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 2000)
		for len(order) < count {
			n, err := l.c.Read(b)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					l.t.Error(err)
				}
				return
			}
			more()
			if n != size {
				l.t.Errorf("%d bytes came back of %d", n, size)
			}
			order = append(order, int(binary.BigEndian.Uint32(b)))
			rtts = append(rtts, time.Since(l.began)-time.Duration(binary.BigEndian.Uint64(b[4:])))
		}
	})
	for i := range count {
		b := binary.BigEndian.AppendUint32(make([]byte, 0, size), uint32(i))
		b = binary.BigEndian.AppendUint64(b, uint64(time.Since(l.began)))
		if _, err := l.c.WriteTo(b[:size], l.echo); err != nil {
			l.t.Log(err) // fails if the link is down
		}
		time.Sleep(pause) // the pause makes the rate
		more()
	}
	wg.Wait()
	if len(rtts) > 0 {
		slices.Sort(rtts)
		median = rtts[len(rtts)/2]
	}
	return order, median
}

// passes checks that the next datagrams come back, or that none does.
func (l *line) passes(when string, want bool) {
	l.t.Helper()
	if order, _ := l.burst(5, 100, 0); (len(order) == 5) != want || (len(order) == 0) == want {
		l.t.Errorf("%s %d of 5 datagrams came back", when, len(order))
	}
}

func TestDroppedPacketsAreCounted(t *testing.T) {
	n := newNet(t, Config{})
	l := newLine(t, n)
	l.passes("at first", true)

	n.Drop([]Direction{Up}, UDP, Share(0.3))
	before := n.Counts(Up, UDP)
	const sent = 2000
	order, _ := l.burst(sent, 200, 100*time.Microsecond)
	after := n.Counts(Up, UDP)
	dropped := after.Dropped - before.Dropped
	t.Logf("%d of %d came back, %d were dropped", len(order), sent, dropped)
	if after.Seen-before.Seen != sent || len(order)+dropped != sent {
		t.Errorf("%d seen, %d dropped, %d came back of %d", after.Seen-before.Seen, dropped, len(order), sent)
	}
	if dropped < sent*25/100 || dropped > sent*35/100 {
		t.Errorf("%d of %d dropped, want 30 %%", dropped, sent)
	}
	if got := n.Counts(Down, UDP); got.Dropped != 0 {
		t.Errorf("%d were dropped on the way down", got.Dropped)
	}

	n.Drop([]Direction{Down}, UDP, Above(1000))
	n.Drop([]Direction{Up}, UDP, None)
	l.passes("below the size", true)
	if order, _ := l.burst(5, 1000, 0); len(order) != 0 {
		t.Errorf("%d of 5 too large datagrams came back", len(order))
	}
	n.Mend()
	if order, _ := l.burst(5, 1000, 0); len(order) != 5 {
		t.Errorf("%d of 5 large datagrams came back after Mend", len(order))
	}
}

func TestLinksFailAndRecover(t *testing.T) {
	n := newNet(t, Config{Servers: 2})
	l := newLine(t, n)
	for _, test := range []struct {
		name    string
		go_, on func()
	}{
		{"silence", n.Cut, n.Mend},
		{"home's link", func() { n.Unplug(n.Home) }, func() { n.Plug(n.Home) }},
		{"the targets' link", func() { n.Unplug(n.Targets) }, func() { n.Plug(n.Targets) }},
	} {
		test.go_()
		l.passes("without "+test.name, false)
		test.on()
		l.passes("after "+test.name, true)
	}
	for i := range n.Servers {
		c := listen(t, n.Servers[i], netip.AddrPortFrom(ServerAddr(i), 9).String())
		if _, err := l.c.WriteTo([]byte("x"), c.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.ReadFrom(make([]byte, 1)); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
	}
}

func TestLostMappingAndMoveChangePort(t *testing.T) {
	n := newNet(t, Config{})
	l := newLine(t, n)
	l.passes("at first", true)
	n.ForgetNAT()
	l.passes("after the NAT forgot", true)
	n.Move(9)
	l.passes("from another address", true)
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("seen as %v", l.heard)
	if len(l.heard) != 3 {
		t.Errorf("seen as %v, want three ports", l.heard)
	}
	for _, from := range l.heard {
		if router := TargetAddr().Prev(); from.Addr() != router {
			t.Errorf("seen as %v, which is not the router %v", from, router)
		}
	}
}

func TestLinkHasDelay(t *testing.T) {
	const fixed = 20 * time.Millisecond
	for _, test := range []struct {
		name    string
		path    Path
		ordered bool
	}{
		{"fixed", Path{Delay: fixed}, true},
		{"with jitter", Path{Delay: fixed, Jitter: fixed}, true},
		{"with jitter that reorders", Path{Delay: fixed, Jitter: fixed, Reorder: true}, false},
	} {
		n := newNet(t, Config{Path: Symmetric(test.path)})
		l := newLine(t, n)
		order, rtt := l.burst(200, 100, time.Millisecond)
		t.Logf("%s: %d of 200 came back, half of them within %v", test.name, len(order), rtt)
		if least, most := 2*fixed+test.path.Jitter/2, 2*(fixed+test.path.Jitter)+5*time.Millisecond; rtt < least || rtt > most {
			t.Errorf("%s: median %v, want %v to %v", test.name, rtt, least, most)
		}
		if len(order) != 200 || slices.IsSorted(order) != test.ordered {
			t.Errorf("%s: %d of 200 came back, in order: %v", test.name, len(order), slices.IsSorted(order))
		}
	}
}

func TestLinkHasRate(t *testing.T) {
	n := newNet(t, Config{})
	l := newLine(t, n)
	n.Rate(Up, 1_000_000, 2*time.Second)
	const count, size = 200, 1000
	before, began := n.Wire(Up), time.Now()
	order, _ := l.burst(count, size, 0)
	took, bytes := time.Since(began), n.Wire(Up)-before
	rate := float64(bytes) * 8 / took.Seconds()
	t.Logf("%d bytes in %v, %.0f bit/s", bytes, took, rate)
	if len(order) != count || bytes < count*size || bytes > count*(size+60) {
		t.Errorf("%d of %d came back of %d bytes on the wire", len(order), count, bytes)
	}
	if rate > 1_150_000 || rate < 800_000 {
		t.Errorf("%.0f bit/s", rate)
	}
	n.Rate(Up, 0, 0)
	if order, took := l.burst(20, size, 0); len(order) != 20 || took > 50*time.Millisecond {
		t.Errorf("without a cap %d of 20 came back, half of them within %v", len(order), took)
	}
}

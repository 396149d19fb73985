//go:build linux

package netlab

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// overhead is the length of the IPv4 and UDP headers.
const overhead = 28

func TestPathHasItsDelay(t *testing.T) {
	const oneWay = 50 * time.Millisecond
	n := newNet(t, Config{Path: Symmetric(Path{Delay: oneWay, Rate: 50_000_000})})
	l := newLine(t, n)
	l.burst(1, 100, 0) // neighbours are found
	n.Restart(1)
	order, rtt := l.burst(200, 100, 5*time.Millisecond)
	up := n.Traffic()[Up]
	t.Logf("%d of 200 came back, half within %v; late by %v, %v, %v", len(order), rtt, up.Late50, up.Late99, up.LateMax)
	if len(order) != 200 || rtt < 2*oneWay || rtt > 2*oneWay+5*time.Millisecond {
		t.Errorf("%d of 200 came back, half within %v, want %v", len(order), rtt, 2*oneWay)
	}
	if up.Seen != 200 || up.Delivered != 200 || up.SeenBytes != 200*(100+overhead) {
		t.Errorf("up: %+v, want 200 delivered", up)
	}
}

// flood sends datagrams of a size from home at a rate and returns how many came to the targets.
func flood(t *testing.T, n *Net, size, bits int, lasts time.Duration) (sent, came int) {
	t.Helper()
	to, from := listen(t, n.Targets, "0.0.0.0:9"), listen(t, n.Home, "0.0.0.0:0")
	if err := to.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		next := uint32(0)
		for b := make([]byte, 2000); ; came++ {
			if _, _, err := to.ReadFromUDPAddrPort(b); err != nil {
				return
			}
			number := binary.BigEndian.Uint32(b)
			if number < next {
				t.Errorf("datagram %d comes after %d", number, next-1)
			}
			next = max(next, number+1)
		}
	})
	target := netip.AddrPortFrom(TargetAddr(), 9)
	began := time.Now()
	for b := make([]byte, size); ; {
		now := time.Since(began)
		if now >= lasts {
			break
		}
		for ; sent < int(now.Seconds()*float64(bits)/8/float64(size+overhead)); sent++ {
			binary.BigEndian.PutUint32(b, uint32(sent))
			if _, err := from.WriteToUDPAddrPort(b, target); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Millisecond) // the pause makes the rate
	}
	if err := to.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	return sent, came
}

func TestPathHasItsRateForUDP(t *testing.T) {
	const lasts = 2 * time.Second
	for _, test := range []struct {
		name  string
		path  Path
		bits  int
		share float64 // that is delivered
	}{
		{"below 100 Mbit/s", Path{Delay: 10 * time.Millisecond, Rate: 100_000_000, Queue: 8_000_000}, 80_000_000, 1},
		{"above 20 Mbit/s", Path{Delay: 10 * time.Millisecond, Rate: 20_000_000}, 40_000_000, 0.5},
		{"policed to 5 Mbit/s", Path{Rate: 50_000_000, Police: 5_000_000}, 10_000_000, 0.5},
		{"with loss", Path{Rate: 50_000_000, Loss: 0.1}, 20_000_000, 0.9},
		{"blocked", Path{BlockUDP: true}, 1_000_000, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNet(t, Config{Path: [2]Path{Up: test.path}})
			n.Restart(1)
			sent, came := flood(t, n, 1200, test.bits, lasts)
			up := n.Traffic()[Up]
			t.Logf("%d of %d came, %.3f: %+v", came, sent, float64(came)/float64(sent), up)
			if up.Seen != sent || up.Delivered+up.Dropped() != sent || up.Delivered != came {
				t.Errorf("%d sent, %d came: %+v", sent, came, up)
			}
			// A queue and a bucket hold 100 ms of two seconds; a sender that is held up leaves the link idle.
			if share := float64(came) / float64(sent); share < test.share-0.1 || share > test.share+0.05 {
				t.Errorf("%.3f came, want %.3f", share, test.share)
			}
		})
	}
}

func TestPathHasItsRateForTCP(t *testing.T) {
	const rate, lasts = 50_000_000, 4 * time.Second
	for _, congestion := range []string{"cubic", "bbr"} {
		t.Run(congestion, func(t *testing.T) {
			n := newNet(t, Config{Path: Symmetric(Path{Delay: 10 * time.Millisecond, Rate: rate})})
			n.Home.SetCongestion(congestion)
			bytes := stream(t, n, lasts)
			up := n.Traffic()[Up]
			got := float64(bytes) * 8 / lasts.Seconds()
			t.Logf("%.1f Mbit/s: %+v", got/1e6, up)
			if got > rate || got < 0.8*rate {
				t.Errorf("%.1f Mbit/s, want %.1f", got/1e6, rate/1e6)
			}
		})
	}
}

// stream fills a TCP connection from home and returns how much came to the targets.
func stream(t *testing.T, n *Net, lasts time.Duration) (bytes int64) {
	t.Helper()
	var ln net.Listener
	err := n.Targets.In(func() (err error) {
		ln, err = net.Listen("tcp4", "0.0.0.0:9")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		bytes, _ = io.Copy(io.Discard, c)
	})
	var c net.Conn
	err = n.Home.In(func() (err error) {
		c, err = new(net.Dialer).DialContext(context.Background(), "tcp4", netip.AddrPortFrom(TargetAddr(), 9).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetWriteDeadline(time.Now().Add(lasts)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 64<<10); err == nil; {
		_, err = c.Write(b)
	}
	_ = c.(*net.TCPConn).SetLinger(0) // drop the rest
	c.Close()
	wg.Wait()
	return bytes
}

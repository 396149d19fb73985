package udpio

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// benchWindow is how many datagrams are on their way at once: few enough that
// none is lost for want of buffer.
const benchWindow = 64

// benchSocket makes a native Socket for one end of a benchmark.
func benchSocket(b *testing.B, cfg Config) *Socket {
	b.Helper()
	cfg.ReadBuffer, cfg.WriteBuffer = 4<<20, 4<<20
	s, err := Listen(loopback4, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// counter lets a benchmark sleep until enough has come: one that looked again
// and again would keep the runtime from its poller, and measure that.
type counter struct {
	came, want atomic.Int64
	enough     chan struct{}
}

func newCounter() *counter { return &counter{enough: make(chan struct{}, 1)} }

func (c *counter) add(n int) {
	if came := c.came.Add(int64(n)); came == c.want.Load() {
		c.enough <- struct{}{}
	}
}

// BenchmarkOneWay moves b.N datagrams in windows of 64 and counts one as one
// operation, written and read.
func BenchmarkOneWay(b *testing.B) {
	for _, size := range []int{64, 1200} {
		b.Run(fmt.Sprintf("net.UDPConn/%d", size), func(b *testing.B) { oneWayNet(b, size) })
		for _, off := range []bool{true, false} {
			b.Run(fmt.Sprintf("Socket/%d/NoOffload=%v", size, off), func(b *testing.B) {
				from, to := benchSocket(b, Config{NoOffload: off}), benchSocket(b, Config{NoOffload: off})
				c := newCounter()
				to.Start(func(ms []Message) { c.add(len(ms)) })
				ms := make([]Message, benchWindow)
				for i := range ms {
					ms[i] = Message{Body: make([]byte, size), Addr: to.LocalAddr()}
				}
				b.ReportAllocs()
				for sent := 0; b.Loop(); sent++ {
					if sent%benchWindow == 0 {
						if sent > 0 {
							<-c.enough
						}
						c.want.Add(benchWindow)
						if n, err := from.Write(ms); n != len(ms) || err != nil {
							b.Fatal(n, err)
						}
					}
				}
			})
		}
	}
}

func oneWayNet(b *testing.B, size int) {
	from, to := benchConn(b), benchConn(b)
	c := newCounter()
	done := make(chan struct{})
	go func() { // ends when to is closed, and is waited for by done
		defer close(done)
		buf := make([]byte, 65535)
		for {
			if _, _, err := to.ReadFromUDPAddrPort(buf); err != nil {
				return
			}
			c.add(1)
		}
	}()
	body, addr := make([]byte, size), to.LocalAddr().(*net.UDPAddr).AddrPort()
	b.ReportAllocs()
	for sent := 0; b.Loop(); sent++ {
		if sent%benchWindow == 0 {
			if sent > 0 {
				<-c.enough
			}
			c.want.Add(benchWindow)
		}
		if _, err := from.WriteToUDPAddrPort(body, addr); err != nil {
			b.Fatal(err)
		}
	}
	_ = to.Close()
	<-done
}

func benchConn(b *testing.B) *net.UDPConn {
	b.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(loopback4))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadBuffer(4 << 20)
	return c
}

// BenchmarkPingPong answers in the callback: one operation is a round trip of
// one datagram, two wake-ups.
func BenchmarkPingPong(b *testing.B) {
	b.Run("Socket", func(b *testing.B) {
		a, z := benchSocket(b, Config{}), benchSocket(b, Config{})
		echo(z)
		pingPong(b, a)(z.LocalAddr())
	})
	b.Run("portable", func(b *testing.B) {
		a, z := new(portable), new(portable)
		for _, s := range []*portable{a, z} {
			if err := s.open(loopback4, Config{}); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = s.Close() })
		}
		echo(z)
		pingPong(b, a)(z.LocalAddr())
	})
}

// BenchmarkSpread sends one datagram to each of n sockets and waits for all: what
// a turn over many sockets costs.
func BenchmarkSpread(b *testing.B) {
	for _, n := range []int{8, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			from := benchSocket(b, Config{})
			c := newCounter()
			ms := make([]Message, n)
			for i := range ms {
				s := benchSocket(b, Config{})
				s.Start(func(ms []Message) { c.add(len(ms)) })
				ms[i] = Message{Body: make([]byte, 64), Addr: s.LocalAddr()}
			}
			b.ReportAllocs()
			sent := int64(0)
			for b.Loop() {
				sent += int64(n)
				c.want.Store(sent)
				_, _ = from.Write(ms)
				<-c.enough
			}
			b.ReportMetric(float64(b.Elapsed())/float64(time.Nanosecond)/float64(sent), "ns/datagram")
		})
	}
}

func echo(s socket) {
	s.Start(func(ms []Message) { _, _ = s.Write(ms) })
}

func pingPong(b *testing.B, s socket) func(to netip.AddrPort) {
	b.Helper()
	back := make(chan struct{}, 1)
	s.Start(func([]Message) { back <- struct{}{} })
	return func(to netip.AddrPort) {
		ms := []Message{{Body: make([]byte, 64), Addr: to}}
		for b.Loop() {
			_, _ = s.Write(ms)
			<-back
		}
	}
}

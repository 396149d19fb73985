package udpio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wmproxy/internal/testmain"
)

func TestMain(m *testing.M) { testmain.Run(m) }

// socket is what both paths have to be.
type socket interface {
	Start(func([]Message))
	Write([]Message) (int, error)
	LocalAddr() netip.AddrPort
	Close() error
	Wait()
}

type listener func(local netip.AddrPort, cfg Config) (socket, error)

// onBothPaths runs one test of the contract on each implementation.
func onBothPaths(t *testing.T, test func(t *testing.T, listen listener)) {
	t.Run("native", func(t *testing.T) {
		test(t, func(local netip.AddrPort, cfg Config) (socket, error) {
			s, err := Listen(local, cfg)
			if err != nil {
				return nil, err
			}
			return s, nil
		})
	})
	t.Run("portable", func(t *testing.T) {
		test(t, func(local netip.AddrPort, cfg Config) (socket, error) {
			s := new(portable)
			if err := s.open(local, cfg); err != nil {
				return nil, err
			}
			return s, nil
		})
	})
}

var (
	loopback4 = netip.MustParseAddrPort("127.0.0.1:0")
	loopback6 = netip.MustParseAddrPort("[::1]:0")
)

const patience = 10 * time.Second

func (listen listener) open(t testing.TB, local netip.AddrPort, cfg Config) socket {
	t.Helper()
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = 4 << 20
	}
	s, err := listen(local, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(); s.Wait() })
	return s
}

// collector keeps copies of what arrives.
type collector struct {
	mu    sync.Mutex
	got   [][]byte
	from  []netip.AddrPort
	sizes []int // of the batches
	came  chan struct{}
}

func collect(s socket) *collector {
	c := &collector{came: make(chan struct{}, 1)}
	s.Start(c.receive)
	return c
}

func (c *collector) receive(ms []Message) {
	c.mu.Lock()
	c.sizes = append(c.sizes, len(ms))
	for _, m := range ms {
		c.got = append(c.got, bytes.Clone(m.Body))
		c.from = append(c.from, m.Addr)
	}
	c.mu.Unlock()
	select {
	case c.came <- struct{}{}:
	default:
	}
}

// wait returns the payloads once there are n.
func (c *collector) wait(t testing.TB, n int) [][]byte {
	t.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		got := c.got
		c.mu.Unlock()
		if len(got) >= n {
			return got
		}
		select {
		case <-c.came:
		case <-timeout:
			t.Fatalf("%d of %d datagrams came", len(got), n)
		}
	}
}

func (c *collector) source(i int) netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.from[i]
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}
	return b
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatal(what)
		}
	}
}

func TestDatagramsOfEverySizePassBothWays(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		for _, local := range []netip.AddrPort{loopback4, loopback6} {
			for _, off := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/NoOffload=%v", local.Addr(), off), func(t *testing.T) {
					cfg := Config{NoOffload: off, WriteBuffer: 4 << 20}
					a, b := listen.open(t, local, cfg), listen.open(t, local, cfg)
					fromB, fromA := collect(a), collect(b)
					for i, size := range []int{0, 1, 512, 1472, 9000, MaxDatagram} {
						want := pattern(size, i)
						for _, way := range []struct {
							from, to socket
							got      *collector
						}{{a, b, fromA}, {b, a, fromB}} {
							// A head of a third shows that the pieces join.
							m := Message{Head: want[:size/3], Body: want[size/3:], Addr: way.to.LocalAddr()}
							if n, err := way.from.Write([]Message{m}); n != 1 || err != nil {
								t.Fatalf("size %d: Write = %d, %v", size, n, err)
							}
							got := way.got.wait(t, i+1)[i]
							if !bytes.Equal(got, want) {
								t.Fatalf("size %d came as %d bytes, or changed", size, len(got))
							}
							if from := way.got.source(i); from != way.from.LocalAddr() {
								t.Fatalf("source %v, want %v", from, way.from.LocalAddr())
							}
						}
					}
				})
			}
		}
	})
}

func TestMixedRunsArriveUnchangedAndInOrder(t *testing.T) {
	sizes := []int{
		100, 100, 100, 40, // a run and its tail
		0, 0, // empty ones never join a run
		1200, 1200, 1200, 1300, // larger than the run: a run of its own
		64, 64, 64, 64, 64, 64, 0, 64, 1,
		9000, 9000, 9000, 9000, 9000, 9000, 9000, 8999, // more than 65,507 together
	}
	for range 150 {
		sizes = append(sizes, 33) // more than 64 segments, more than one sendmmsg
	}
	onBothPaths(t, func(t *testing.T, listen listener) {
		from := listen.open(t, loopback4, Config{WriteBuffer: 4 << 20})
		var to [2]socket
		var got [2]*collector
		for i := range to {
			to[i] = listen.open(t, loopback4, Config{})
			got[i] = collect(to[i])
		}
		var ms []Message
		var want [2][][]byte
		for i, size := range sizes {
			dest := i / 5 % 2 // runs are also ended by a change of destination
			p := pattern(size, i)
			ms = append(ms, Message{Head: p[:min(size, i%4)], Body: p[min(size, i%4):], Addr: to[dest].LocalAddr()})
			want[dest] = append(want[dest], p)
		}
		for round := 1; round <= 3; round++ {
			if n, err := from.Write(ms); n != len(ms) || err != nil {
				t.Fatalf("Write = %d of %d, %v", n, len(ms), err)
			}
			for d := range to {
				all := got[d].wait(t, round*len(want[d]))[(round-1)*len(want[d]):]
				for i := range want[d] {
					if !bytes.Equal(all[i], want[d][i]) {
						t.Fatalf("round %d, destination %d, datagram %d: %d bytes, want %d", round, d, i, len(all[i]), len(want[d][i]))
					}
				}
			}
		}
	})
}

func TestOrderWithinAFlowHolds(t *testing.T) {
	const batches, batch = 300, 50
	onBothPaths(t, func(t *testing.T, listen listener) {
		from, to := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
		var seen atomic.Int64
		var wrong atomic.Int64
		to.Start(func(ms []Message) {
			for _, m := range ms {
				if int64(binary.BigEndian.Uint32(m.Body)) != seen.Add(1)-1 {
					wrong.Add(1)
				}
			}
		})
		ms := make([]Message, batch)
		for b := range batches {
			for i := range ms {
				body := make([]byte, 4+i%7)
				binary.BigEndian.PutUint32(body, uint32(b*batch+i))
				ms[i] = Message{Body: body, Addr: to.LocalAddr()}
			}
			if n, err := from.Write(ms); n != batch || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			if b%10 == 9 { // within the receiver's buffer
				eventually(t, "datagrams are missing", func() bool { return seen.Load() == int64((b+1)*batch) })
			}
		}
		if wrong.Load() != 0 {
			t.Fatalf("%d datagrams out of order", wrong.Load())
		}
	})
}

func TestUnsendableDatagramDoesNotStopOthers(t *testing.T) {
	big := make([]byte, MaxDatagram+1)
	onBothPaths(t, func(t *testing.T, listen listener) {
		for _, bad := range []struct {
			name string
			m    Message
			want error
		}{
			{"too large", Message{Body: big, Addr: netip.MustParseAddrPort("127.0.0.1:9")}, syscall.EMSGSIZE},
			{"another family", Message{Body: big[:5], Addr: netip.MustParseAddrPort("[::1]:9")}, syscall.EAFNOSUPPORT},
			{"no address", Message{Body: big[:5], Addr: netip.AddrPortFrom(netip.Addr{}, 9)}, syscall.EAFNOSUPPORT},
			{"port 0", Message{Body: big[:5], Addr: netip.MustParseAddrPort("127.0.0.1:0")}, syscall.EINVAL},
			{"broadcast", Message{Body: big[:5], Addr: netip.MustParseAddrPort("127.255.255.255:9")}, syscall.EACCES},
		} {
			t.Run(bad.name, func(t *testing.T) {
				from, to := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
				got := collect(to)
				good := func(s string) Message { return Message{Body: []byte(s), Addr: to.LocalAddr()} }
				n, err := from.Write([]Message{good("one"), good("two"), bad.m, bad.m, good("three"), bad.m})
				if n != 3 || err == nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
				if !errors.Is(err, bad.want) {
					t.Fatalf("error %v, want %v", err, bad.want)
				}
				if all := bytes.Join(got.wait(t, 3), []byte(" ")); string(all) != "one two three" {
					t.Fatalf("got %q", all)
				}
			})
		}
	})
}

func TestAClosedPortNeitherEndsReadingNorFailsAWrite(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		socket := listen.open(t, loopback4, Config{})
		gone := socket.LocalAddr()
		if err := socket.Close(); err != nil {
			t.Fatal(err)
		}
		a, b := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
		got := collect(a)
		for i := range 20 {
			if n, err := a.Write([]Message{{Body: []byte("x"), Addr: gone}}); n != 1 || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			if n, err := b.Write([]Message{{Body: []byte("y"), Addr: a.LocalAddr()}}); n != 1 || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			got.wait(t, i+1)
		}
	})
}

func TestTheIPv6WildcardCarriesIPv4Unmapped(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		for _, local := range []netip.AddrPort{{}, netip.MustParseAddrPort("[::]:0")} {
			dual := listen.open(t, local, Config{})
			if !dual.LocalAddr().Addr().Is6() {
				t.Skip("no IPv6 here")
			}
			atDual := collect(dual)
			for i, peer := range []socket{listen.open(t, loopback4, Config{}), listen.open(t, loopback6, Config{})} {
				got := collect(peer)
				to := netip.AddrPortFrom(peer.LocalAddr().Addr(), dual.LocalAddr().Port())
				if n, err := peer.Write([]Message{{Body: []byte("to"), Addr: to}}); n != 1 || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
				atDual.wait(t, i+1)
				if atDual.source(i) != peer.LocalAddr() {
					t.Fatalf("source %v, want %v", atDual.source(i), peer.LocalAddr())
				}
				if n, err := dual.Write([]Message{{Body: []byte("back"), Addr: atDual.source(i)}}); n != 1 || err != nil {
					t.Fatalf("Write = %d, %v", n, err)
				}
				got.wait(t, 1)
			}
		}
	})
}

func TestWaitBlocksUntilReceiveReturns(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		from, to := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
		entered, release := make(chan struct{}), make(chan struct{})
		var calls, running atomic.Int32
		to.Start(func([]Message) {
			running.Add(1)
			if calls.Add(1) == 1 {
				close(entered)
				<-release
			}
			running.Add(-1)
		})
		for range 3 {
			_, _ = from.Write([]Message{{Body: []byte("x"), Addr: to.LocalAddr()}})
		}
		<-entered
		closed := make(chan int32)
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = to.Close()
			to.Wait()
			closed <- running.Load()
		})
		// Writes meet a closed socket while Wait still blocks.
		eventually(t, "the socket stays open", func() bool {
			_, err := to.Write([]Message{{Body: []byte("x"), Addr: from.LocalAddr()}})
			return errors.Is(err, net.ErrClosed)
		})
		select {
		case <-closed:
			t.Fatal("Wait returned while the callback ran")
		default:
		}
		close(release)
		if n := <-closed; n != 0 {
			t.Fatal("Wait returned while the callback ran")
		}
		wg.Wait()
		was := calls.Load()
		for range 3 {
			_, _ = from.Write([]Message{{Body: []byte("x"), Addr: to.LocalAddr()}})
		}
		runtime.Gosched()
		if calls.Load() != was {
			t.Fatal("called back after Wait")
		}
		if err := to.Close(); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("second Close: %v", err)
		}
	})
}

func TestSocketsAreClosedFromACallback(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		from := listen.open(t, loopback4, Config{})
		for range 50 {
			a, b := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
			done := make(chan struct{})
			var calls atomic.Int32
			b.Start(func([]Message) {})
			a.Start(func([]Message) {
				if calls.Add(1) == 1 {
					_ = a.Close()
					_ = b.Close()
					close(done)
				}
			})
			x := Message{Body: []byte("x"), Addr: a.LocalAddr()}
			_, _ = from.Write([]Message{x, {Body: []byte("y"), Addr: b.LocalAddr()}, x, x})
			<-done
			if calls.Load() != 1 {
				t.Fatal("called back after Close")
			}
		}
	})
}

func TestTheLastSocketMayBeClosedFromItsCallback(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		for range 50 {
			s := listen.open(t, loopback4, Config{})
			done := make(chan struct{})
			s.Start(func([]Message) {
				_ = s.Close()
				close(done)
			})
			_, _ = s.Write([]Message{{Body: []byte("x"), Addr: s.LocalAddr()}})
			<-done
		}
	})
}

func TestCloseMeetsWritersAndReadersSafely(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		for range 30 {
			a, b := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
			a.Start(func([]Message) {})
			b.Start(func([]Message) {})
			var wg sync.WaitGroup
			writing := make(chan struct{}, 4)
			for i, s := range []socket{a, b, a, b} {
				to := []socket{b, a}[i%2].LocalAddr()
				wg.Go(func() {
					ms := slices.Repeat([]Message{{Body: []byte("0123456789"), Addr: to}}, 40)
					for n := 0; ; n++ {
						if _, err := s.Write(ms); errors.Is(err, net.ErrClosed) {
							return
						}
						if n == 3 {
							writing <- struct{}{}
						}
					}
				})
			}
			for range 4 {
				<-writing
			}
			for _, s := range []socket{a, b} {
				wg.Go(func() { _ = s.Close() })
			}
			wg.Wait()
		}
	})
}

func TestEarlyDatagramsAreReadAfterStart(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		for range 20 {
			s, other := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
			flowing := collect(other)
			_, _ = s.Write([]Message{{Body: []byte("x"), Addr: s.LocalAddr()}, {Body: []byte("y"), Addr: other.LocalAddr()}})
			flowing.wait(t, 1) // the loop has had its turn
			collect(s).wait(t, 1)
		}
	})
}

func TestAFloodDoesNotStarveATrickle(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		flooded, quiet := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
		from, trickle := listen.open(t, loopback4, Config{}), listen.open(t, loopback4, Config{})
		var flood atomic.Int64
		flooded.Start(func(ms []Message) { flood.Add(int64(len(ms))) })
		got := collect(quiet)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			ms := slices.Repeat([]Message{{Body: make([]byte, 64), Addr: flooded.LocalAddr()}}, 64)
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = from.Write(ms)
				}
			}
		})
		for i := 0; i < 100 || flood.Load() < 1000; i++ {
			if n, err := trickle.Write([]Message{{Body: []byte("x"), Addr: quiet.LocalAddr()}}); n != 1 || err != nil {
				t.Errorf("Write = %d, %v", n, err)
			}
			got.wait(t, i+1)
		}
		close(stop)
		wg.Wait()
	})
}

func TestThousandsOfSocketsLeaveNothingBehind(t *testing.T) {
	onBothPaths(t, func(t *testing.T, listen listener) {
		goroutines, files := runtime.NumGoroutine(), descriptors(t)
		for range 10 {
			var all []socket
			var came atomic.Int64
			for range 200 {
				s, err := listen(loopback4, Config{})
				if err != nil {
					t.Fatal(err)
				}
				s.Start(func(ms []Message) { came.Add(int64(len(ms))) })
				_, _ = s.Write([]Message{{Body: []byte("x"), Addr: s.LocalAddr()}})
				all = append(all, s)
			}
			eventually(t, "datagrams are missing", func() bool { return came.Load() == 200 })
			for _, s := range all {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		eventually(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= goroutines })
		if n := descriptors(t); n > files {
			t.Fatalf("%d descriptors, %d before", n, files)
		}
	})
}

func TestASocketReadsAgainAfterItHasBeenIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes several seconds")
	}
	onBothPaths(t, func(t *testing.T, listen listener) {
		t.Parallel()
		s := listen.open(t, loopback4, Config{})
		got := collect(s)
		for i := range 2 {
			_, _ = s.Write([]Message{{Body: []byte("x"), Addr: s.LocalAddr()}})
			got.wait(t, i+1)
			<-time.After(5 * time.Second)
		}
		_, _ = s.Write([]Message{{Body: []byte("x"), Addr: s.LocalAddr()}})
		got.wait(t, 3)
	})
}

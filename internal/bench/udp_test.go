package bench

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wmproxy/internal/config"
	"wmproxy/internal/standalone"
	"wmproxy/socks"
)

// target is an echo that counts the datagrams of the load.
type target struct {
	addr netip.AddrPort
	n    atomic.Int64
}

// listenTarget starts a target. It calls answer with the number of each datagram, from 1,
// and a function that sends the echo.
func listenTarget(t *testing.T, answer func(n int64, send func())) *target {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{addr: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			b := bytes.Clone(buf[:n])
			send := func() { _, _ = conn.WriteToUDPAddrPort(b, from) }
			if s, ok := readStamp(b); ok && s.sequence == 0 {
				send()
				continue
			}
			answer(tg.n.Add(1), send)
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return tg
}

func (tg *target) load(d time.Duration) UDPConfig {
	return UDPConfig{
		Common:       Common{Way: Way{Target: socks.AddrFrom(tg.addr)}, Duration: d, Timeout: 5 * time.Second},
		Associations: 1, Size: 64,
	}
}

func runUDP(t *testing.T, cfg UDPConfig) UDPResult {
	t.Helper()
	r, err := UDP(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLostDatagramsAreCounted(t *testing.T) {
	tg := listenTarget(t, func(n int64, send func()) {
		if n%10 != 0 {
			send()
		}
	})
	cfg := tg.load(300 * time.Millisecond)
	cfg.Rate, cfg.Timeout = 2000, 500*time.Millisecond
	r := runUDP(t, cfg)
	if want := tg.n.Load() / 10; r.Lost != want || r.Sent != tg.n.Load() || r.InTime != r.Sent-want {
		t.Errorf("%d sent, %d back, %d lost; the target got %d and dropped %d", r.Sent, r.InTime, r.Lost, tg.n.Load(), want)
	}
	if r.Duplicate != 0 || r.Reordered != 0 || r.Alien != 0 || r.Late != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestWarmupIsNotCounted(t *testing.T) {
	t.Parallel()
	tg := listenTarget(t, func(n int64, send func()) {
		if n > 20 {
			send()
		}
	})
	cfg := tg.load(300 * time.Millisecond)
	cfg.Rate, cfg.Warmup = 1000, 700*time.Millisecond
	began := false
	cfg.Began = func() { began = true }
	r, err := UDP(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !began || r.Lost != 0 || r.Sent == 0 || r.Sent > 301 {
		t.Errorf("%d of %d lost, began %v; want none of those sent in 0.3 s", r.Lost, r.Sent, began)
	}
}

func TestDuplicatesAreNotRoundTrips(t *testing.T) {
	tg := listenTarget(t, func(n int64, send func()) {
		send()
		if n%5 == 0 {
			send()
		}
	})
	cfg := tg.load(200 * time.Millisecond)
	cfg.Rate = 1000
	r := runUDP(t, cfg)
	if r.Duplicate != tg.n.Load()/5 || r.InTime != r.Sent || r.Lost != 0 {
		t.Errorf("%d sent, %d back, %d lost, %d duplicates", r.Sent, r.InTime, r.Lost, r.Duplicate)
	}
}

func TestReorderingIsCounted(t *testing.T) {
	var held func()
	tg := listenTarget(t, func(n int64, send func()) {
		switch n % 4 {
		case 1:
			held = send // until after the next
		case 2:
			send()
			held()
		default:
			send()
		}
	})
	cfg := tg.load(200 * time.Millisecond)
	cfg.Rate, cfg.Timeout = 2000, 500*time.Millisecond
	r := runUDP(t, cfg)
	if got := tg.n.Load(); r.Reordered != got/4 && r.Reordered != got/4+1 || r.Lost > 1 { // the last may not have been sent
		t.Errorf("%d sent, %d lost, %d reordered", r.Sent, r.Lost, r.Reordered)
	}
}

func TestLossDoesNotStallTheWindow(t *testing.T) {
	tg := listenTarget(t, func(n int64, send func()) {
		if n > 2 { // both slots lose their first
			send()
		}
	})
	cfg := tg.load(700 * time.Millisecond)
	cfg.Window, cfg.Timeout = 2, 300*time.Millisecond
	r := runUDP(t, cfg)
	if r.Lost != 2 || r.InTime < 10 || r.Sent != r.InTime+2 {
		t.Errorf("%d sent, %d back, %d lost", r.Sent, r.InTime, r.Lost)
	}
}

func TestWindowIsNotExceeded(t *testing.T) {
	var flying, most atomic.Int64
	var mu sync.Mutex
	var waiting []func()
	tg := listenTarget(t, func(n int64, send func()) {
		most.Store(max(most.Load(), flying.Add(1)))
		mu.Lock()
		defer mu.Unlock()
		if waiting = append(waiting, send); len(waiting) == 8 {
			for _, send := range waiting {
				flying.Add(-1)
				send()
			}
			waiting = nil
		}
	})
	cfg := tg.load(100 * time.Millisecond)
	cfg.Window = 8
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := UDP(ctx, cfg) // interrupted, so that it does not wait for the waiting ones
	if err != nil {
		t.Fatal(err)
	}
	if most.Load() != 8 || r.InTime < 100 {
		t.Errorf("%d in flight, %d back", most.Load(), r.InTime)
	}
}

func TestReplyAfterTimeoutIsLateAndLost(t *testing.T) {
	held := make(chan func(), 100)
	tg := listenTarget(t, func(n int64, send func()) {
		if n == 1 {
			held <- send
			return
		}
		select {
		case late := <-held:
			late() // this datagram replaces it, so its timeout has passed
		default:
		}
		send()
	})
	cfg := tg.load(700 * time.Millisecond)
	cfg.Window, cfg.Timeout = 1, 300*time.Millisecond
	r := runUDP(t, cfg)
	if r.Late != 1 || r.Lost != 1 || r.Duplicate != 0 {
		t.Errorf("%d late, %d lost, %d duplicates", r.Late, r.Lost, r.Duplicate)
	}
	if r.RTT.Max > 300_000 {
		t.Errorf("a round trip took %v µs", r.RTT.Max)
	}
}

func TestSilentTargetIsAnError(t *testing.T) {
	t.Parallel()
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := (&target{addr: silent.LocalAddr().(*net.UDPAddr).AddrPort()}).load(time.Second)
	cfg.Window = 1
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := UDP(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestInterruptedLoadReturnsItsFigures(t *testing.T) {
	e := listenEcho(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r, err := UDP(ctx, UDPConfig{Common: Common{Way: Way{Target: socks.AddrFrom(e.Addr())}, Duration: time.Hour}, Associations: 2, Window: 4, Size: 64})
	if err != nil || !r.Interrupted || r.InTime == 0 || r.Lost != 0 || r.Seconds > 10 {
		t.Errorf("got %+v and %v", r, err)
	}
}

// startProxy runs a proxy in this process and returns its address.
func startProxy(t *testing.T) string {
	t.Helper()
	started := make(chan net.Addr, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		cfg := config.DefaultProxy()
		cfg.Entrance.Listen, cfg.Entrance.User, cfg.Entrance.Pass = "127.0.0.1:0", "u", "p"
		cfg.Exit.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		err := standalone.Run(ctx, standalone.Config{
			Proxy: cfg, Log: slog.New(slog.DiscardHandler),
			Started: func(a net.Addr) { started <- a },
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return (<-started).String()
}

func throughProxy(t *testing.T) Common {
	t.Helper()
	return Common{
		Way:      Way{Socks: startProxy(t), Username: "u", Password: "p", Target: socks.AddrFrom(listenEcho(t).Addr())},
		Duration: 200 * time.Millisecond,
	}
}

func TestLoadsPassAProxy(t *testing.T) {
	common := throughProxy(t)
	longer := common
	longer.Duration = time.Second // several times as long as a delay by others on the machine
	var printed bytes.Buffer
	t.Run("window", func(t *testing.T) {
		r := runUDP(t, UDPConfig{Common: longer, Associations: 4, Window: 8, Size: 200})
		if r.PerSecond <= 0 || r.InTime < 4*8 || r.Lost*100 > r.Sent || r.Ended != 0 || r.RTT.P50 <= 0 || r.RTT.P50 > r.RTT.P999 {
			t.Errorf("got %+v", r)
		}
		if err := r.Print(&printed); err != nil {
			t.Error(err)
		}
	})
	t.Run("rate", func(t *testing.T) {
		r := runUDP(t, UDPConfig{Common: longer, Associations: 3, Rate: 1000, Size: 160})
		if r.Sent+r.Skipped < 900 || r.Sent > 1001 || r.Lost != 0 {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("large", func(t *testing.T) {
		r := runUDP(t, UDPConfig{Common: common, Associations: 1, Window: 1, Size: MaxSize})
		if r.InTime == 0 {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("tcp", func(t *testing.T) {
		r, err := TCP(t.Context(), TCPConfig{Common: longer, Streams: 2, Up: true, Down: true})
		if err != nil || r.UpBytes < 1<<20 || r.DownBytes < 1<<20 || r.Broken != 0 {
			t.Errorf("got %+v and %v", r, err)
		}
		if err := r.Print(&printed); err != nil {
			t.Error(err)
		}
	})
	t.Run("churn", func(t *testing.T) {
		r, err := Churn(t.Context(), ChurnConfig{Common: longer, Workers: 4, Size: 64})
		if err != nil || r.Done < 2*4 || r.Failed != 0 || r.Life.P50 <= 0 {
			t.Errorf("got %+v and %v", r, err)
		}
		if err := r.Print(&printed); err != nil {
			t.Error(err)
		}
	})
	t.Run("hold", func(t *testing.T) {
		held := common
		held.Duration = 10 * time.Millisecond
		r, err := Hold(t.Context(), HoldConfig{Common: held, Associations: 50, Size: 64, Settle: 10 * time.Millisecond})
		if err != nil || r.Opened != 50 || r.First != 50 || r.Again != 50 || r.Ended != 0 {
			t.Errorf("got %+v and %v", r, err)
		}
		if err := r.Print(&printed); err != nil {
			t.Error(err)
		}
	})
	for _, want := range []string{"round trips/s", "Gbit/s", "associations/s", "answered once more", "RTT in ms over the run"} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("missing %q in the output", want)
		}
	}
}

func TestWrongPasswordIsAnErrorAtOnce(t *testing.T) {
	common := throughProxy(t)
	common.Password = "wrong"
	_, udp := UDP(t.Context(), UDPConfig{Common: common, Associations: 2, Window: 1, Size: 64})
	_, churn := Churn(t.Context(), ChurnConfig{Common: common, Workers: 1, Size: 64})
	_, hold := Hold(t.Context(), HoldConfig{Common: common, Associations: 2, Size: 64})
	_, tcp := TCP(t.Context(), TCPConfig{Common: common, Streams: 1, Up: true})
	for _, err := range []error{udp, churn, hold, tcp} {
		if !errors.Is(err, socks.ErrAuth) || !strings.Contains(err.Error(), "wmproxy test --socks") {
			t.Errorf("got %v", err)
		}
	}
}

func TestEndedAssociationIsCounted(t *testing.T) {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var controls []*net.TCPConn
	for i := range 4 {
		c, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		theirs, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		if i == 1 {
			_ = theirs.CloseWrite()
			// Give the end time to arrive.
			_, _ = c.Write([]byte("x"))
			_, _ = theirs.Read(make([]byte, 1))
		}
		controls = append(controls, c)
	}
	if n := hungUp(controls); n != 1 {
		t.Errorf("%d ended, want 1", n)
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wmproxy/internal/probe"
	"wmproxy/internal/testmain"
	"wmproxy/socks"
)

const (
	// atOnce is the number of associations that are open at a time.
	atOnce = 500

	// settling bounds the time until a process is as it was before.
	settling = 5 * time.Second

	// heapSlack is the heap that it may then have in addition, in percent.
	heapSlack = 5

	// bufferSlack bounds the growth of a carrier's buffers meanwhile, in bytes:
	// without busy streams they grow to fixed sizes (three of 32 KiB at TLS, one of 64 KiB; yamux's own of one frame) and stay.
	bufferSlack = 192 << 10

	// retryAfter is the time after which an unanswered datagram is sent again: of so
	// many at once, the test's own sockets lose some.
	retryAfter = 500 * time.Millisecond
)

// withDebug makes a process serve its counters.
var withDebug = []string{"--debug", "127.0.0.1:0"}

// withoutHold makes a server end sessions at once, for tests of the resources that it frees.
var withoutHold = append([]string{"--hold", "0s"}, withDebug...)

// holdings is the resources of a process.
type holdings struct {
	Goroutines  int    `json:"goroutines"`
	Descriptors int    `json:"descriptors"`
	Heap        uint64 `json:"heap_bytes"`
	Stacks      uint64 `json:"stack_bytes"`
	RSS         uint64 `json:"rss_bytes"`
}

func (h holdings) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d KiB heap, %d KiB stacks, %d MiB resident",
		h.Goroutines, h.Descriptors, h.Heap>>10, h.Stacks>>10, h.RSS>>20)
}

// holdingsNow returns the resources of a process that was started with withDebug, with or
// without garbage.
func holdingsNow(t testing.TB, p *process, garbage bool) (h holdings) {
	t.Helper()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		unable(t, "this system has no /proc to count descriptors in")
	}
	url := "http://" + p.WaitLog("debugging", message("debugging is listening")).String("address") + "/debug/runtime"
	if !garbage {
		url += "?gc=1"
	}
	client := &http.Client{Timeout: waitTimeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: p.dial}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&h); err != nil {
		t.Fatal(err)
	}
	return h
}

// lateDescriptors is the number of descriptors that a process opens when it first needs them and then
// keeps: the eventfd of tune.PollYield.
const lateDescriptors = 1

// settled waits up to bound until a process has no more resources than before, and returns
// the time that it took.
func settled(t testing.TB, p *process, before holdings, bound time.Duration) (after holdings, took time.Duration) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		after = holdingsNow(t, p, false)
		took = time.Since(began)
		if after.Goroutines <= before.Goroutines && after.Descriptors <= before.Descriptors+lateDescriptors &&
			after.Heap <= before.Heap+before.Heap*heapSlack/100+bufferSlack {
			return after, took
		}
		if took > bound {
			t.Errorf("%s after %v:\nbefore %v\nafter  %v", p.name, took, before, after)
			return after, took
		}
		<-tick.C
	}
}

// work is a task that must leave no resources behind. It calls meanwhile once everything is
// open and in use.
type work func(ctx context.Context, c *socks.Client, echo socks.Addr, meanwhile func()) error

// useOnce opens an association, sends a datagram through it until it comes back, and closes
// it.
func useOnce(ctx context.Context, c *socks.Client, echo socks.Addr, meanwhile func()) error {
	conn, err := c.Associate(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	payload := []byte("once")
	to := net.UDPAddrFromAddrPort(echo.AddrPort())
	for range int(waitTimeout / retryAfter) {
		if _, err := conn.WriteTo(payload, to); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(retryAfter)); err != nil {
			return err
		}
		if _, _, err = conn.ReadFrom(make([]byte, len(payload))); err == nil {
			meanwhile()
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return errors.New("no datagram came back")
}

// connectOnce moves a few bytes through a stream and closes it.
func connectOnce(ctx context.Context, c *socks.Client, echo socks.Addr, meanwhile func()) error {
	conn, err := c.Connect(ctx, echo)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(waitTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("once")); err != nil {
		return err
	}
	if _, err = io.ReadFull(conn, make([]byte, 4)); err == nil {
		meanwhile()
	}
	return err
}

// many does w n times, at most parallel at once, every second time through a client that ends
// its connections with a reset.
func many(t testing.TB, entry *socksProcess, echo socks.Addr, n, parallel int, w work, meanwhile func()) {
	t.Helper()
	clean, abrupt := entry.Socks(), entry.Socks()
	abrupt.Dialer = resetting
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(n) || failed.Load() > 0 {
					return
				}
				c := clean
				if i%2 == 0 {
					c = abrupt
				}
				if err := w(t.Context(), c, echo, meanwhile); err != nil && failed.Add(1) == 1 {
					t.Errorf("number %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// warmUp makes pools, tables and the runtime's free goroutines grow to their final size. It
// does w often, because a map with many insertions and deletions grows beyond its entries,
// and then n times at once, more than are open at a time later, because ends and beginnings
// overlap.
func warmUp(t testing.TB, entry *socksProcess, echo socks.Addr, n int, w work) {
	t.Helper()
	many(t, entry, echo, 5*n, n/2, w, func() {})
	var open atomic.Int64
	all := make(chan struct{})
	many(t, entry, echo, n, n, w, func() {
		if open.Add(1) == int64(n) {
			close(all)
		}
		select {
		case <-all:
		case <-time.After(waitTimeout): // another one has failed and reported it
		}
	})
}

// leavesNothing does w often and checks that both processes are as before afterwards.
func leavesNothing(t *testing.T, kind string, n, parallel int, w work) {
	t.Helper()
	tu := startOver(t, kind, withDebug, withDebug)
	echo := startEcho(t)
	warmUp(t, tu.Entry, echo, 2*parallel, w)
	processes := []*process{tu.Entry.process, tu.Server.process}
	var before []holdings
	for _, p := range processes {
		// Resources of the warm-up that are not freed yet would hide a leak.
		rested(t, p)
		before = append(before, holdingsNow(t, p, false))
	}
	began := time.Now()
	many(t, tu.Entry, echo, n, parallel, w, func() {})
	rate := float64(n) / time.Since(began).Seconds()
	for i, p := range processes {
		after, took := settled(t, p, before[i], settling)
		t.Logf("%s over %s after %d at %.0f/s:\nbefore %v\nafter  %v (%v later)", p.name, kind, n, rate, before[i], after, took.Round(time.Millisecond))
	}
}

// rested waits until a process's counts stay the same for a second.
func rested(t testing.TB, p *process) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last, since := holdings{}, time.Now()
	for began := time.Now(); time.Since(began) < waitTimeout; <-tick.C {
		h := holdingsNow(t, p, true)
		if h.Goroutines != last.Goroutines || h.Descriptors != last.Descriptors {
			last, since = h, time.Now()
		}
		if time.Since(since) > time.Second {
			return
		}
	}
	t.Fatalf("%s does not come to rest", p.name)
}

func TestKilledClientLeavesNothingAtServer(t *testing.T) {
	t.Parallel()
	const open = 200
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		t.Parallel() // a QUIC connection ends by its idle timeout
		bound := settling
		if kind == overQUIC {
			bound += quicSilence
		}
		s := startServer(t, withoutHold...)
		echo := startEcho(t)
		first := startClient(t, s.Link, "--transport", kind)
		warmUp(t, first, echo, 2*open, useOnce)
		first.Stop()
		rested(t, s.process)
		before := holdingsNow(t, s.process, false)

		c := startClient(t, s.Link, "--transport", kind)
		var wg sync.WaitGroup
		for range open {
			conn := associate(t, c.Socks())
			wg.Go(func() {
				if _, err := probe.NewPinger(conn, echo).Ping(4, waitTimeout); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		during := holdingsNow(t, s.process, false)
		if during.Descriptors < before.Descriptors+open {
			t.Errorf("%d associations: %v", open, during)
		}
		c.Kill()
		after, took := settled(t, s.process, before, bound)
		t.Logf("over %s:\nbefore %v\nwith %d associations %v\nafter  %v, %v after the kill", kind, before, open, during, after, took.Round(time.Millisecond))
	})
}

// With the race detector there are fewer over the second transport, because it is slow.
func TestTenThousandAssociationsLeaveNothing(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		n := 10_000
		if testmain.Race && kind == overYamux {
			n = 2000
		}
		leavesNothing(t, kind, n, atOnce, useOnce)
	})
}

func TestTwoThousandConnectsLeaveNothing(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		n := 2000
		if testmain.Race && kind == overQUIC {
			n = 500
		}
		leavesNothing(t, kind, n, 100, connectOnce)
	})
}

// quicSilence bounds the time until a QUIC connection without a peer has ended: 30 s of silence,
// which are checked every 10 s.
const quicSilence = 40 * time.Second

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
	"wmproxy/socks"
)

const (
	// atOnce is how many associations are open at a time.
	atOnce = 500

	// settling is how long a process may take to be as it was.
	settling = 5 * time.Second

	// heapSlack is how much more heap it may then have, in percent.
	heapSlack = 5

	// bufferSlack is how many bytes a carrier's buffers may have grown by meanwhile:
	// where no stream is busy they grow to fixed bounds (three of 32 KiB at TLS, one of 64 KiB; yamux's own of one frame) and stay.
	bufferSlack = 192 << 10

	// retryAfter is when an unanswered datagram is sent again: with so many at
	// once, some are lost on the way through the sockets of the test itself.
	retryAfter = 500 * time.Millisecond
)

// withDebug makes a process tell what it holds.
var withDebug = []string{"--debug", "127.0.0.1:0"}

// withoutHold is for servers of which it is looked at what they free, not what they hold.
var withoutHold = append([]string{"--hold", "0s"}, withDebug...)

// holdings is what a process says that it holds.
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

// holdingsNow asks a process that was started with withDebug; garbage says
// whether it may still count.
func holdingsNow(t testing.TB, p *process, garbage bool) (h holdings) {
	t.Helper()
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		unable(t, "this system has no /proc to count descriptors in")
	}
	url := "http://" + p.WaitLog("debugging", message("debugging is listening")).String("address") + "/debug/runtime"
	if !garbage {
		url += "?gc=1"
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: p.dial}}
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

// settled waits until a process is what it was before, within bound, and says how
// long that took.
func settled(t testing.TB, p *process, before holdings, bound time.Duration) (after holdings, took time.Duration) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		after = holdingsNow(t, p, false)
		took = time.Since(began)
		if after.Goroutines <= before.Goroutines && after.Descriptors <= before.Descriptors &&
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

// work is what is done often and has to leave nothing. It calls meanwhile once
// everything is open and in use.
type work func(ctx context.Context, c *socks.Client, echo socks.Addr, meanwhile func()) error

// useOnce opens an association, sends one datagram through it until it comes
// back, and closes it.
func useOnce(ctx context.Context, c *socks.Client, echo socks.Addr, meanwhile func()) error {
	conn, err := c.Associate(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	payload := []byte("once")
	to := net.UDPAddrFromAddrPort(echo.AddrPort())
	for range int(patience / retryAfter) {
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
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
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

// many does w n times, at most parallel at once, every second time through a
// client whose connections end with a reset.
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

// warmUp gives pools and tables, and what the runtime keeps of goroutines, the
// size that they have from then on: it does w often, because a map that entries
// come to and go from grows beyond what is in it at a time, and then n all at once,
// more than are open at a time later, because ends overlap with beginnings.
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
		case <-time.After(patience): // another one has failed, and says so
		}
	})
}

// leavesNothing does w often and checks that both processes are then as before.
func leavesNothing(t *testing.T, kind string, n, parallel int, w work) {
	t.Helper()
	tu := startOver(t, kind, withDebug, withDebug)
	echo := startEcho(t)
	warmUp(t, tu.Entry, echo, 2*parallel, w)
	processes := []*process{tu.Entry.process, tu.Server.process}
	var before []holdings
	for _, p := range processes {
		// What is still ending from the warm-up would excuse a leak.
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
	for began := time.Now(); time.Since(began) < patience; <-tick.C {
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
		t.Parallel() // QUIC has no end but silence
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
				if _, err := probe.NewPinger(conn, echo).Ping(4, patience); err != nil {
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

// The race detector takes its time, so it sees fewer over the carrier that is the
// second choice.
func TestTenThousandAssociationsLeaveNothing(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		n := 10_000
		if raceEnabled && kind == overYamux {
			n = 2000
		}
		leavesNothing(t, kind, n, atOnce, useOnce)
	})
}

func TestTwoThousandConnectsLeaveNothing(t *testing.T) {
	t.Parallel()
	overEach(t, []string{overQUIC, overYamux}, func(t *testing.T, kind string) {
		n := 2000
		if raceEnabled && kind == overQUIC {
			n = 500
		}
		leavesNothing(t, kind, n, 100, connectOnce)
	})
}

// quicSilence is how long it takes at most until a QUIC connection whose peer is
// gone has ended: 30 s without a word, which is looked at every 10 s.
const quicSilence = 40 * time.Second

package udpio

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// roundTrips has a neighbour send a byte there and back until stop, and returns how
// many times it did.
func roundTrips(t *testing.T, stop <-chan struct{}) func() int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		near.Close()
		t.Fatal(err)
	}
	trips := 0
	var neighbour sync.WaitGroup
	neighbour.Go(func() {
		defer far.Close()
		_, _ = io.Copy(far, far)
	})
	neighbour.Go(func() {
		defer near.Close()
		b := make([]byte, 1)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := near.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(near, b); err != nil {
				return
			}
			trips++
		}
	})
	return func() int { neighbour.Wait(); return trips }
}

// Time does not matter here, only whether the runtime asks its poller: how many
// breaths a neighbour's round trip takes while there is always something to read.
func TestReadersThatAlwaysFindSomethingShutOutNobody(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const breaths = 60
	stop := make(chan struct{})
	trips := roundTrips(t, stop)
	var mu sync.Mutex
	taken := 0
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return taken >= breaths
	}
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !enough() {
				if breath.due() {
					mu.Lock()
					taken++
					mu.Unlock()
				}
				runtime.Gosched() // what was read is dealt with
			}
		})
	}
	readers.Wait()
	close(stop)
	// A byte there and back wakes two.
	if n := trips(); n < breaths/4 {
		t.Errorf("%d round trips of a neighbour in %d breaths, want at least %d", n, breaths, breaths/4)
	}
}

func TestABreathIsNotDueWhereThePollerHasJustBeenAsked(t *testing.T) {
	var b breather
	b.noted()
	b.asked.Add(int64(time.Hour)) // whatever else this machine does now
	if b.due() {
		t.Error("one was taken")
	}
	b.asked.Add(-int64(time.Hour + 2*breathAfter))
	if !b.due() {
		t.Error("none was taken")
	}
	if since := int64(time.Since(clockStart)) - b.asked.Load(); since < 0 || since > int64(time.Minute) {
		t.Errorf("the poller was last asked %v ago", time.Duration(since))
	}
}

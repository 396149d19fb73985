package tune

import (
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestCanaryOfHeapFloorTakesNoMemory(t *testing.T) {
	raiseForTest(t)
	b := ballast.Load()[os4K:]
	vec := make([]byte, (len(b)+os4K-1)/os4K)
	at := uintptr(unsafe.Pointer(&b[0])) &^ (os4K - 1)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, at, uintptr(len(b)-os4K), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		t.Fatal(errno)
	}
	pages := 0
	for _, v := range vec {
		pages += int(v & 1)
	}
	if pages > len(vec)/8 {
		broken(t, HeapFloor, "%d of the ballast's %d pages take memory", pages, len(vec))
	}
}

const os4K = 4096

// While a goroutine is in a raw call no other may run on its processor: that is how the scheduler's not
// being told shows.
func TestCanaryOfRawCalls(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	alone := 0
	for range 20 { // the monitor thread interrupts a call now and then
		var ran atomic.Bool
		var other sync.WaitGroup
		other.Go(func() { ran.Store(true) })
		wait := unix.NsecToTimespec(int64(2 * time.Millisecond))
		_, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
		if errno == 0 && !ran.Load() {
			alone++
		}
		other.Wait()
	}
	if alone == 0 {
		broken(t, RawCalls, "another goroutine ran during each raw call")
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	var b [1]byte
	if _, errno := Syscall(unix.SYS_READ, uintptr(fds[0]), uintptr(unsafe.Pointer(&b)), 1, 0, 0, 0); errno != unix.EAGAIN {
		broken(t, RawCalls, "a read of an empty pipe returned %v", errno)
	}
}

// Time does not matter here, only whether the runtime asks its poller: how many yields a
// neighbour's round trip takes while the readers always find something.
func TestCanaryOfPollYield(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const yields = 60
	y := pollYielder{opened: true}
	if y.open(); y.event == nil {
		t.Fatal("there is no eventfd")
	}
	stop := make(chan struct{})
	trips := roundTrips(t, stop)
	var yielded atomic.Int64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for yielded.Load() < yields {
				if y.yieldIfDue() {
					yielded.Add(1)
				}
				runtime.Gosched()
			}
		})
	}
	group.Wait()
	close(stop)
	if n := trips(); n < yields/4 { // a byte there and back wakes two goroutines
		broken(t, PollYield, "%d round trips of a neighbour in %d yields, want at least %d", n, yields, yields/4)
	}
}

// roundTrips starts a neighbour that sends a byte there and back until stop is closed. The function returned
// waits for it and returns the number of round trips.
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

func TestReaderYieldsOnlyIfPollerWasNotAsked(t *testing.T) {
	var y pollYielder
	y.note()
	y.polled.Add(int64(time.Hour)) // however slow this machine is
	if y.yieldIfDue() {
		t.Error("yielded just after a poll")
	}
	y.polled.Add(-int64(time.Hour + 2*yieldInterval))
	if !y.yieldIfDue() {
		t.Error("did not yield long after a poll")
	}
	if since := int64(time.Since(clockStart)) - y.polled.Load(); since < 0 || since > int64(time.Minute) {
		t.Errorf("the yield was noted %v ago", time.Duration(since))
	}
}

//go:build linux

package netlab

import (
	"container/heap"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Delay is what a link adds to the time of a packet, each way.
type Delay struct {
	Fixed  time.Duration
	Jitter time.Duration // up to this much more, at random
	// Reorder lets a packet with little jitter pass one with much.
	Reorder bool
}

// maxWaiting bounds the packets that are under way in one direction.
const maxWaiting = 8192

// openTUN makes a TUN device in the namespace of the calling thread.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// joinSlowly makes a link between two hosts that takes its time: a TUN device on
// each and between them the test itself, since not every kernel has netem.
func joinSlowly(t testing.TB, a *Host, aName string, b *Host, bName string, d Delay) {
	t.Helper()
	var files [2]*os.File
	for i, end := range []struct {
		host *Host
		name string
	}{{a, aName}, {b, bName}} {
		err := end.host.In(func() (err error) {
			files[i], err = openTUN(end.name)
			return err
		})
		if err != nil {
			t.Fatalf("a TUN device on %s: %v", end.host.Name, err)
		}
	}
	var wg sync.WaitGroup
	ways := []*way{newWay(files[0], files[1], d), newWay(files[1], files[0], d)}
	for _, w := range ways {
		wg.Go(w.read)
		wg.Go(w.write)
	}
	t.Cleanup(func() {
		for i := range files {
			files[i].Close()
		}
		wg.Wait()
	})
}

// way is one direction of a slow link.
type way struct {
	from, to *os.File
	delay    Delay
	arrived  chan struct{} // has room for one: something is new in waiting
	ended    chan struct{}

	mu      sync.Mutex
	waiting packets
	number  uint64
	last    time.Time // when the latest of waiting is due
}

func newWay(from, to *os.File, d Delay) *way {
	return &way{from: from, to: to, delay: d, arrived: make(chan struct{}, 1), ended: make(chan struct{})}
}

type packet struct {
	due    time.Time
	number uint64 // keeps the order of those that are due together
	data   []byte
}

// packets is a heap, the first that is due on top.
type packets []packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if p[i].due.Equal(p[j].due) {
		return p[i].number < p[j].number
	}
	return p[i].due.Before(p[j].due)
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *packets) Push(x any)   { *p = append(*p, x.(packet)) }
func (p *packets) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	(*p)[last] = packet{}
	*p = (*p)[:last]
	return x
}

func (w *way) read() {
	defer close(w.ended)
	b := make([]byte, 1<<16)
	for {
		n, err := w.from.Read(b)
		if err != nil {
			return
		}
		now := time.Now()
		due := now.Add(w.delay.Fixed)
		if w.delay.Jitter > 0 {
			due = due.Add(rand.N(w.delay.Jitter))
		}
		w.mu.Lock()
		if !w.delay.Reorder && due.Before(w.last) {
			due = w.last
		}
		w.last = due
		if len(w.waiting) < maxWaiting {
			w.number++
			heap.Push(&w.waiting, packet{due, w.number, append([]byte(nil), b[:n]...)})
		}
		w.mu.Unlock()
		select {
		case w.arrived <- struct{}{}:
		default:
		}
	}
}

func (w *way) write() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		data, wait := w.next()
		if data != nil {
			_, _ = w.to.Write(data) // a device that is down takes none
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-w.arrived:
		case <-w.ended:
			return
		}
	}
}

// next takes the packet that is due, or says how long there will be none.
func (w *way) next() ([]byte, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(w.waiting[0].due); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&w.waiting).(packet).data, 0
}

package tune

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// yieldInterval is how long readers may find something without the runtime's poller
// being asked.
const yieldInterval = time.Millisecond

// pollYielder makes the runtime ask its poller. The runtime does so by itself only when nothing can
// run, or every 10 ms if its monitor thread is awake. Readers that always find something,
// with calls that the scheduler is not told of, would keep all others waiting for
// as long as that.
//
// It blocks on an eventfd that is already readable, which only the poller can report. All
// readers wait for that, other goroutines finish their work, nothing is left to run, and the runtime polls.
type pollYielder struct {
	polled atomic.Int64 // when the poller was last asked that we know of, in ns since clockStart

	mu     sync.Mutex // held while yielding
	opened bool
	event  syscall.RawConn // nil if there is none
	armed  bool            // the poller will report the event
	wait   func(fd uintptr) bool
}

var (
	clockStart = time.Now()
	readers    pollYielder
)

// YieldToPoller is called before each read that may find something. If the runtime is not known to have
// polled the network within yieldInterval, it makes it do so. With PollYield off it sleeps for a
// microsecond instead, which is not always enough.
func YieldToPoller() { readers.yieldIfDue() }

// NotePolled notes that the runtime has just polled the network: the caller was woken by that.
func NotePolled() { readers.note() }

func (y *pollYielder) note() { y.polled.Store(int64(time.Since(clockStart))) }

// yieldIfDue reports whether it has yielded.
func (y *pollYielder) yieldIfDue() bool {
	before := y.polled.Load()
	if int64(time.Since(clockStart))-before < int64(yieldInterval) {
		return false
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.polled.Load() != before {
		return false // another reader has yielded meanwhile
	}
	if !y.opened {
		y.opened = true
		if PollYield.On() {
			y.open()
		}
	}
	if y.event != nil {
		y.armed = false
		_ = y.event.Read(y.wait)
	} else {
		time.Sleep(time.Microsecond)
	}
	y.note()
	return true
}

// open makes the event, which stays for the process's life.
func (y *pollYielder) open() {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return
	}
	raw, err := os.NewFile(uintptr(fd), "eventfd").SyscallConn()
	if err != nil {
		return
	}
	y.event = raw
	one := uint64(1)
	// Read has reset the poller's earlier events when it calls this. Each write is
	// another event, whether or not the earlier ones were read.
	y.wait = func(fd uintptr) bool {
		if y.armed {
			return true
		}
		y.armed = true
		_, errno := Syscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one), 0, 0, 0)
		return errno != 0
	}
}

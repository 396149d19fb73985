package udpio

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// breathAfter is how long readers may find something without the runtime's poller
// being asked.
const breathAfter = time.Millisecond

// breath has the runtime ask its poller. It does so by itself only when nothing can
// run, or every 10 ms if its monitor thread is awake. Readers that always find something,
// with calls that the scheduler is not told of, would so keep all others waiting for
// as long as that.
//
// A breath is a wait for something that is there already, but of which only the poller
// can tell: all who read wait for it, what they have read is dealt with, nothing is
// left to run, and the poller is asked.
var breath breather

type breather struct {
	asked atomic.Int64 // when the poller was last asked that we know of, in ns since clockStart

	mu     sync.Mutex // held while a breath is taken
	opened bool
	event  syscall.RawConn // nil: there is none
	told   bool            // the poller will report the event
	wait   func(fd uintptr) bool
}

var clockStart = time.Now()

// noted says that the poller has just been asked: whoever calls was woken by it.
func (b *breather) noted() { b.asked.Store(int64(time.Since(clockStart))) }

// due comes before each read, which may find something. It takes a breath, and says so, where the
// poller is not known to have been asked for breathAfter.
func (b *breather) due() bool {
	if int64(time.Since(clockStart))-b.asked.Load() < int64(breathAfter) {
		return false
	}
	before := b.asked.Load()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.asked.Load() != before {
		return false // another took one meanwhile
	}
	b.take()
	b.noted()
	return true
}

func (b *breather) take() {
	if !b.opened {
		b.opened = true
		b.open()
	}
	if b.event == nil {
		time.Sleep(time.Microsecond) // may help
		return
	}
	b.told = false
	_ = b.event.Read(b.wait)
}

// open makes the event, which stays for the process's life.
func (b *breather) open() {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return
	}
	raw, err := os.NewFile(uintptr(fd), "eventfd").SyscallConn()
	if err != nil {
		return
	}
	b.event = raw
	one := uint64(1)
	// Read has told the poller to forget earlier events when it calls. Each write is
	// one more, whether or not somebody reads.
	b.wait = func(fd uintptr) bool {
		if b.told {
			return true
		}
		b.told = true
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
		return errno != 0
	}
}

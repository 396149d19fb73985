package udpio

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wmproxy/internal/tune"
)

const (
	maxLoops   = 4   // event loops of the process
	eventBatch = 128 // ready sockets that one epoll_wait reports
	// idleAfter is how long a loop keeps the memory of its buffers without
	// traffic: between one and two of these.
	idleAfter = 2 * time.Second
	// outlives is how long a loop waits for the next socket after its last: if they
	// come and go one at a time, starting a loop for each would be most of the work.
	outlives = 200 * time.Millisecond
)

// loops is the event loops of the process. There are none long after the last socket.
var loops struct {
	mu      sync.Mutex
	running [maxLoops]*loop
}

// loop is one epoll instance and the goroutine that reads all its sockets. The
// goroutine parks in the runtime's own poller, which watches the epoll
// descriptor, so that it costs no thread and wakes like any other read.
//
// Tried instead: a thread of its own that sleeps in epoll_wait. A ping-pong
// within the process took ten times as long (52 to 66 µs against 5), and about
// 190 µs when that thread rested in nanosleep after small turns.
//
// A round is: one look at epoll, one visit to each ready socket.
type loop struct {
	index   int
	file    *os.File // the epoll descriptor
	raw     syscall.RawConn
	epfd    int
	sockets int // guarded by loops.mu

	mu   sync.Mutex
	byFD []watched // guarded by mu

	// The rest belongs to the goroutine.
	serve   func(fd uintptr) bool
	found   int  // events of the last look
	many    bool // this round read more than one message
	events  [eventBatch]unix.EpollEvent
	ready   []watched // of this round
	more    []watched // not read empty in the last one
	in      reader
	words   [connRead]byte // the buffer of Conns
	used    bool           // since the idle timer was last set
	ticking bool           // the idle timer is set
}

// watched is visited by a loop when epoll has reported its descriptor. Both methods
// are called by the loop's goroutine.
type watched interface {
	// due notes events of epoll, and reports whether the visit has become due by them: not
	// if it was due already.
	due(events uint32) bool

	// visit reads, and reports whether there may be more.
	visit(l *loop) (more bool)
}

// processors is the number that the process started with; it may run on fewer while it is calm.
var processors = runtime.GOMAXPROCS(0)

// loopLimit is how many loops sockets are spread over.
func loopLimit() int {
	if n := processors; n > 2 {
		return min(maxLoops, n/2)
	}
	return 1
}

// join finds the loop with the fewest sockets, or starts one, and counts one
// socket more on it.
func join() (*loop, error) {
	loops.mu.Lock()
	defer loops.mu.Unlock()
	best := 0
	for i := range loopLimit() {
		l := loops.running[i]
		if l == nil {
			started, err := startLoop(i)
			if err != nil {
				return nil, err
			}
			loops.running[i] = started
			best = i
			break
		}
		if l.sockets < loops.running[best].sockets {
			best = i
		}
	}
	l := loops.running[best]
	l.sockets++
	return l, nil
}

// leave undoes join. Without a socket the loop ends soon.
func (l *loop) leave() {
	loops.mu.Lock()
	defer loops.mu.Unlock()
	if l.sockets--; l.sockets == 0 {
		_ = l.file.SetReadDeadline(time.Now().Add(outlives))
	}
}

func startLoop(index int) (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	// NewFile gives a non-blocking descriptor to the runtime's poller.
	file := os.NewFile(uintptr(fd), "epoll")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	l := &loop{index: index, file: file, raw: raw, epfd: fd}
	l.serve = func(fd uintptr) bool {
		tune.NotePolled()
		for l.look(fd) {
			l.round()
			l.pause()
			if !l.many {
				break
			}
		}
		return false
	}
	go l.run()
	return l, nil
}

// watch has epoll report events of fd to w, at the edge: once for each arrival.
func (l *loop) watch(fd int, w watched, events uint32) error {
	l.mu.Lock()
	for len(l.byFD) <= fd {
		l.byFD = append(l.byFD, nil)
	}
	l.byFD[fd] = w
	l.mu.Unlock()
	return l.control(unix.EPOLL_CTL_ADD, fd, events)
}

// again has epoll report fd once more if there is something to read.
func (l *loop) again(fd int) { _ = l.control(unix.EPOLL_CTL_MOD, fd, unix.EPOLLIN) }

func (l *loop) control(op, fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events | unix.EPOLLET, Fd: int32(fd)}
	return epollControl(l.epfd, op, fd, &ev)
}

// forget comes before the descriptor is closed and its number used again. An
// event that was already reported then meets nobody, or a newer socket that
// reads and finds nothing.
func (l *loop) forget(fd int) {
	l.mu.Lock()
	l.byFD[fd] = nil
	l.mu.Unlock()
}

// forgetOnly is forget for a descriptor that may be closed already, and in use by another socket.
func (l *loop) forgetOnly(fd int, w watched) {
	l.mu.Lock()
	if l.byFD[fd] == w {
		l.byFD[fd] = nil
	}
	l.mu.Unlock()
}

// run is the loop's goroutine. It ends when idle finds no sockets.
//
// It never comes out of a Read but for the timer: serve always asks for more, and
// Read then parks until the next edge, also one that came while serve was at work.
// Otherwise each Read would have to begin with a look that finds nothing.
func (l *loop) run() {
	defer l.file.Close()
	defer l.in.close()
	for errors.Is(l.raw.Read(l.serve), os.ErrDeadlineExceeded) {
		if l.unused() {
			return
		}
		l.idle()
	}
}

// look asks epoll for events and reports whether there is something to do.
func (l *loop) look(fd uintptr) bool {
	n, errno := tune.Syscall(unix.SYS_EPOLL_PWAIT, fd,
		uintptr(unsafe.Pointer(&l.events[0])), eventBatch, 0, 0, 0)
	l.found = 0
	if errno == 0 {
		l.found = int(n)
	}
	return l.found > 0 || len(l.more) > 0
}

// pause lets the goroutines run that the round woke. After a round with more than
// one message the loop then looks again, for later arrivals: the runtime asks
// its poller only when nothing else can run, or for tune.YieldToPoller, and a parked loop would
// wait for that while other goroutines are busy.
func (l *loop) pause() {
	tune.YieldToPoller()
	runtime.Gosched()
}

func (l *loop) round() {
	l.gather()
	l.more = l.more[:0]
	l.many = len(l.ready) > 1
	for i, s := range l.ready {
		l.ready[i] = nil
		if s.visit(l) {
			l.more = append(l.more, s)
			l.many = true
		}
	}
	l.ready = l.ready[:0]
	l.used = true
	if !l.ticking {
		l.tick()
	}
}

// gather makes ready of the sockets that epoll reported and those that were
// left over, each once; the latter last, so that they do not go first twice.
func (l *loop) gather() {
	l.mu.Lock()
	for i := range l.found {
		ev := &l.events[i]
		if s := l.byFD[ev.Fd]; s != nil && s.due(ev.Events) {
			l.ready = append(l.ready, s)
		}
	}
	l.mu.Unlock()
	for i, s := range l.more {
		l.more[i] = nil
		if s.due(0) {
			l.ready = append(l.ready, s)
		}
	}
}

func (l *loop) tick() {
	l.used = false
	l.ticking = l.setTimer(idleAfter)
}

// setTimer makes the timer call in d, or not at all (0); soon if there are no sockets.
func (l *loop) setTimer(d time.Duration) bool {
	loops.mu.Lock()
	defer loops.mu.Unlock()
	if l.sockets == 0 {
		d = outlives
	}
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	return l.file.SetReadDeadline(at) == nil
}

// unused reports whether there are no sockets, and takes the loop out of use if so.
func (l *loop) unused() bool {
	loops.mu.Lock()
	defer loops.mu.Unlock()
	if l.sockets > 0 {
		return false
	}
	loops.running[l.index] = nil
	return true
}

// idle is called by the timer. A timer that each round moved would cost more than
// one that finds, every two seconds, that there was traffic.
func (l *loop) idle() {
	if l.used {
		l.tick()
		return
	}
	l.ticking = false
	_ = l.setTimer(0)
	l.in.rest()
}

//go:build linux

package netlab

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// Descriptors of a forwarder's process.
const (
	ordersFD = iota
	answersFD
	_
	homeFD // the TUN devices
	routerFD
)

// forwarder passes packets between two TUN devices. It is one thread that waits for
// packets, orders and due packets, with a precision that Go's timers do not have.
type forwarder struct {
	began  time.Time
	lanes  [2]*lane
	orders []byte
	spent  time.Duration // CPU until the restart
}

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

// forward is the process of a forwarder. It ends when the orders do.
func forward() error {
	if os.Getenv(forwarderEnv) == starting {
		hurry()
		// All of Go's threads need it: begin again as a process that has it.
		return unix.Exec("/proc/self/exe", os.Args, []string{forwarderEnv + "=" + started})
	}
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP) // the parent ends it
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // packets are used again
	debug.SetMemoryLimit(1 << 30)
	for _, fd := range []int{ordersFD, homeFD, routerFD} {
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
	}
	f := &forwarder{began: time.Now()}
	for d := range f.lanes {
		f.lanes[d] = newLane(Path{}, uint64(d))
	}
	return f.run()
}

// hurry makes the system run this thread before others, and wake it in time. Without the
// privilege packets are later, which Traffic reports.
// It keeps to one processor: the kernel queues packets for the processor that they were
// written on, so that those from two could pass each other.
func hurry() {
	var all, one unix.CPUSet
	if unix.SchedGetaffinity(0, &all) == nil {
		for cpu := range runtime.NumCPU() {
			if all.IsSet(cpu) {
				one.Zero()
				one.Set(cpu)
			}
		}
		_ = unix.SchedSetaffinity(0, &one)
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	if unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0) != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, -20)
	}
}

func (f *forwarder) now() time.Duration { return time.Since(f.began) }

func (f *forwarder) run() error {
	woken := f.now()
	fds := []unix.PollFd{{Fd: ordersFD, Events: unix.POLLIN}, {Fd: homeFD, Events: unix.POLLIN}, {Fd: routerFD, Events: unix.POLLIN}}
	for {
		pause(woken + grain - f.now())
		if _, err := unix.Ppoll(fds, f.wait(), nil); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		woken = f.now()
		if fds[0].Revents != 0 {
			if done, err := f.obey(); done || err != nil {
				return err
			}
		}
		for d, from := range []int{homeFD, routerFD} {
			if fds[1+d].Revents != 0 {
				f.read(f.lanes[d], from)
			}
		}
		f.write(f.lanes[Up], routerFD)
		f.write(f.lanes[Down], homeFD)
	}
}

// grain is the least time between two wake-ups: in a virtual machine each costs some 50 µs of
// CPU. A packet that comes alone is not delayed.
const grain = 250 * time.Microsecond

func pause(d time.Duration) {
	if d > 0 {
		ts := unix.NsecToTimespec(int64(d))
		_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
	}
}

// wait returns the time until the next due packet, nil if there is none.
func (f *forwarder) wait() *unix.Timespec {
	at, ok := f.lanes[Up].next()
	if other, also := f.lanes[Down].next(); also && (!ok || other < at) {
		at, ok = other, true
	}
	if !ok {
		return nil
	}
	ts := unix.NsecToTimespec(int64(max(at-f.now(), 0)))
	return &ts
}

// maxReads bounds the packets that are read before due ones are written.
const maxReads = 64

func (f *forwarder) read(l *lane, from int) {
	for range maxReads {
		p := l.get()
		n, err := unix.Read(from, p.data[:])
		if err != nil || n < 20 {
			l.put(p)
			return
		}
		p.size = n
		if p.isMulticast() {
			l.put(p) // IPv6 router discovery, which has no use here
			continue
		}
		l.arrive(p, f.now())
	}
}

func (f *forwarder) write(l *lane, to int) {
	for {
		p := l.leave(f.now())
		if p == nil {
			return
		}
		_, _ = unix.Write(to, p.data[:p.size]) // fails if the device is down
		l.put(p)
	}
}

// obey reads orders and answers those that are complete.
func (f *forwarder) obey() (done bool, err error) {
	var b [4096]byte
	n, err := unix.Read(ordersFD, b[:])
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if n <= 0 {
		return true, err
	}
	f.orders = append(f.orders, b[:n]...)
	for {
		line, rest, complete := bytes.Cut(f.orders, []byte("\n"))
		if !complete {
			return false, nil
		}
		f.orders = rest
		if err := f.order(line); err != nil {
			return true, err
		}
	}
}

func (f *forwarder) order(line []byte) error {
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return err
	}
	now, spent := f.now(), used()
	if o.Restart {
		f.spent = spent
	}
	var t [2]Traffic
	for d, l := range f.lanes {
		if o.Paths != nil {
			l.set(o.Paths[d], now)
		}
		if o.Restart {
			l.restart(o.Seed*2+uint64(d), now)
		}
		t[d] = l.count()
		t[d].CPU = spent - f.spent
	}
	answer, err := json.Marshal(t)
	if err == nil {
		_, err = unix.Write(answersFD, append(answer, '\n'))
	}
	return err
}

// used is the CPU time of this process.
func used() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

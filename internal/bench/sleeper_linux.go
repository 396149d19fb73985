package bench

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// sleeper sleeps to within some microseconds, which time.Sleep does not: an
// otherwise idle Go process rounds up to a millisecond. It belongs to the
// goroutine that made it.
type sleeper struct{}

// newSleeper takes the goroutine's thread for itself, since the precision is a
// property of the thread.
func newSleeper() sleeper {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return sleeper{}
}

func (sleeper) sleep(ns int64) {
	if ns <= 0 {
		return
	}
	ts := unix.NsecToTimespec(ns)
	// A signal ends it early; the caller looks at the clock again anyway.
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
}

// close gives the thread back to the system: it does not go to other goroutines
// with its precision.
func (sleeper) close() {}

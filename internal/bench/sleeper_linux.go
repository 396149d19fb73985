package bench

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// sleeper sleeps with a precision of some microseconds. time.Sleep does not: in an
// otherwise idle Go process it rounds up to a millisecond. Only the goroutine that made
// it may use it.
type sleeper struct{}

// newSleeper locks the goroutine to its thread, since the precision is a property of the
// thread, which ends with the goroutine.
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
	// A signal ends it early; the caller reads the clock again anyway.
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
}

//go:build unix

package tune

import (
	"time"

	"golang.org/x/sys/unix"
)

// usedTime returns the processor time that the process has used.
func usedTime() (time.Duration, bool) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}

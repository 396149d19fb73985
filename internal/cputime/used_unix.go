//go:build unix

// Package cputime is what processors have spent: on this process, and on nothing.
package cputime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Used is the processor time that the process has used.
func Used() (time.Duration, bool) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, false
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), true
}

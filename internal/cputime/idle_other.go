//go:build !linux

package cputime

import "time"

// Idle is not known here.
func Idle() (time.Duration, bool) { return 0, false }

//go:build !linux

package bench

import "time"

// sleeper sleeps with the precision of time.Sleep.
type sleeper struct{}

func newSleeper() sleeper { return sleeper{} }

func (sleeper) sleep(ns int64) { time.Sleep(time.Duration(ns)) }

//go:build !linux

package bench

import "time"

// sleeper sleeps as precisely as the system lets it.
type sleeper struct{}

func newSleeper() sleeper { return sleeper{} }

func (sleeper) sleep(ns int64) { time.Sleep(time.Duration(ns)) }

func (sleeper) close() {}

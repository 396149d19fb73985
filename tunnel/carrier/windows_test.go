package carrier

import (
	"testing"
	"time"
)

func TestWindowsFollowTheBudget(t *testing.T) {
	for memory, want := range map[int64]uint64{
		0: 4 << 20, 16 << 20: 256 << 10, 64 << 20: 512 << 10, 512 << 20: 4 << 20, 64 << 30: 4 << 20,
	} {
		if got := WindowsFor(memory).WithDefaults().Stream; got != want {
			t.Errorf("memory %d: a stream may have %d, want %d", memory, got, want)
		}
	}
}

func TestIdleTimeoutOutlivesDead(t *testing.T) {
	for dead, want := range map[time.Duration]time.Duration{
		0:                37500 * time.Millisecond, // as for the default of 30 s
		time.Second:      30 * time.Second,
		24 * time.Second: 30 * time.Second,
		2 * time.Minute:  150 * time.Second,
		MaxDead:          5 * time.Minute,
		time.Hour:        5 * time.Minute,
	} {
		if got := IdleTimeout(dead); got != want {
			t.Errorf("%v: got %v, want %v", dead, got, want)
		}
	}
}

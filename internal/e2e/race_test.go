//go:build race

package e2e

const (
	raceEnabled = true

	// slowdown is the factor by which the race detector's bounds in time are wider.
	slowdown = 3
)

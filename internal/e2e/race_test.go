//go:build race

package e2e

// slowdown is the factor by which the race detector's bounds in time are wider.
const slowdown = 3

//go:build race

package testmain

// Race reports that the race detector is on. Counts of allocations mean nothing then:
// sync.Pool drops at random what it is given.
const Race = true

//go:build race

package testmain

// Race reports that the race detector is on. Counts of allocations mean nothing then:
// sync.Pool drops items at random.
const Race = true

//go:build race

package queue

// raceEnabled says that sync.Pool drops what it is given at random, so that
// counts of allocations mean nothing.
const raceEnabled = true

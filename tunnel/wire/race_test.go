//go:build race

package wire

// raceEnabled says that sync.Pool drops what it is given at random, so that
// counts of allocations mean nothing.
const raceEnabled = true

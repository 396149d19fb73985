//go:build race

package udpio

// raceEnabled: the race detector makes sync.Pool forget at random.
const raceEnabled = true

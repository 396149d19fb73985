//go:build race

package pipe

// raceEnabled reports that the race detector allocates.
const raceEnabled = true

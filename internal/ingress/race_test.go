//go:build race

package ingress

// raceEnabled: the race detector makes sync.Pool forget at random.
const raceEnabled = true

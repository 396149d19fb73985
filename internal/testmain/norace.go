//go:build !race

package testmain

// Race reports that the race detector is on.
const Race = false

//go:build !linux

package udpio

// loop is Linux's; elsewhere each socket has a goroutine of its own.
type loop struct{}

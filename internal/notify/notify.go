// Package notify wakes a goroutine that waits for a change.
package notify

// Signal wakes one goroutine, which receives from it and then looks for what has changed.
// Wakes before it looks are one.
type Signal chan struct{}

// New returns a Signal.
func New() Signal { return make(Signal, 1) }

// Wake lets the goroutine go on that waits on s, or that does next. It never blocks.
func (s Signal) Wake() {
	select {
	case s <- struct{}{}:
	default:
	}
}

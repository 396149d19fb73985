package udpio

import "runtime"

// calledFrom says whether the function that begins at fn is among our callers.
// Close asks so before it waits for a callback that it may be running in. It is
// slow (about a microsecond), and no one else has a use for it.
func calledFrom(fn uintptr) bool {
	var pcs [32]uintptr
	for skip := 2; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for n > 0 {
			frame, more := frames.Next()
			if frame.Entry == fn {
				return true
			}
			if !more {
				break
			}
		}
		if n < len(pcs) {
			return false
		}
	}
}

// Package testmain runs the tests of a package, and knows what the race detector changes.
package testmain

import (
	"runtime"
	"testing"

	"go.uber.org/goleak"
)

// Run runs the tests and fails if goroutines are left.
func Run(m *testing.M) {
	Prepare()
	goleak.VerifyTestMain(m)
}

// Prepare gives the tests one processor under the race detector: that of Go 1.26 crashes
// when two processors receive from timers of one synctest bubble at once
// (golang.org/issue/78156). A test finds packages with bubbles that forget it.
func Prepare() {
	if Race {
		runtime.GOMAXPROCS(1)
	}
}

package tune

import (
	"runtime"
	"testing"
)

// The tests of this file and of canary_linux_test.go fail when the runtime or the kernel no longer works as a
// trick assumes, whether or not the trick is on. See docs/TUNING.md.

// broken reports that a trick's assumption does not hold.
func broken(t *testing.T, s Switch, format string, args ...any) {
	t.Helper()
	t.Logf("the trick %q relies on what %s does not do (any more): measure it again, or turn it off", names[s], runtime.Version())
	t.Errorf(format, args...)
}

func TestCanaryOfHeapFloor(t *testing.T) {
	raiseForTest(t)
	runtime.GC()
	if goal := metric(t, "/gc/heap/goal:bytes"); goal < heapFloor {
		broken(t, HeapFloor, "the next collection is at %d bytes of heap, want at least %d", goal, heapFloor)
	}
}

func TestCanaryOfProcessors(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if n := metric(t, "/sched/gomaxprocs:threads"); n != 1 {
		broken(t, Processors, "the scheduler has %d processors, want 1", n)
	}
	before, ok := usedTime()
	if !ok {
		t.Skip("the processor time is not known on this system")
	}
	for after := before; after == before; after, _ = usedTime() { // ends, or the test is killed
	}
	if n := metric(t, "/sched/gomaxprocs:threads"); n != 1 {
		broken(t, Processors, "the scheduler has taken a processor by itself")
	}
}

func TestCanaryOfMemoryReturn(t *testing.T) {
	const size = 64 << 20
	garbage := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		garbage[i] = 1
	}
	before := metric(t, "/memory/classes/heap/released:bytes")
	runtime.KeepAlive(garbage) // until here
	freeMemory()
	if after := metric(t, "/memory/classes/heap/released:bytes"); after < before+size/2 {
		broken(t, MemoryReturn, "%d bytes went back to the system of %d that were freed", after-before, size)
	}
}

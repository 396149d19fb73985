package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestMemoryGoesBackOnceAfterEachBusyTime(t *testing.T) {
	const little, much = memoryCalm / 8, 8 * memoryCalm
	var h hoard
	allocated := uint64(0)
	for _, step := range []struct {
		what  string
		each  uint64 // allocated between two looks
		looks int
		want  int // how often memory goes back
	}{
		{"at the start there is nothing", little, 3, 0},
		{"the busy look after itself", much, 100, 0},
		{"one calm look is too few", little, 1, 0},
		{"two are enough", little, 1, 1},
		{"nothing is left to give back", little, 1000, 0},
		{"busy for a moment", much, 1, 0},
		{"and calm again", little, 5, 1},
	} {
		got := 0
		for range step.looks {
			allocated += step.each
			if h.next(allocated) {
				got++
			}
		}
		if got != step.want {
			t.Errorf("%s: memory goes back %d times, want %d", step.what, got, step.want)
		}
	}
}

func TestGarbageIsNotCollectedBeforeThereIsMuchUnlessTheUserSaysWhen(t *testing.T) {
	t.Cleanup(func() { ballast.Store(nil) })
	defer debug.SetGCPercent(debug.SetGCPercent(100)) // whatever the tests were started with
	for _, c := range []struct {
		variable string
		room     bool
	}{{"", true}, {"GOGC", false}, {"GOMEMLIMIT", false}} {
		t.Setenv("GOGC", "")
		t.Setenv("GOMEMLIMIT", "")
		if c.variable != "" {
			t.Setenv(c.variable, "100")
		}
		ballast.Store(nil)
		before := heapGoal()
		roomForGarbage()
		after := heapGoal()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if rest := m.HeapAlloc - heapBytes(&m); rest != 0 && rest != garbageRoom/2 || (rest != 0) != c.room {
			t.Errorf("with %q set %d bytes of the heap do not count", c.variable, rest)
		}
		if grown := after >= max(garbageRoom, before+garbageRoom/2); grown != c.room {
			t.Errorf("with %q set the next collection is at %d bytes, before it was at %d", c.variable, after, before)
		}
	}
}

// heapGoal collects and returns the size of the heap in bytes at the next collection.
func heapGoal() uint64 {
	runtime.GC()
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	metrics.Read(goal)
	return goal[0].Value.Uint64()
}

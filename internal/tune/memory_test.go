package tune

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestMemoryGoesBackOnceAfterBusyTime(t *testing.T) {
	var r returner
	allocated := uint64(0)
	looks := func(n int, each uint64) (returned int) {
		for range n {
			allocated += each
			if r.next(allocated) {
				returned++
			}
		}
		return returned
	}
	for range 2 {
		if n := looks(many, calmBytes/8); n != 0 {
			t.Errorf("memory went back %d times with nothing to give back", n)
		}
		if n := looks(many, 8*calmBytes); n != 0 {
			t.Errorf("memory went back %d times while busy", n)
		}
		if n := looks(many, calmBytes/8); n != 1 {
			t.Errorf("memory went back %d times after the busy time, want once", n)
		}
	}
}

func TestHeapFloorYieldsToUserSettings(t *testing.T) {
	t.Cleanup(func() { ballast.Store(nil) })
	for _, variable := range []string{"GOGC", "GOMEMLIMIT"} {
		t.Setenv("GOGC", "")
		t.Setenv("GOMEMLIMIT", "")
		t.Setenv(variable, "100")
		if RaiseHeapFloor(); ballast.Load() != nil {
			t.Errorf("the heap's floor was raised with %s set", variable)
		}
	}
}

// raiseForTest raises the heap's floor as if nothing in the environment spoke against it.
func raiseForTest(t *testing.T) {
	ballast.Store(new([heapFloor / 2]byte))
	t.Cleanup(func() { ballast.Store(nil) })
	percent := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

func TestHeapBytesLeaveBallastOut(t *testing.T) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	without := HeapBytes(&m)
	raiseForTest(t)
	runtime.ReadMemStats(&m)
	if with := HeapBytes(&m); with > without+heapFloor/4 {
		t.Errorf("%d bytes with the ballast, %d without", with, without)
	}
}

// metric reads a figure of the runtime.
func metric(t testing.TB, name string) uint64 {
	t.Helper()
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		t.Fatalf("%s has no metric %s", runtime.Version(), name)
	}
	return s[0].Value.Uint64()
}

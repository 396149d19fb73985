package tune

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

const (
	// returnInterval is the time between two looks at how much is allocated.
	returnInterval = 5 * time.Second

	// calmBytes is the most that a calm process allocates between two looks. One that
	// allocates more collects its garbage soon enough by itself.
	calmBytes = 256 << 10

	// heapFloor is the size of the heap in bytes below which garbage is not collected.
	heapFloor = 16 << 20
)

// returner decides when to give memory back to the system. The runtime collects
// garbage when the heap has doubled: memory of thousands of associations stays for
// minutes after they have ended, because the process then has nothing to do.
type returner struct {
	last uint64 // allocated until the last look
	busy bool   // since memory last went back
	calm int    // looks in a row
}

// next takes the bytes allocated in the process's life and reports whether memory is
// to go back now: once, two calm looks after a busy one.
func (r *returner) next(allocated uint64) bool {
	r.calm++
	if allocated-r.last > calmBytes {
		r.busy, r.calm = true, 0
	}
	r.last = allocated
	if !r.busy || r.calm < 2 {
		return false
	}
	r.busy = false
	return true
}

// ReturnMemory gives unused memory back to the system after each busy time, until ctx
// ends. It does nothing with MemoryReturn off.
func ReturnMemory(ctx context.Context) {
	if !MemoryReturn.On() {
		return
	}
	allocs := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	tick := time.NewTicker(returnInterval)
	defer tick.Stop()
	var r returner
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(allocs)
		if r.next(allocs[0].Value.Uint64()) {
			freeMemory()
		}
	}
}

func freeMemory() {
	runtime.GC() // the second collection frees the contents of each sync.Pool
	debug.FreeOSMemory()
}

// ballast counts as in use with the runtime, which collects at twice what is in use. It is never
// touched, so that it takes address space but no memory.
var ballast atomic.Pointer[[heapFloor / 2]byte]

// RaiseHeapFloor keeps the runtime from collecting garbage before the heap has heapFloor bytes, unless
// GOGC or GOMEMLIMIT is set or HeapFloor is off. quic-go leaves garbage of two packets for each DATAGRAM:
// with the runtime's own 4 MiB a full tunnel collects seventy times a second.
func RaiseHeapFloor() {
	if HeapFloor.On() && os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		ballast.Store(new([heapFloor / 2]byte))
	}
}

// HeapBytes returns the bytes of the heap in use, without the ballast.
func HeapBytes(m *runtime.MemStats) uint64 {
	if b := ballast.Load(); b != nil {
		return m.HeapAlloc - uint64(len(b))
	}
	return m.HeapAlloc
}

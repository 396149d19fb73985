package main

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
	// memoryInterval is how often it is looked whether memory can go back.
	memoryInterval = 5 * time.Second

	// memoryCalm is how many bytes a calm process allocates at most from one look to
	// the next. One that allocates more collects its garbage soon enough by itself.
	memoryCalm = 256 << 10

	// garbageRoom is the size of the heap in bytes below which garbage stays where it is.
	garbageRoom = 16 << 20
)

// hoard decides when to give memory back to the system. The runtime collects
// garbage when the heap has doubled: what thousands of associations held stays for
// minutes after they have ended, in a process that then has nothing to do.
type hoard struct {
	last uint64 // allocated until the last look
	busy bool   // since memory last went back
	calm int    // looks in a row
}

// next takes the bytes allocated in the process's life and says whether memory is
// to go back now: once, two calm looks after a busy one.
func (h *hoard) next(allocated uint64) bool {
	h.calm++
	if allocated-h.last > memoryCalm {
		h.busy, h.calm = true, 0
	}
	h.last = allocated
	if !h.busy || h.calm < 2 {
		return false
	}
	h.busy = false
	return true
}

// ballast counts as in use with the runtime, which collects at twice what is in use. It is never
// touched, so that it takes address space but no memory.
var ballast atomic.Pointer[[garbageRoom / 2]byte]

// roomForGarbage keeps the runtime from collecting before the heap has garbageRoom, where the user
// has not said when to. quic-go leaves garbage of two packets for each DATAGRAM: with the
// runtime's own 4 MiB a full tunnel collects seventy times a second.
func roomForGarbage() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		ballast.Store(new([garbageRoom / 2]byte))
	}
}

// heapBytes is what is in use of the heap but for the ballast.
func heapBytes(m *runtime.MemStats) uint64 {
	if b := ballast.Load(); b != nil {
		return m.HeapAlloc - uint64(len(b))
	}
	return m.HeapAlloc
}

// returnMemory gives back what is not needed any more after each busy time, until
// ctx ends.
func returnMemory(ctx context.Context) {
	allocs := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	var h hoard
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(allocs)
		if h.next(allocs[0].Value.Uint64()) {
			runtime.GC() // what pools hold is garbage to the second collection only
			debug.FreeOSMemory()
		}
	}
}

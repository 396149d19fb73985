package main

import (
	"math"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"wmproxy/internal/config"
)

const (
	// memoryShare is the part, as a divisor, of the memory of the machine or the
	// cgroup that peers may have held. Garbage may take as much again, and the kernel
	// needs its own.
	memoryShare = 4

	minDefaultMemory = 64 << 20 // bytes
)

// memoryOr returns given, or the default if that is 0, and has the runtime collect
// garbage in time to stay within the memory that there is.
func memoryOr(given config.Size) config.Size {
	total := totalMemory()
	if os.Getenv("GOMEMLIMIT") == "" && total > 0 {
		debug.SetMemoryLimit(total / memoryShare * (memoryShare - 1))
	}
	if given > 0 {
		return given
	}
	return config.Size(max(total/memoryShare, minDefaultMemory))
}

// totalMemory returns the memory of the machine, or of the cgroup if that is less, in
// bytes; 0 is not known.
func totalMemory() int64 {
	total := uint64(math.MaxInt64)
	for _, limit := range []memlimit.Provider{memlimit.FromSystem, memlimit.FromCgroup} {
		if n, err := limit(); err == nil && n > 0 {
			total = min(total, n)
		}
	}
	if total == math.MaxInt64 {
		return 0
	}
	return int64(total)
}

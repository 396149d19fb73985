package main

import (
	"math"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
)

const (
	// memoryShare is the part, as a divisor, of the memory of the machine or the
	// cgroup that peers may have held. Garbage may take as much again, and the kernel
	// needs its own.
	memoryShare = 4

	minDefaultMemory = 64 << 20
	minMemory        = 16 << 20
)

func memoryFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "memory", Usage: "hold at most `SIZE` (such as 256MiB) in memory for peers: bytes that wait for slow readers, here and in the kernel; near it the user who holds most loses streams that stand still",
		DefaultText: "a quarter of the machine's or the cgroup's, at least 64MiB",
	}
}

// memory reads --memory; 0 is the default.
func (p *program) memory(c *cli.Context) (int64, error) {
	text := c.String("memory")
	if text == "" {
		return 0, nil
	}
	n, err := humanize.ParseBytes(text)
	if err != nil || n < minMemory || n > math.MaxInt64/2 {
		return 0, p.wrong("memory", "must be a size of at least 16MiB, such as 256MiB or 2GiB")
	}
	return int64(n), nil
}

// memoryOr returns given, or the default if that is 0, and has the runtime collect
// garbage in time to stay within the memory that there is.
func memoryOr(given int64) int64 {
	total := totalMemory()
	if os.Getenv("GOMEMLIMIT") == "" && total > 0 {
		debug.SetMemoryLimit(total / memoryShare * (memoryShare - 1))
	}
	if given > 0 {
		return given
	}
	return max(total/memoryShare, minDefaultMemory)
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

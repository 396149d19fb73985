//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package main

import (
	"log/slog"
	"math"

	"golang.org/x/sys/unix"
)

// raiseDescriptorLimit lets the process have as many descriptors as it may
// have: each association takes one or two. The Go runtime does this too on most
// systems; here it does not depend on that.
func raiseDescriptorLimit(log *slog.Logger) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("cannot read the limit of open files", "error", err)
		return
	}
	if limit.Cur < limit.Max {
		soft := limit.Cur
		limit.Cur = limit.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			log.Warn("cannot raise the limit of open files; raise it with ulimit -n", "limit", soft, "error", err)
			return
		}
	}
	log.Debug("open files", "limit", limit.Cur)
}

// descriptorLimit is how many descriptors the process may have; 0 is not known.
func descriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur > math.MaxInt32 {
		return 0
	}
	return int(limit.Cur)
}

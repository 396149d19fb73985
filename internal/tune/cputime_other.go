//go:build !linux

package tune

import "time"

// IdleTime reports that the time is not known on this system.
func IdleTime() (time.Duration, bool) { return 0, false }

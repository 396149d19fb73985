package tune

import (
	"bytes"
	"os"
	"strconv"
	"time"
)

// userHz is the number of units in a second of /proc/stat (USER_HZ).
const userHz = 100

// IdleTime returns how long the machine's processors have been idle since it started, added up.
func IdleTime() (time.Duration, bool) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	return parseIdle(b)
}

// parseIdle reads the first line of /proc/stat: cpu user nice system idle iowait …
func parseIdle(b []byte) (time.Duration, bool) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 6 || string(fields[0]) != "cpu" {
		return 0, false
	}
	ticks := int64(0)
	for _, f := range fields[4:6] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, false
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHz, true
}

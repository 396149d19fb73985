package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is the CPU time of a process during a load, and its memory.
type Usage struct {
	PID        int     `json:"pid"`
	Name       string  `json:"name"`
	CPUSeconds float64 `json:"cpu_seconds"`         // user and system
	RSS        int64   `json:"rss_bytes"`           // at the end
	PSS        int64   `json:"pss_bytes,omitempty"` // at the end; 0 if it cannot be read
}

// clockTicks is the unit of CPU times in /proc, per second: 100 on all
// architectures that Go supports (USER_HZ).
const clockTicks = 100

// errStat is returned if /proc/PID/stat is not as in proc(5).
var errStat = errors.New("unexpected contents of /proc/PID/stat")

// sample is the state of a process.
type sample struct {
	name string
	cpu  float64 // seconds since its start
}

// parseStat returns the name and utime + stime in /proc/PID/stat:
//
//	pid (name) state ppid … utime stime …
//	1    2      3     4      14    15
//
// The name may hold spaces and parentheses; it ends at the last one.
func parseStat(b []byte) (sample, error) {
	open, shut := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || shut < open {
		return sample{}, errStat
	}
	fields := bytes.Fields(b[shut+1:])
	const state, utime, stime = 3, 14, 15
	if len(fields) <= stime-state {
		return sample{}, errStat
	}
	user, err1 := strconv.ParseUint(string(fields[utime-state]), 10, 63)
	system, err2 := strconv.ParseUint(string(fields[stime-state]), 10, 63)
	if err1 != nil || err2 != nil {
		return sample{}, errStat
	}
	return sample{string(b[open+1 : shut]), float64(user+system) / clockTicks}, nil
}

// readSample returns the state of a process.
func readSample(pid int) (sample, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return sample{}, fmt.Errorf("cannot read the figures of process %d (%w); --pids needs Linux and running processes", pid, err)
	}
	return parseStat(b)
}

// parseKilobytes returns the bytes in a line "key: N kB" as in /proc/PID/status, or 0 if
// there is none.
func parseKilobytes(text, key string) int64 {
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name != key {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 53)
		if err != nil {
			return 0
		}
		return n << 10
	}
	return 0
}

// readMemory returns a process's memory in bytes, or 0 if it cannot be read.
func readMemory(pid int) (rss, pss int64) {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
		rss = parseKilobytes(string(b), "VmRSS")
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)); err == nil {
		pss = parseKilobytes(string(b), "Pss")
	}
	return rss, pss
}

// meter measures the CPU time of processes since it was made.
type meter struct {
	pids   []int
	before []sample
	own    float64 // CPU seconds of this process
}

func newMeter(pids []int) (*meter, error) {
	m := &meter{pids: pids, own: ownCPU()}
	for _, pid := range pids {
		s, err := readSample(pid)
		if err != nil {
			return nil, err
		}
		m.before = append(m.before, s)
	}
	return m, nil
}

// warmUp waits until measuring begins and returns its meter.
func (c *Common) warmUp(ctx context.Context, lasts time.Duration) (*meter, error) {
	warm := time.NewTimer(lasts)
	defer warm.Stop()
	select {
	case <-warm.C:
	case <-ctx.Done():
	}
	if c.Began != nil {
		c.Began()
	}
	return newMeter(c.PIDs)
}

// ownCPU returns the CPU seconds of this process, or 0 if they cannot be read.
func ownCPU() float64 {
	s, err := readSample(os.Getpid())
	if err != nil {
		return 0
	}
	return s.cpu
}

// read sets the usage in o. It returns an error if a process is gone.
func (m *meter) read(o *Outcome) error {
	o.OwnCPU = ownCPU() - m.own
	for i, pid := range m.pids {
		s, err := readSample(pid)
		if err != nil {
			return err
		}
		u := Usage{PID: pid, Name: s.name, CPUSeconds: s.cpu - m.before[i].cpu}
		u.RSS, u.PSS = readMemory(pid)
		o.Processes = append(o.Processes, u)
	}
	return nil
}

// cpu returns the CPU seconds of all processes.
func (o *Outcome) cpu() (seconds float64) {
	for _, u := range o.Processes {
		seconds += u.CPUSeconds
	}
	return seconds
}

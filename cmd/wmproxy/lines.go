package main

import (
	"io"
	"sync"
	"time"
)

const (
	// lineDelay is how late a line may leave that comes soon after another.
	lineDelay = 100 * time.Millisecond

	// lineBuffer is how many bytes may wait.
	lineBuffer = 32 << 10
)

// lines is a writer of lines that does not make a system call for each where many
// come at once, such as one for each of a thousand associations a second. A line
// that comes alone is written at once. A crash loses those of the last lineDelay.
type lines struct {
	w io.Writer

	mu      sync.Mutex
	waiting []byte
	last    time.Time // when something was written
	timer   *time.Timer
}

// Write writes p or keeps it for a while. Errors of what was kept are not told.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if len(l.waiting) == 0 && now.Sub(l.last) >= lineDelay {
		l.last = now
		return l.w.Write(p)
	}
	if len(l.waiting) == 0 {
		if l.timer == nil {
			l.timer = time.AfterFunc(lineDelay, l.Flush)
		} else {
			l.timer.Reset(lineDelay)
		}
	}
	l.waiting = append(l.waiting, p...)
	if len(l.waiting) >= lineBuffer {
		l.flushLocked()
	}
	return len(p), nil
}

// Flush writes what waits.
func (l *lines) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushLocked()
}

func (l *lines) flushLocked() {
	if len(l.waiting) == 0 {
		return
	}
	l.last = time.Now()
	_, _ = l.w.Write(l.waiting)
	l.waiting = l.waiting[:0]
}

package main

import (
	"io"
	"sync"
	"time"
)

const (
	// lineDelay is the longest delay of a line that comes soon after another.
	lineDelay = 100 * time.Millisecond

	// lineBuffer bounds the lines that wait, in bytes.
	lineBuffer = 256 << 10
)

// lines is a writer of lines that never blocks, so that a standard error that is not read
// stops no goroutine. If many lines come at once, such as one for each of a thousand
// associations a second, one system call writes several. A line that comes alone is
// written at once. A crash loses the lines of the last delay; lines beyond the buffer are
// lost.
type lines struct {
	w     io.Writer
	delay time.Duration // lineDelay, or 0 for no company

	mu      sync.Mutex
	waiting []byte
	flight  []byte        // being written; swaps places with waiting
	last    time.Time     // when something began to be written
	timer   *time.Timer   // set while lines wait for company
	writing chan struct{} // closed when there is nothing left to write; nil if so
}

// Write keeps p until it can be written. It returns no error.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting)+len(p) > lineBuffer {
		return len(p), nil
	}
	l.waiting = append(l.waiting, p...)
	switch wait := l.delay - time.Since(l.last); {
	case l.writing != nil || l.timer != nil:
	case wait > 0:
		l.timer = time.AfterFunc(wait, l.begin)
	default:
		l.beginLocked()
	}
	return len(p), nil
}

// Flush blocks until the lines that wait have been written.
func (l *lines) Flush() {
	l.mu.Lock()
	l.beginLocked()
	written := l.writing
	l.mu.Unlock()
	if written != nil {
		<-written
	}
}

func (l *lines) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.beginLocked()
}

func (l *lines) beginLocked() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if l.writing == nil && len(l.waiting) > 0 {
		l.writing = make(chan struct{})
		go l.write()
	}
}

// write writes until nothing waits.
func (l *lines) write() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > 0 {
		l.waiting, l.flight = l.flight[:0], l.waiting
		l.last = time.Now()
		l.mu.Unlock()
		_, _ = l.w.Write(l.flight)
		l.mu.Lock()
	}
	close(l.writing)
	l.writing = nil
}

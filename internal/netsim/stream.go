package netsim

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"wmproxy/internal/notify"
	"wmproxy/tunnel/carrier"
)

// stream is one end of a Stream of a pipe.
type stream struct {
	end     *End
	in, out *half
	peer    *stream
	life    carrier.StreamContext
}

var _ carrier.Stream = (*stream)(nil)

func newStreams(a, b *End) (ofA, ofB *stream) {
	ab := newHalf(a.link, a.config.Delay)
	ba := newHalf(b.link, b.config.Delay)
	ofA, ofB = &stream{end: a, in: ba, out: ab}, &stream{end: b, in: ab, out: ba}
	ofA.peer, ofB.peer = ofB, ofA
	return ofA, ofB
}

func (s *stream) Read(p []byte) (int, error) { return s.in.read(p, s.end.side) }
func (s *stream) Write(p []byte) (int, error) {
	if s.end.muted.Load() {
		return len(p), nil
	}
	return s.out.write(p, s.end.side)
}

func (s *stream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }

func (s *stream) CloseWrite() error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.out.reset != nil && !s.out.ended {
		return s.out.reset
	}
	s.out.ended = true
	s.out.mark()
	s.out.readable.Wake()
	s.out.writable.Wake()
	return nil
}

func (s *stream) Reset(code carrier.ErrorCode) {
	defer s.life.End(context.Canceled)
	if s.out.endedCleanly() && s.in.readCleanly() {
		return
	}
	s.life.End(&carrier.ResetError{Code: code})
	s.in.abandon(code)
	s.out.abandon(code)
	s.peer.life.End(&carrier.ResetError{Code: code})
}

func (s *stream) Context() context.Context { return s.life.Of(s.end.link.life) }

func (s *stream) SetDeadline(t time.Time) error {
	s.in.mu.Lock()
	s.in.readBy = t
	s.in.readable.Wake()
	s.in.mu.Unlock()

	s.out.mu.Lock()
	s.out.writeBy = t
	s.out.writable.Wake()
	s.out.mu.Unlock()
	return nil
}

// half is one direction of a stream.
type half struct {
	link  *link
	delay time.Duration

	mu       sync.Mutex
	buf      []byte // a ring, grown as needed to maxUnread
	start, n int
	ended    bool // the writer wrote all it had
	endRead  bool // and the reader knows
	reset    *carrier.ResetError

	// marks say when bytes that were written arrive, where delay is not 0.
	marks   []mark
	arrived int // bytes of n that have

	readBy, writeBy    time.Time
	readable, writable notify.Signal // something changed
}

// mark is bytes that arrive together; the end is a mark of 0 bytes.
type mark struct {
	n   int
	due time.Time
}

func newHalf(link *link, delay time.Duration) *half {
	return &half{link: link, delay: delay, readable: notify.New(), writable: notify.New()}
}

func (h *half) endedCleanly() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended
}

func (h *half) readCleanly() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.endRead
}

func (h *half) abandon(code carrier.ErrorCode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reset == nil {
		h.reset = &carrier.ResetError{Code: code}
		h.buf = nil
	}
	h.readable.Wake()
	h.writable.Wake()
}

// state returns what ends a call regardless of data.
func (h *half) state(side int, by time.Time) error {
	if err := h.link.ended(side); err != nil {
		return &carrier.ResetError{Cause: err}
	}
	if h.reset != nil {
		return h.reset
	}
	if !by.IsZero() && !time.Now().Before(by) {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// mark notes that what was written since arrives after the delay.
func (h *half) mark() {
	if h.delay == 0 {
		return
	}
	n := h.n - h.arrived
	for _, m := range h.marks {
		n -= m.n
	}
	h.marks = append(h.marks, mark{n: n, due: time.Now().Add(h.delay)})
}

// arrivals counts what has arrived and returns how long the next takes, 0 for none.
func (h *half) arrivals() time.Duration {
	if h.delay == 0 {
		h.arrived = h.n
		return 0
	}
	for len(h.marks) > 0 {
		if wait := time.Until(h.marks[0].due); wait > 0 {
			return wait
		}
		h.arrived += h.marks[0].n
		h.marks = h.marks[1:]
	}
	return 0
}

func (h *half) read(p []byte, side int) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if h.endRead {
			return 0, io.EOF
		}
		if err := h.state(side, h.readBy); err != nil || len(p) == 0 {
			return 0, err
		}
		wait := h.arrivals()
		if h.arrived > 0 {
			n := copy(p, h.buf[h.start:min(h.start+h.arrived, len(h.buf))])
			h.start = (h.start + n) % len(h.buf)
			h.n -= n
			h.arrived -= n
			h.writable.Wake()
			return n, nil
		}
		if h.ended && h.n == 0 && len(h.marks) == 0 {
			h.endRead = true
			h.buf = nil
			return 0, io.EOF
		}
		h.await(h.readable, earlier(wait, h.readBy))
	}
}

func (h *half) write(p []byte, side int) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	written := 0
	for {
		if err := h.state(side, h.writeBy); err != nil {
			return written, err
		}
		if h.ended {
			return written, io.ErrClosedPipe
		}
		if len(p) == 0 {
			return written, nil
		}
		if free := maxUnread - h.n; free > 0 {
			n := min(len(p), free)
			h.put(p[:n])
			h.mark()
			h.readable.Wake()
			p = p[n:]
			written += n
			continue
		}
		h.await(h.writable, earlier(0, h.writeBy))
	}
}

// put appends p to the ring, which has room for it within maxUnread.
func (h *half) put(p []byte) {
	if need := h.n + len(p); need > len(h.buf) {
		size := max(minBuffer, len(h.buf))
		for size < need {
			size *= 2
		}
		grown := make([]byte, size)
		k := copy(grown, h.buf[h.start:min(h.start+h.n, len(h.buf))])
		copy(grown[k:], h.buf[:h.n-k])
		h.buf, h.start = grown, 0
	}
	at := (h.start + h.n) % len(h.buf)
	k := copy(h.buf[at:], p)
	copy(h.buf, p[k:])
	h.n += len(p)
}

// earlier is the shorter of wait and the time until by; 0 and the zero time are never.
func earlier(wait time.Duration, by time.Time) time.Duration {
	if by.IsZero() {
		return wait
	}
	left := max(time.Until(by), 1)
	if wait == 0 {
		return left
	}
	return min(wait, left)
}

// await waits for change, or for wait where that is not 0, or for the pipe's end.
func (h *half) await(change notify.Signal, wait time.Duration) {
	h.mu.Unlock()
	defer h.mu.Lock()
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-change:
	case <-due:
	case <-h.link.done:
	}
}

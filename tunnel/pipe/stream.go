package pipe

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
	ab := newHalf(a.link)
	ba := newHalf(b.link)
	ofA, ofB = &stream{end: a, in: ba, out: ab}, &stream{end: b, in: ab, out: ba}
	ofA.peer, ofB.peer = ofB, ofA
	return ofA, ofB
}

func (s *stream) Read(p []byte) (int, error)        { return s.in.read(p, s.end.side) }
func (s *stream) Write(p []byte) (int, error)       { return s.out.write(p, s.end.side) }
func (s *stream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }

func (s *stream) CloseWrite() error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.out.reset != nil && !s.out.ended {
		return s.out.reset
	}
	s.out.ended = true
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
	link *link

	mu       sync.Mutex
	buf      []byte // a ring, grown as needed to maxUnread
	start, n int
	ended    bool // the writer wrote all it had
	endRead  bool // and the reader knows
	reset    *carrier.ResetError

	readBy, writeBy    time.Time
	readable, writable notify.Signal // something changed
}

func newHalf(l *link) *half {
	return &half{link: l, readable: notify.New(), writable: notify.New()}
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
		if h.n > 0 {
			n := copy(p, h.buf[h.start:min(h.start+h.n, len(h.buf))])
			h.start = (h.start + n) % len(h.buf)
			h.n -= n
			h.writable.Wake()
			return n, nil
		}
		if h.ended {
			h.endRead = true
			h.buf = nil
			return 0, io.EOF
		}
		h.await(h.readable, h.readBy)
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
			h.readable.Wake()
			p = p[n:]
			written += n
			continue
		}
		h.await(h.writable, h.writeBy)
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

// await waits for a change, or until by if that is set, or for the pipe's end.
func (h *half) await(change notify.Signal, by time.Time) {
	h.mu.Unlock()
	defer h.mu.Lock()
	var due <-chan time.Time
	if !by.IsZero() {
		t := time.NewTimer(time.Until(by))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-change:
	case <-due:
	case <-h.link.done:
	}
}

package netsim

import (
	"bytes"
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
	ab := newHalf(a)
	ba := newHalf(b)
	ofA, ofB = &stream{end: a, in: ba, out: ab}, &stream{end: b, in: ab, out: ba}
	ofA.peer, ofB.peer = ofB, ofA
	return ofA, ofB
}

func (s *stream) Read(p []byte) (int, error) { return s.in.read(p, s.end) }
func (s *stream) Write(p []byte) (int, error) {
	if s.end.muted.Load() {
		return len(p), nil
	}
	return s.out.write(p, s.end)
}

func (s *stream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }

func (s *stream) CloseWrite() error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	if s.out.reset != nil && !s.out.ended {
		return s.out.reset
	}
	if !s.out.ended {
		s.out.ended = true
		s.out.send(nil)
	}
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

func (s *stream) Context() context.Context { return s.life.Of(s.end.life) }

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
	done  <-chan struct{} // of the connection
	delay time.Duration

	mu      sync.Mutex
	chunks  []chunk // sent and not read
	unread  int     // bytes of them
	ended   bool    // the writer wrote all it had
	endRead bool    // and the reader knows
	reset   *carrier.ResetError

	readBy, writeBy    time.Time
	readable, writable notify.Signal // something changed
}

// chunk is bytes that arrive together; one of 0 bytes is the end.
type chunk struct {
	data []byte
	due  time.Time
}

// newHalf returns the direction in which from writes.
func newHalf(from *End) *half {
	return &half{done: from.Done(), delay: from.config.Delay, readable: notify.New(), writable: notify.New()}
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
		h.chunks = nil
	}
	h.readable.Wake()
	h.writable.Wake()
}

// state returns what ends a call of e regardless of data.
func (h *half) state(e *End, by time.Time) error {
	if err := e.Err(); err != nil {
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

// send puts data, which is h's from now on, on its way.
func (h *half) send(data []byte) {
	h.chunks = append(h.chunks, chunk{data, time.Now().Add(h.delay)})
	h.unread += len(data)
	h.readable.Wake()
}

func (h *half) read(p []byte, e *End) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if h.endRead {
			return 0, io.EOF
		}
		if err := h.state(e, h.readBy); err != nil || len(p) == 0 {
			return 0, err
		}
		var wait time.Duration
		if len(h.chunks) > 0 {
			first := &h.chunks[0]
			if wait = time.Until(first.due); wait <= 0 {
				return h.take(first, p)
			}
		}
		h.await(h.readable, earlier(wait, h.readBy))
	}
}

// take reads from the first chunk, which has arrived.
func (h *half) take(first *chunk, p []byte) (int, error) {
	n := copy(p, first.data)
	first.data = first.data[n:]
	h.unread -= n
	if len(first.data) == 0 {
		h.chunks = h.chunks[1:]
	}
	if n == 0 {
		h.endRead = true
		return 0, io.EOF
	}
	h.writable.Wake()
	return n, nil
}

func (h *half) write(p []byte, e *End) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	written := 0
	for {
		if err := h.state(e, h.writeBy); err != nil {
			return written, err
		}
		if h.ended {
			return written, io.ErrClosedPipe
		}
		if len(p) == 0 {
			return written, nil
		}
		if free := maxUnread - h.unread; free > 0 {
			n := min(len(p), free)
			h.send(bytes.Clone(p[:n]))
			p = p[n:]
			written += n
			continue
		}
		h.await(h.writable, earlier(0, h.writeBy))
	}
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
	case <-h.done:
	}
}

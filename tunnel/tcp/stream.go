package tcp

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"wmproxy/internal/notify"
	"wmproxy/tunnel/carrier"
)

// Buffers for frames, on a slow connection and on a fast one.
var (
	smallFrames = sync.Pool{New: func() any { return new([slowFrame]byte) }}
	largeFrames = sync.Pool{New: func() any { return new([maxFrame]byte) }}
)

// takeFrame returns an empty buffer for n bytes, n <= maxFrame.
func takeFrame(n int) []byte {
	if n <= slowFrame {
		return smallFrames.Get().(*[slowFrame]byte)[:0]
	}
	return largeFrames.Get().(*[maxFrame]byte)[:0]
}

// giveFrame takes a buffer of takeFrame back.
func giveFrame(b []byte) {
	if cap(b) == slowFrame {
		smallFrames.Put((*[slowFrame]byte)(b[:slowFrame]))
	} else {
		largeFrames.Put((*[maxFrame]byte)(b[:maxFrame]))
	}
}

// chunkStream is a Stream over one yamux stream.
type chunkStream struct {
	y    *yamux.Stream
	c    *connection
	ours bool // we opened it

	mu       sync.Mutex
	deadline time.Time
	moved    notify.Signal       // the deadline was
	waiting  bool                // the writer waits for the peer to read, with yamux's deadline at ours
	reset    *carrier.ResetError // by either side; never changes once set
	resetc   chan struct{}       // closed with it
	released bool                // Reset was called
	readEnd  bool                // the chunk of length 0 was read
	wroteEnd bool                // and written

	life carrier.StreamContext

	// Bytes: those that have arrived since the stream is known, and those of all that were taken by the
	// reader.
	arrived, taken atomic.Uint64

	chunks chunkParser // the reader's
	read   atomic.Bool // since freeReceived last looked

	// The writer's. unsent is what a deadline left of a frame: the peer already
	// has its beginning, so it goes before anything else.
	writing sync.Mutex
	frame   []byte // of takeFrame: where unsent is, or nil
	unsent  []byte
	ending  bool  // the end is in unsent or sent
	failed  error // why nothing more can be sent
}

func newChunkStream(c *connection, y *yamux.Stream, ours bool) *chunkStream {
	y.SetWriteDeadline(carrier.LongAgo)
	return &chunkStream{y: y, c: c, ours: ours, resetc: make(chan struct{}), moved: notify.New()}
}

// Read takes one long chunk, or as many short ones as have arrived and p has room for.
func (s *chunkStream) Read(p []byte) (int, error) {
	if err := s.readState(); err != nil || len(p) == 0 {
		return 0, err
	}
	for {
		raw, err := s.y.Read(s.chunks.room(p))
		s.taken.Add(uint64(raw))
		s.c.unread.Add(-int64(raw))
		if raw > 0 && !s.read.Load() {
			s.read.Store(true)
			s.c.read.Wake()
		}
		if reset := s.wasReset(); reset != nil {
			return 0, reset // what is left may have a hole: releaseStreams reads too
		}
		n, broken := s.chunks.strip(p[:raw])
		switch {
		case broken == io.EOF:
			err = s.ended()
		case broken != nil:
			err = &carrier.ResetError{Code: carrier.CodeProtocol, Cause: s.c.violation(broken)}
		case n > 0:
			return n, nil // an error of yamux comes again
		default:
			err = s.readError(err)
		}
		if err != nil || n > 0 {
			return n, err
		}
	}
}

// ended notes the chunk of length 0.
func (s *chunkStream) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset != nil {
		return s.reset
	}
	s.readEnd = true
	return io.EOF
}

// readState returns what ends reading without asking yamux.
func (s *chunkStream) readState() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset != nil {
		return s.reset
	}
	if s.readEnd {
		return io.EOF
	}
	return nil
}

// readError maps an error of yamux's Read to the contract's; nil is to try again.
// A bare end is a reset whose signal is on its way beside the stream, or the
// end of the carrier.
func (s *chunkStream) readError(err error) error {
	if err != io.EOF && !s.cutOff(err) {
		return s.callError(err)
	}
	wait := time.NewTimer(signalGrace)
	defer wait.Stop()
	select {
	case <-s.resetc:
	case <-s.c.ended:
	case <-wait.C:
		return s.end(&carrier.ResetError{Cause: errCutOff})
	}
	return s.callError(err)
}

// cutOff reports whether err is a time-out because yamux's session is closing.
func (s *chunkStream) cutOff(err error) bool {
	return errors.Is(err, yamux.ErrTimeout) && s.c.closing.Load()
}

// callError maps an error of yamux to the contract's; nil is to try again. A
// reset comes first, because it wakes callers by moving yamux's deadline.
func (s *chunkStream) callError(err error) error {
	s.mu.Lock()
	reset, deadline := s.reset, s.deadline
	s.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case reset != nil:
		return reset
	case s.cutOff(err):
		return &carrier.ResetError{Cause: s.c.ending(err)}
	case errors.Is(err, yamux.ErrTimeout):
		if deadline.IsZero() || time.Now().Before(deadline) {
			return nil // it was moved meanwhile
		}
		return os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrConnectionReset):
		return s.end(&carrier.ResetError{Code: carrier.CodeLimit}) // the peer's backlog was full
	}
	return &carrier.ResetError{Cause: s.c.ending(err)}
}

func (s *chunkStream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	written := 0
	for {
		if err := s.flushEarlier(); err != nil || len(p) == 0 {
			return written, err
		}
		n := min(len(p), carrier.MaxWrite)
		s.keep(append(appendChunkHeader(takeFrame(carrier.Headroom+n), n), p[:n]...))
		written += n // even if a deadline keeps some of it here for a while
		p = p[n:]
	}
}

func (s *chunkStream) WriteFramed(b []byte) (int, error) {
	n := len(b) - carrier.Headroom
	if n == 0 || n > carrier.MaxWrite {
		return s.Write(b[carrier.Headroom:])
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.flushEarlier(); err != nil {
		return 0, err
	}
	var room [carrier.Headroom]byte
	header := appendChunkHeader(room[:0], n)
	s.unsent = b[carrier.Headroom-len(header):]
	copy(s.unsent, header)
	err := s.flushFrame()
	if len(s.unsent) > 0 { // b is the caller's again
		s.keep(append(takeFrame(len(s.unsent)), s.unsent...))
	}
	return n, err
}

// keep has b, a buffer of takeFrame, be what is to be sent next.
func (s *chunkStream) keep(b []byte) { s.frame, s.unsent = b, b }

// flushEarlier sends what a call before this one had to leave.
func (s *chunkStream) flushEarlier() error {
	if s.ending {
		return io.ErrClosedPipe
	}
	return s.flushFrame()
}

// flushFrame sends what is left of the current frame and then gives the buffer
// back. Nothing follows a frame that could not be sent.
func (s *chunkStream) flushFrame() error {
	if s.failed == nil {
		s.failed = s.sendFrame()
	}
	err := s.failed
	if err == os.ErrDeadlineExceeded {
		s.failed = nil // the only error that passes
		return err
	}
	if s.frame != nil {
		giveFrame(s.frame)
	}
	s.frame, s.unsent = nil, nil // unsent may be the end of a caller's buffer
	return err
}

// sendFrame sends unsent. One stream at a time hands a frame to yamux, so that a bundle finds one
// in front of it and not one of each stream. yamux is asked not to wait for the
// stream's window meanwhile; that wait comes after the turn.
func (s *chunkStream) sendFrame() error {
	for len(s.unsent) > 0 {
		if err := s.takeTurn(); err != nil {
			return err
		}
		n, err := s.y.Write(s.unsent[:s.c.frame(len(s.unsent))])
		<-s.c.turn
		s.unsent = s.unsent[n:]
		if errors.Is(err, yamux.ErrTimeout) {
			n, err = s.writeWhenRead()
			s.unsent = s.unsent[n:]
		}
		if err = s.callError(err); err != nil {
			return err
		}
	}
	return nil
}

// takeTurn waits for c.turn, for as long as the stream and its deadline allow.
func (s *chunkStream) takeTurn() error {
	for {
		s.mu.Lock()
		reset, deadline := s.reset, s.deadline
		s.mu.Unlock()
		if reset != nil {
			return reset
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return os.ErrDeadlineExceeded
		}
		select {
		case s.c.turn <- struct{}{}:
			return nil
		default:
		}
		var due <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			due = t.C
		}
		select {
		case s.c.turn <- struct{}{}:
			return nil
		case <-due:
		case <-s.moved:
		case <-s.resetc:
		case <-s.c.ended:
			return &carrier.ResetError{Cause: s.c.err}
		}
	}
}

// writeWhenRead writes once the peer has read and given room, within the deadline: little,
// because others may do so at the same time.
func (s *chunkStream) writeWhenRead() (int, error) {
	if len(s.unsent) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	if s.reset != nil {
		s.mu.Unlock()
		return 0, s.reset
	}
	s.waiting = true
	s.setYamuxDeadline(s.y.SetWriteDeadline, s.deadline)
	s.mu.Unlock()

	n, err := s.y.Write(s.unsent[:min(len(s.unsent), slowFrame)])

	s.mu.Lock()
	s.waiting = false
	s.y.SetWriteDeadline(carrier.LongAgo)
	s.mu.Unlock()
	return n, err
}

// CloseWrite waits, as Write does, while the peer does not read.
func (s *chunkStream) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !s.ending {
		if err := s.flushFrame(); err != nil {
			return err
		}
		s.unsent = appendChunkHeader(nil, 0)
		s.ending = true
	}
	if err := s.flushFrame(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset != nil && !s.wroteEnd {
		return s.reset
	}
	s.wroteEnd = true
	return nil
}

// wasReset returns why, or nil.
func (s *chunkStream) wasReset() *carrier.ResetError {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reset
}

// end marks the stream as reset and wakes its callers; it returns the first reset.
func (s *chunkStream) end(reset *carrier.ResetError) *carrier.ResetError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset == nil {
		s.reset = reset
		close(s.resetc)
		s.y.SetDeadline(carrier.LongAgo)
		s.life.End(reset)
	}
	return s.reset
}

func (s *chunkStream) Reset(code carrier.ErrorCode) {
	s.mu.Lock()
	if s.released {
		s.mu.Unlock()
		return
	}
	s.released = true
	clean := s.wroteEnd && s.readEnd
	byPeer := s.reset != nil
	s.mu.Unlock()
	if !clean {
		s.end(&carrier.ResetError{Code: code})
	}
	s.life.End(context.Canceled)
	s.c.release(s, code, !clean && !byPeer)
}

// setYamuxDeadline sets a deadline of yamux's unless its session is closing.
func (s *chunkStream) setYamuxDeadline(set func(time.Time) error, t time.Time) {
	set(t)
	if s.c.closing.Load() { // after set, so that one of the two sees the other
		set(carrier.LongAgo)
	}
}

func (s *chunkStream) Context() context.Context { return s.life.Of(s.c.life) }

func (s *chunkStream) SetDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset != nil {
		return nil // the deadline is what wakes its callers
	}
	s.deadline = t
	s.setYamuxDeadline(s.y.SetReadDeadline, t)
	if s.waiting {
		s.setYamuxDeadline(s.y.SetWriteDeadline, t)
	}
	s.moved.Wake()
	return nil
}

// Held returns the bytes that have arrived and were not read.
func (s *chunkStream) Held() (heap, kernel int64) {
	taken := s.taken.Load()
	return int64(s.arrived.Load() - min(s.arrived.Load(), taken)), 0
}

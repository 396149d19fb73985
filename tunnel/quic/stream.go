package quic

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"wmproxy/tunnel/carrier"
)

// stream is a Stream over one bidirectional QUIC stream.
type stream struct {
	s    *quic.Stream
	link *link

	life    carrier.StreamContext
	watched sync.Once

	writing   sync.Mutex  // quic-go's Close must not run beside its Write
	closing   atomic.Bool // CloseWrite has begun
	wroteEnd  atomic.Bool
	readEnd   atomic.Bool
	abandoned atomic.Bool
	reader    reader
}

// newStream returns a stream whose user has to read it.
func newStream(s *quic.Stream, link *link) *stream {
	st := &stream{s: s, link: link}
	st.reader.reset = func() { st.Reset(carrier.CodeLimit) }
	link.readers.add(&st.reader)
	return st
}

// Window returns the most that quic-go may hold, as it does not report how much it does:
// the stream's window, which it doubles whenever a quarter of it has been read.
func (s *stream) Window() (bytes, first int64) {
	return min(s.link.window, firstWindow+4*s.reader.bytes.Load()), firstWindow
}

// streamError maps an error of a QUIC stream to the contract's.
func streamError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if reset, ok := errors.AsType[*quic.StreamError](err); ok {
		return &carrier.ResetError{Code: carrier.ErrorCode(reset.ErrorCode)}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return &carrier.ResetError{Cause: endError(err)}
}

func (s *stream) Read(p []byte) (int, error) {
	s.reader.reads()
	n, err := s.s.Read(p)
	s.reader.read(s.link.readers.now(), n, err)
	s.link.taken.Add(int64(n))
	if err == io.EOF {
		s.readEnd.Store(true)
	}
	return n, s.failure(err)
}

func (s *stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.wroteEnd.Load() {
		return 0, io.ErrClosedPipe
	}
	n, err := s.s.Write(p)
	return n, s.failure(err)
}

func (s *stream) WriteFramed(b []byte) (int, error) { return s.Write(b[carrier.Headroom:]) }

// failure is an error of ours. Once it says that the carrier has ended, so does Err.
func (s *stream) failure(err error) error {
	if _, reset := errors.AsType[*quic.StreamError](err); !reset {
		s.link.settle(err)
	}
	return streamError(err)
}

func (s *stream) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.wroteEnd.Load() {
		return nil
	}
	s.closing.Store(true)
	if err := s.s.Close(); err != nil {
		return &carrier.ResetError{Cause: errors.New("the stream was reset")}
	}
	s.wroteEnd.Store(true)
	return nil
}

// Reset leaves a stream alone whose halves have both ended: CancelWrite would
// throw away the end of what we wrote where the peer has not acknowledged it yet.
func (s *stream) Reset(code carrier.ErrorCode) {
	defer s.life.End(context.Canceled)
	s.link.readers.remove(&s.reader)
	if s.wroteEnd.Load() && s.readEnd.Load() || s.abandoned.Swap(true) {
		return
	}
	s.life.End(&carrier.ResetError{Code: code})
	if !s.readEnd.Load() {
		heap, _ := s.Window()
		s.link.abandoned.Add(heap)
		s.s.SetReceiveFinalSizeCallback(func(int64) { s.link.abandoned.Add(-heap) })
	}
	s.s.CancelRead(quic.StreamErrorCode(code))
	s.s.CancelWrite(quic.StreamErrorCode(code))
}

// Context ends with quic-go's, which is that of our half, but for a clean end of that.
func (s *stream) Context() context.Context {
	s.watched.Do(func() {
		context.AfterFunc(s.s.Context(), func() {
			if !s.closing.Load() {
				s.life.End(streamError(context.Cause(s.s.Context())))
			}
		})
	})
	return s.life.Of(s.link.conn.Context())
}

func (s *stream) SetDeadline(t time.Time) error { return s.s.SetDeadline(t) }

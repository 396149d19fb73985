package tunnel

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// quicStream is a Stream over one bidirectional QUIC stream.
type quicStream struct {
	s    *quic.Stream
	link *quicLink

	life    streamContext
	watched sync.Once

	writing   sync.Mutex  // quic-go's Close must not run beside its Write
	closing   atomic.Bool // CloseWrite has begun
	wroteEnd  atomic.Bool
	readEnd   atomic.Bool
	abandoned atomic.Bool
	read      atomic.Int64 // bytes
}

// quicStreamError maps an error of a QUIC stream to the contract's.
func quicStreamError(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if reset, ok := errors.AsType[*quic.StreamError](err); ok {
		return &ResetError{Code: ErrorCode(reset.ErrorCode)}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrDeadlineExceeded
	}
	return &ResetError{Cause: quicEnd(err)}
}

func (s *quicStream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	s.read.Add(int64(n))
	s.link.taken.Add(int64(n))
	if err == io.EOF {
		s.readEnd.Store(true)
	}
	return n, s.failure(err)
}

func (s *quicStream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.wroteEnd.Load() {
		return 0, io.ErrClosedPipe
	}
	n, err := s.s.Write(p)
	return n, s.failure(err)
}

func (s *quicStream) WriteFramed(b []byte) (int, error) { return s.Write(b[Headroom:]) }

// failure is an error of ours. Once it says that the carrier has ended, so does Err.
func (s *quicStream) failure(err error) error {
	if _, reset := errors.AsType[*quic.StreamError](err); !reset {
		s.link.settle(err)
	}
	return quicStreamError(err)
}

func (s *quicStream) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.wroteEnd.Load() {
		return nil
	}
	s.closing.Store(true)
	if err := s.s.Close(); err != nil {
		return &ResetError{Cause: errors.New("the stream was reset")}
	}
	s.wroteEnd.Store(true)
	return nil
}

// Reset leaves a stream alone whose halves have both ended: CancelWrite would
// throw away the end of what we wrote where the peer has not acknowledged it yet.
func (s *quicStream) Reset(code ErrorCode) {
	defer s.life.end(context.Canceled)
	if s.wroteEnd.Load() && s.readEnd.Load() || s.abandoned.Swap(true) {
		return
	}
	s.life.end(&ResetError{Code: code})
	if !s.readEnd.Load() {
		heap := s.held()
		s.link.abandoned.Add(heap)
		s.s.SetReceiveFinalSizeCallback(func(int64) { s.link.abandoned.Add(-heap) })
	}
	s.s.CancelRead(quic.StreamErrorCode(code))
	s.s.CancelWrite(quic.StreamErrorCode(code))
}

// Context ends with quic-go's, which is that of our half, but for a clean end of that.
func (s *quicStream) Context() context.Context {
	s.watched.Do(func() {
		context.AfterFunc(s.s.Context(), func() {
			if !s.closing.Load() {
				s.life.end(quicStreamError(context.Cause(s.s.Context())))
			}
		})
	})
	return s.life.of(s.link.conn.Context())
}

func (s *quicStream) SetDeadline(t time.Time) error { return s.s.SetDeadline(t) }

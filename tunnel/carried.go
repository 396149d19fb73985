package tunnel

import (
	"sync/atomic"
)

// carriedStream is a stream that counts on its carrier: it keeps a superseded
// one alive, and what passes it shows that the carrier is in use.
type carriedStream struct {
	Stream
	a    *Attachment
	done atomic.Bool
}

func (a *Attachment) carry(st Stream) *carriedStream {
	a.streams.Add(1)
	a.touch(a.s.now())
	return &carriedStream{Stream: st, a: a}
}

func (s *carriedStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.a.touch(s.a.s.now())
	return n, err
}

func (s *carriedStream) Write(p []byte) (int, error) {
	s.a.touch(s.a.s.now())
	return s.Stream.Write(p)
}

// Reset is called by every user of a stream once it is done with it.
func (s *carriedStream) Reset(code ErrorCode) {
	s.Stream.Reset(code)
	if s.done.CompareAndSwap(false, true) && s.a.streams.Add(-1) == 0 {
		s.a.s.retire()
	}
}

package tunnel

import (
	"sync"
	"sync/atomic"

	"wmproxy/tunnel/carrier"
)

// carriedStream is a stream that counts on its carrier: it keeps a superseded
// one alive, and what passes it shows that the carrier is in use.
type carriedStream struct {
	carrier.Stream
	a     *Path
	done  atomic.Bool
	since atomic.Int64 // when Read last brought something, on the session's clock; 0: one is under way, or none will be

	writing atomic.Int64                 // when the Write under way began, on the session's clock; 0: there is none
	beside  atomic.Pointer[func() int64] // see CountBeside; nil is nothing
}

// carriedStreams is those of a path.
type carriedStreams struct {
	mu  sync.Mutex
	all map[*carriedStream]struct{}
}

func (p *Path) carry(st carrier.Stream) *carriedStream {
	s := &carriedStream{Stream: st, a: p}
	p.streams.Add(1)
	p.touch(p.s.now())
	p.carried.mu.Lock()
	defer p.carried.mu.Unlock()
	if p.carried.all == nil {
		p.carried.all = make(map[*carriedStream]struct{})
	}
	p.carried.all[s] = struct{}{}
	return s
}

func (s *carriedStream) Read(p []byte) (int, error) {
	s.since.Store(0)
	n, err := s.Stream.Read(p)
	now := s.a.s.now()
	if err == nil {
		s.since.Store(int64(now))
	}
	s.a.touch(now)
	return n, err
}

func (s *carriedStream) Write(p []byte) (int, error) {
	s.writes()
	defer s.writing.Store(0)
	return s.Stream.Write(p)
}

func (s *carriedStream) WriteFramed(b []byte) (int, error) {
	s.writes()
	defer s.writing.Store(0)
	return s.Stream.WriteFramed(b)
}

// writes notes that a write begins.
func (s *carriedStream) writes() {
	now := s.a.s.now()
	s.a.touch(now)
	s.writing.Store(int64(max(now, 1)))
}

// Reset is called by every user of a stream once it is done with it.
func (s *carriedStream) Reset(code carrier.ErrorCode) {
	s.Stream.Reset(code)
	if !s.done.CompareAndSwap(false, true) {
		return
	}
	s.a.carried.mu.Lock()
	delete(s.a.carried.all, s)
	s.a.carried.mu.Unlock()
	if s.a.streams.Add(-1) == 0 {
		s.a.s.retire()
	}
	s.a.s.streamEnded()
}

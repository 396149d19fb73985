package tunnel

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxStalled bounds the streams of a QUIC carrier whose users do not read what has arrived: of the
	// connection's window, what they hold others lack. Past it those that have done so longest are reset.
	maxStalled = 24

	// stalledAfter is how long a user has not come back for more. A relay comes back for each
	// 128 KiB, so that this is a target or application that takes less than 5 KB/s.
	stalledAfter = 30 * time.Second

	// stalledBytes is how much a stream must have brought before: one that has brought less has a small window.
	stalledBytes = 64 << 10
)

// carriedStream is a stream that counts on its carrier: it keeps a superseded
// one alive, and what passes it shows that the carrier is in use.
type carriedStream struct {
	Stream
	a     *Path
	done  atomic.Bool
	bytes atomic.Uint64 // read
	since atomic.Int64  // when Read last brought something, on the session's clock; 0: one is under way, or none will be

	writing atomic.Int64                 // when the Write under way began, on the session's clock; 0: there is none
	beside  atomic.Pointer[func() int64] // see CountBeside; nil is nothing
}

// carriedStreams is those of a path.
type carriedStreams struct {
	mu    sync.Mutex
	all   map[*carriedStream]struct{}
	check *time.Timer // nil: there are few
}

func (p *Path) carry(st Stream) *carriedStream {
	s := &carriedStream{Stream: st, a: p}
	p.streams.Add(1)
	p.touch(p.s.now())
	p.carried.mu.Lock()
	defer p.carried.mu.Unlock()
	if p.carried.all == nil {
		p.carried.all = make(map[*carriedStream]struct{})
	}
	p.carried.all[s] = struct{}{}
	p.checkStalledLater()
	return s
}

// checkStalledLater is called with carried.mu held.
func (p *Path) checkStalledLater() {
	if len(p.carried.all) > maxStalled && p.carried.check == nil && p.Kind() == KindQUIC {
		p.carried.check = time.AfterFunc(stalledAfter/2, p.checkStalled)
	}
}

func (p *Path) checkStalled() {
	type still struct {
		s     *carriedStream
		since int64
	}
	now := p.s.now()
	var stalled []still
	p.carried.mu.Lock()
	for s := range p.carried.all {
		if since := s.stalled(now); since != 0 {
			stalled = append(stalled, still{s, since})
		}
	}
	p.carried.check = nil
	p.checkStalledLater()
	p.carried.mu.Unlock()
	if len(stalled) <= maxStalled {
		return
	}
	slices.SortFunc(stalled, func(a, b still) int { return cmp.Compare(a.since, b.since) })
	for _, st := range stalled[:len(stalled)-maxStalled] {
		if st.s.stalled(now) != 0 {
			st.s.Stream.Reset(CodeLimit) // its user, who finds out, calls ours
		}
	}
}

// stalled returns since when, or 0 if it is not.
func (s *carriedStream) stalled(now time.Duration) int64 {
	since := s.since.Load()
	if since == 0 || now-time.Duration(since) < stalledAfter || s.bytes.Load() <= stalledBytes {
		return 0
	}
	return since
}

func (s *carriedStream) Read(p []byte) (int, error) {
	s.since.Store(0)
	n, err := s.Stream.Read(p)
	now := s.a.s.now()
	s.bytes.Add(uint64(n))
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
func (s *carriedStream) Reset(code ErrorCode) {
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

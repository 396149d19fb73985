package tunnel

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxStalled bounds the streams of a carrier whose users do not read what has arrived: what
	// they hold others lack. Past it those that have done so longest are reset.
	maxStalled = 24

	// stalledAfter is how long a user has not come back for more.
	stalledAfter = 5 * time.Second

	// stalledBytes is how much a stream must have brought before: one that has brought less has a small window.
	stalledBytes = 64 << 10
)

// carriedStream is a stream that counts on its carrier: it keeps a superseded
// one alive, and what passes it shows that the carrier is in use.
type carriedStream struct {
	Stream
	a     *Attachment
	done  atomic.Bool
	bytes atomic.Uint64 // read
	since atomic.Int64  // when Read last returned, on the session's clock; 0: one is under way, or none was
}

// carriedStreams is those of an attachment.
type carriedStreams struct {
	mu    sync.Mutex
	all   map[*carriedStream]struct{}
	check *time.Timer // nil: there are few
}

func (a *Attachment) carry(st Stream) *carriedStream {
	s := &carriedStream{Stream: st, a: a}
	a.streams.Add(1)
	a.touch(a.s.now())
	a.carried.mu.Lock()
	defer a.carried.mu.Unlock()
	if a.carried.all == nil {
		a.carried.all = make(map[*carriedStream]struct{})
	}
	a.carried.all[s] = struct{}{}
	a.checkStalledLater()
	return s
}

// checkStalledLater is called with carried.mu held.
func (a *Attachment) checkStalledLater() {
	if len(a.carried.all) > maxStalled && a.carried.check == nil {
		a.carried.check = time.AfterFunc(stalledAfter/2, a.checkStalled)
	}
}

func (a *Attachment) checkStalled() {
	now := a.s.now()
	var stalled []*carriedStream
	a.carried.mu.Lock()
	for s := range a.carried.all {
		if s.stalled(now) {
			stalled = append(stalled, s)
		}
	}
	a.carried.check = nil
	a.checkStalledLater()
	a.carried.mu.Unlock()
	if len(stalled) <= maxStalled {
		return
	}
	slices.SortFunc(stalled, func(s, o *carriedStream) int { return cmp.Compare(s.since.Load(), o.since.Load()) })
	for _, s := range stalled[:len(stalled)-maxStalled] {
		s.Stream.Reset(CodeLimit) // its user, who finds out, calls ours
	}
}

func (s *carriedStream) stalled(now time.Duration) bool {
	since := s.since.Load()
	return since != 0 && now-time.Duration(since) >= stalledAfter && s.bytes.Load() > stalledBytes
}

func (s *carriedStream) Read(p []byte) (int, error) {
	s.since.Store(0)
	n, err := s.Stream.Read(p)
	now := s.a.s.now()
	s.bytes.Add(uint64(n))
	s.since.Store(int64(now))
	s.a.touch(now)
	return n, err
}

func (s *carriedStream) Write(p []byte) (int, error) {
	s.a.touch(s.a.s.now())
	return s.Stream.Write(p)
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
}

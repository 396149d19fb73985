package quic

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// reader is what a stream's reads show of its user.
type reader struct {
	bytes atomic.Int64 // read
	since atomic.Int64 // when the last read brought something, by the clock of readers; 0: one is under way, or none will be
	reset func()
}

// readers are those of the streams of one connection.
type readers struct {
	start time.Time

	mu    sync.Mutex
	all   map[*reader]struct{}
	check *time.Timer // nil: there are few
}

func newReaders() *readers {
	return &readers{start: time.Now(), all: make(map[*reader]struct{})}
}

func (rs *readers) now() time.Duration { return time.Since(rs.start) }

func (rs *readers) add(r *reader) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.all[r] = struct{}{}
	rs.checkLaterLocked()
}

// remove is called by the stream's Reset.
func (rs *readers) remove(r *reader) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	delete(rs.all, r)
}

func (rs *readers) checkLaterLocked() {
	if len(rs.all) > maxStalled && rs.check == nil {
		rs.check = time.AfterFunc(stalledAfter/2, rs.resetStalled)
	}
}

// resetStalled resets the streams beyond maxStalled that have stalled longest.
func (rs *readers) resetStalled() {
	type stalled struct {
		r     *reader
		since time.Duration
	}
	now := rs.now()
	var all []stalled
	rs.mu.Lock()
	for r := range rs.all {
		if since, ok := r.stalled(now); ok {
			all = append(all, stalled{r, since})
		}
	}
	rs.check = nil
	rs.checkLaterLocked()
	rs.mu.Unlock()
	if len(all) <= maxStalled {
		return
	}
	slices.SortFunc(all, func(a, b stalled) int { return cmp.Compare(a.since, b.since) })
	for _, s := range all[:len(all)-maxStalled] {
		if _, ok := s.r.stalled(now); ok {
			s.r.reset()
		}
	}
}

// stalled reports whether the stream is, and since when.
func (r *reader) stalled(now time.Duration) (since time.Duration, ok bool) {
	since = time.Duration(r.since.Load())
	return since, since != 0 && now-since >= stalledAfter && r.bytes.Load() > stalledBytes
}

// reads is called before a read.
func (r *reader) reads() { r.since.Store(0) }

// read is called with the result of a read.
func (r *reader) read(now time.Duration, n int, err error) {
	r.bytes.Add(int64(n))
	if err == nil {
		r.since.Store(int64(max(now, 1)))
	}
}

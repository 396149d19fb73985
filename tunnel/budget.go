package tunnel

import (
	"cmp"
	"log/slog"
	"maps"
	"runtime"
	"runtime/metrics"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wmproxy/internal/user"
)

// A Budget bounds the memory that peers can make a process hold: unread bytes,
// queued datagrams, the kernel's buffers for streams. One Budget serves all
// sessions of a process.
//
// It measures the process rather than adding up the credit it granted, since
// quic-go does not report how much it holds for a stream. Beyond the limit, the
// user with the largest sum loses the fullest streams that are stalled, then any
// streams, then carriers. One user alone may hold half of the limit. From three
// quarters on, users above their share get no new streams, and for a while users
// who lost something get none either.
type Budget struct {
	limit    int64
	base     int64 // of the process without peers
	sessions func() []*Session
	log      *slog.Logger

	heap    func() (live, inUse int64) // replaced in tests, like the next
	collect func()

	used   atomic.Int64
	resets atomic.Uint64
	closed chan struct{}
	loop   sync.WaitGroup

	// Of the loop.
	looks     int
	streams   int     // at the last look
	kernel    int64   // at the last sum
	seen      []*Path // at the last sum
	collected time.Time
	freed     time.Time // something was reset
	penalties map[*user.User]*penalty
}

// penalty is the time for which a user gets no new streams.
type penalty struct {
	lasts time.Duration
	until time.Time
}

// BudgetStatus is a Budget at one moment, in bytes.
type BudgetStatus struct {
	Limit, Used int64
	Resets      uint64 // streams and carriers that had to go
}

// NewBudget returns a budget of limit bytes for the sessions that the function
// lists, and watches over it until Close. A limit of 0 is no bound.
func NewBudget(limit int64, sessions func() []*Session, log *slog.Logger) *Budget {
	b := newBudget(limit, sessions, log)
	if limit > 0 {
		b.loop.Go(b.watch)
	}
	return b
}

func newBudget(limit int64, sessions func() []*Session, log *slog.Logger) *Budget {
	b := &Budget{
		limit: limit, sessions: sessions, log: log,
		heap: heapBytes, collect: runtime.GC, closed: make(chan struct{}), penalties: make(map[*user.User]*penalty),
	}
	_, b.base = b.heap()
	return b
}

// Close stops watching.
func (b *Budget) Close() {
	close(b.closed)
	b.loop.Wait()
}

// Status returns the memory in use.
func (b *Budget) Status() BudgetStatus {
	return BudgetStatus{Limit: b.limit, Used: b.used.Load(), Resets: b.resets.Load()}
}

// heapBytes returns the bytes of the heap that were live when it was last
// collected, and those in use now, dead ones included; stacks count in both.
func heapBytes() (live, inUse int64) {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"},
	}
	metrics.Read(s)
	stacks := int64(s[2].Value.Uint64())
	return int64(s[0].Value.Uint64()) + stacks, int64(s[1].Value.Uint64()) + stacks
}

func (b *Budget) watch() {
	timer := time.NewTimer(budgetInterval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-b.closed:
			return
		}
		timer.Reset(b.look())
	}
}

// look compares the memory in use with the limit, takes back the excess, and
// returns the time until the next look.
func (b *Budget) look() time.Duration {
	sessions := b.sessions()
	streams := 0
	for _, s := range sessions {
		streams += s.openStreams()
	}
	live, inUse := b.heap()
	b.looks++
	var held *holdings
	if inUse-b.base+b.kernel > b.limit/4 || streams > b.streams || streams > 0 && b.looks%scanEvery == 0 {
		held = b.sumHoldings(sessions)
		b.kernel = held.kernel
	} else if streams == 0 {
		b.seen = nil
	}
	b.streams = streams
	live, inUse = live+b.kernel-b.base, inUse+b.kernel-b.base
	stale := live > b.limit && b.freed.After(b.collected) // live is of before
	if inUse > b.limit && (stale || live <= b.limit && time.Since(b.collected) >= collectInterval) && time.Since(b.freed) >= settling {
		live, inUse = b.measureAgain()
	}
	if inUse > b.limit { // garbage is not held by anyone
		inUse = min(inUse, max(live, b.limit))
	}
	b.used.Store(max(inUse, 0))
	if held != nil {
		held.attribute(live)
	}
	if held != nil && inUse > b.limit/2 && time.Since(b.freed) >= settling {
		b.reclaim(held, live, inUse)
	}
	b.forgive()
	for _, s := range sessions {
		near := held != nil && inUse > b.limit/4*3 && held.above(s.cfg.User, b.limit)
		s.crowded.Store(near || b.penalized(s.cfg.User))
	}
	if streams == 0 && inUse <= b.limit/2 {
		return budgetIdle
	}
	return budgetInterval
}

// measureAgain collects garbage first, since it would count as held by peers.
func (b *Budget) measureAgain() (live, inUse int64) {
	b.collect()
	b.collected = time.Now()
	live, inUse = b.heap()
	return live + b.kernel - b.base, inUse + b.kernel - b.base
}

// reclaim takes back the part that a user holds beyond half of the limit, and the
// excess of all over the limit with an eighth to spare.
func (b *Budget) reclaim(held *holdings, live, used int64) {
	freed := held.reduceEach(b.limit/2, b.limit)
	if beyond := live - held.closing - b.limit; beyond > 0 {
		want := beyond + b.limit/8
		for i := range freed {
			want -= freed[i].bytes
		}
		freed = append(freed, held.reduce(want, b.limit)...)
	}
	if len(freed) == 0 {
		return
	}
	by := make(map[*user.User]int)
	for _, h := range freed {
		h.free()
		by[h.user]++
	}
	b.freed = time.Now()
	b.resets.Add(uint64(len(freed)))
	for u, n := range by {
		if u.Name != "" { // on a client, and in a proxy, all are one user
			b.penalize(u)
		}
		b.log.Warn("memory is short: streams or connections of the user that holds most were reset",
			slog.String("user", u.Name), slog.Int("number", n), slog.Int64("used_bytes", used), slog.Int64("limit_bytes", b.limit))
	}
}

func (b *Budget) penalize(u *user.User) {
	p := b.penalties[u]
	if p == nil {
		p = &penalty{lasts: minPenalty / 2}
		b.penalties[u] = p
	}
	p.lasts = min(2*p.lasts, maxPenalty)
	p.until = time.Now().Add(p.lasts)
}

func (b *Budget) penalized(u *user.User) bool {
	p := b.penalties[u]
	return p != nil && time.Now().Before(p.until)
}

// forgive forgets the penalties that have been over for as long as they lasted.
func (b *Budget) forgive() {
	for u, p := range b.penalties {
		if time.Since(p.until) >= p.lasts {
			delete(b.penalties, u)
		}
	}
}

// A holding is memory that is held for a user and can be freed as one.
type holding struct {
	user    *user.User
	bytes   int64
	carrier bool  // else a stream
	unread  int64 // of a carrier over QUIC: bytes of payload that quic-go may hold
	stalled bool  // a stream that is not read or written any more
	free    func()
}

// rank orders a user's holdings: first stalled streams, then other
// streams, then carriers.
func (h *holding) rank() int {
	switch {
	case h.carrier:
		return 2
	case h.stalled:
		return 0
	}
	return 1
}

// holder is a user's holdings.
type holder struct {
	bytes  int64
	all    []holding
	sorted bool
}

// next returns the holding that has to go first, or nil. Carriers go only from a
// user who holds a good part of the limit.
func (u *holder) next(limit int64) *holding {
	if !u.sorted {
		u.sorted = true
		slices.SortFunc(u.all, func(a, b holding) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.bytes, a.bytes))
		})
	}
	if len(u.all) == 0 || u.all[0].carrier && u.bytes < limit/8 {
		return nil
	}
	return &u.all[0]
}

func (u *holder) add(one holding) {
	u.bytes += one.bytes
	u.all = append(u.all, one)
}

// take removes the holding that next returned.
func (u *holder) take() holding {
	one := u.all[0]
	u.all = u.all[1:]
	u.bytes -= one.bytes
	return one
}

// holdings is the memory held for peers, by user.
type holdings struct {
	users   map[*user.User]*holder
	kernel  int64 // the part of it in the kernel, in bytes
	closing int64 // of ended carriers that are about to be freed, in bytes
}

// sumHoldings adds up the holdings of the users of sessions.
func (b *Budget) sumHoldings(sessions []*Session) *holdings {
	h := &holdings{users: make(map[*user.User]*holder)}
	for _, s := range sessions {
		h.of(s.cfg.User).bytes += int64(s.q.Waiting())
	}
	b.seen = pathsOf(sessions, b.seen)
	for _, p := range b.seen {
		h.add(p)
	}
	return h
}

// pathsOf returns the paths of the sessions, and those seen before that have ended but
// still have streams: data that has arrived on these can still be read.
func pathsOf(sessions []*Session, before []*Path) (all []*Path) {
	for _, p := range before {
		if p.c.Err() != nil && p.streams.Load() > 0 {
			all = append(all, p)
		}
	}
	ended := all
	for _, s := range sessions {
		for _, p := range s.Paths() {
			if p.c.Err() == nil || !slices.Contains(ended, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

func (h *holdings) of(u *user.User) *holder {
	held := h.users[u]
	if held == nil {
		held = &holder{}
		h.users[u] = held
	}
	return held
}

// above reports whether the user holds more than a fair share.
func (h *holdings) above(u *user.User, limit int64) bool {
	held := h.users[u]
	return held != nil && held.bytes > limit/int64(len(h.users)+1)
}

// attribute adds the bytes in live that are not accounted for to the carriers over QUIC, in
// proportion to the payload that was not read there: a peer that sends small frames makes
// quic-go hold several times their payload, which must not be taken from others.
func (h *holdings) attribute(live int64) {
	var unread int64
	for _, u := range h.users {
		live -= u.bytes
		for i := range u.all {
			unread += u.all[i].unread
		}
	}
	if live <= 0 || unread == 0 {
		return
	}
	factor := min(float64(live)/float64(unread), quicFrameCost)
	for _, u := range h.users {
		for i := range u.all {
			more := int64(factor * float64(u.all[i].unread))
			u.all[i].bytes += more
			u.bytes += more
		}
	}
}

// reduceEach returns the holdings to free so that no user holds more than most bytes.
func (h *holdings) reduceEach(most, limit int64) (out []holding) {
	for _, u := range h.users {
		for u.bytes > most && u.next(limit) != nil {
			out = append(out, u.take())
		}
	}
	return out
}

// reduce returns the holdings to free to get want bytes back, each from the user who holds most
// then. Users who hold little give nothing while another holds much: freeing that may bring
// more than was counted, and the next look shows the result.
func (h *holdings) reduce(want, limit int64) (out []holding) {
	users := slices.Collect(maps.Values(h.users))
	if much := slices.DeleteFunc(slices.Clone(users), func(u *holder) bool { return u.bytes < limit/8 }); len(much) > 0 {
		users = much
	}
	for want > 0 {
		var most *holder
		for _, u := range users {
			if (most == nil || u.bytes > most.bytes) && u.next(limit) != nil {
				most = u
			}
		}
		if most == nil {
			break
		}
		one := most.take()
		want -= one.bytes
		out = append(out, one)
	}
	return out
}

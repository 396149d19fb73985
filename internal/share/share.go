// Package share divides a bounded number of descriptors among users. Everyone gets
// one while there are free ones. When there is none, a user who has fewer than another
// gets one of the user who has most (max-min fairness), the least recently used.
package share

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxLimit bounds the descriptors of a pool, even if the process may have more: each
	// takes a port, and memory in the kernel.
	maxLimit = 48 << 10

	// One descriptor in reserveShare, and at least minReserve, are reserved for everything
	// else: half of them for connections that have not authenticated, and a quarter for
	// descriptors that are about to be closed.
	reserveShare = 8
	minReserve   = 64

	// maxHalfOpen bounds HalfOpen.
	maxHalfOpen = 1024

	// tick is the unit of the clock by which use is noted.
	tick = time.Second

	// idleAfter, in ticks, is the time without use after which others get a lease
	// before any that is in use.
	idleAfter = 3

	// spareAfter, in ticks, is the time without use after which the user's own next
	// request may get a lease.
	spareAfter = 30

	// spareInterval is the time without a call of Spare for a user for whom it found
	// nothing: a flood beyond the limit must cost little.
	spareInterval = 100 * time.Millisecond

	// busyWait bounds Wait.
	busyWait = 5 * time.Second
)

var (
	// ErrFull is returned if the user has a fair share or more.
	ErrFull = errors.New("there are no descriptors left for this user")

	// ErrBusy is returned while too many are being closed at once. The caller may try
	// again soon.
	ErrBusy = errors.New("descriptors are being freed")
)

// Class is the purpose of descriptors. A user loses those of the lowest class first,
// which cost least to lose.
type Class uint8

const (
	Flow    Class = iota // a UDP association
	Stream               // a proxied TCP connection
	Carrier              // a connection of the tunnel
	classes
)

// Holder has descriptors open.
type Holder interface {
	// LastUsed returns the pool's Now of the last use. It must not block or call the pool.
	LastUsed() uint32

	// GiveUp is called if others get the descriptors. It must close them soon, call
	// l.Release afterwards, and not block on anything else. It is called at most once
	// for each lease, possibly before Take has returned it.
	GiveUp(l *Lease)
}

// Pool is the descriptors that users share. Its fields must be set before the first Take.
type Pool struct {
	// Spare, if set, is called first if no descriptor is free: it ends unused streams or
	// flows of the user, or of others if may returns true for them, calls Leave for each,
	// and reports whether there were any.
	Spare func(user string, may func(other string) bool) bool

	limit    int // of used
	slack    int // of closing
	halfOpen int
	seconds  atomic.Uint32

	mu      sync.Mutex
	used    int
	closing int // descriptors that are about to be closed, not in used
	users   map[string]*account
	freed   chan struct{} // closed by the next Release; nil if nobody waits
}

// account is the leases of one user.
type account struct {
	name    string
	used    int // descriptors
	total   int // leases
	leases  [classes]leases
	noSpare time.Time // the last time that Spare found nothing
}

// Lease is the use of some descriptors.
type Lease struct {
	pool     *Pool
	account  *account
	class    Class
	n        int
	holder   Holder
	lastUsed uint32 // a lower bound of holder.LastUsed
	index    int    // in its heap; -1 after Leave
	taken    bool
	released bool
}

// New returns a pool of limit descriptors. It takes some from users only while at
// most slack others are about to be closed.
func New(limit, slack int) *Pool {
	return &Pool{limit: limit, slack: slack, users: make(map[string]*account)}
}

// For returns the pool of a process that may open this many descriptors, or an unknown
// number if it is 0.
func For(descriptors int) *Pool {
	if descriptors <= 0 {
		descriptors = maxLimit * 2
	}
	reserve := max(minReserve, descriptors/reserveShare)
	p := New(min(max(1, descriptors-reserve), maxLimit), reserve/4)
	p.halfOpen = min(reserve/2, maxHalfOpen)
	return p
}

// HalfOpen returns the number of descriptors that are reserved for connections that
// have not authenticated.
func (p *Pool) HalfOpen() int { return p.halfOpen }

// Now returns the time of the pool's clock, in seconds. It costs no system call.
func (p *Pool) Now() uint32 { return p.seconds.Load() }

// Tick moves the clock on by a second.
func (p *Pool) Tick() { p.seconds.Add(1) }

// Run moves the clock on until ctx ends.
func (p *Pool) Run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			p.Tick()
		case <-ctx.Done():
			return
		}
	}
}

// Take returns a lease of n descriptors of a class for the user; n is 0 if they are
// counted elsewhere. If none are free it may take leases of others. It returns ErrFull if
// none would be fair to take, and ErrBusy if too many are being closed. It does not block.
func (p *Pool) Take(user string, c Class, n int, h Holder) (*Lease, error) {
	l := &Lease{pool: p, class: c, n: n, holder: h}
	if err := p.takeFree(l, user); !errors.Is(err, ErrFull) {
		return l.orNil(err)
	}
	if p.callSpare(user) {
		if err := p.takeFree(l, user); !errors.Is(err, ErrFull) {
			return l.orNil(err)
		}
	}
	return l.orNil(p.takeFrom(l, user))
}

// TakeFree is like Take, but takes only free descriptors.
func (p *Pool) TakeFree(user string, c Class, n int, h Holder) (*Lease, error) {
	l := &Lease{pool: p, class: c, n: n, holder: h}
	return l.orNil(p.takeFree(l, user))
}

func (l *Lease) orNil(err error) (*Lease, error) {
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Wait is like Take, but blocks for up to five seconds before it returns ErrBusy.
func (p *Pool) Wait(ctx context.Context, user string, c Class, n int, h Holder) (*Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, busyWait)
	defer cancel()
	for {
		freed := p.nextRelease()
		l, err := p.Take(user, c, n, h)
		if !errors.Is(err, ErrBusy) {
			return l, err
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, err
		}
	}
}

// nextRelease returns a channel that is closed by the next Release.
func (p *Pool) nextRelease() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freed == nil {
		p.freed = make(chan struct{})
	}
	return p.freed
}

// Squeeze takes a lease away for the user, who needs a descriptor for the class, if the
// system has none left although the pool has. It returns a channel that is closed by the
// next Release, or nil if the user has no claim to any lease. It does not block.
func (p *Pool) Squeeze(user string, c Class) (freed <-chan struct{}) {
	freed = p.nextRelease()
	p.mu.Lock()
	if p.closing > p.slack {
		p.mu.Unlock()
		return freed
	}
	var victim *Lease
	// The user's request is counted in its account already.
	if most := p.mostLocked(user); most != nil && most.used > p.usedByLocked(user) {
		victim = most.victimForOthers(p.Now())
	} else if own := p.users[user]; own != nil {
		victim = own.victimForOwn(p.Now(), c)
	}
	if victim == nil {
		p.mu.Unlock()
		return nil
	}
	victim.evictLocked()
	p.mu.Unlock()
	victim.holder.GiveUp(victim)
	return freed
}

// takeFree adds l if there are enough free descriptors.
func (p *Pool) takeFree(l *Lease, user string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used+l.n > p.limit {
		return ErrFull
	}
	if p.used+l.n+p.closing > p.limit+p.slack {
		return ErrBusy
	}
	p.addLocked(l, user)
	return nil
}

// callSpare calls Spare, unless it found nothing for the user a moment ago.
func (p *Pool) callSpare(user string) bool {
	if p.Spare == nil {
		return false
	}
	p.mu.Lock()
	own := p.users[user]
	recent := own != nil && time.Since(own.noSpare) < spareInterval
	p.mu.Unlock()
	if recent {
		return false
	}
	if p.Spare(user, func(other string) bool { return p.usedBy(other) > p.usedBy(user) }) {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if own := p.users[user]; own != nil { // a user without an account is about to get a lease
		own.noSpare = time.Now()
	}
	return false
}

// Most returns the number of descriptors of the user who has most.
func (p *Pool) Most() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if most := p.mostLocked(""); most != nil {
		return most.used
	}
	return 0
}

func (p *Pool) usedBy(user string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usedByLocked(user)
}

func (p *Pool) usedByLocked(user string) int {
	if u := p.users[user]; u != nil {
		return u.used
	}
	return 0
}

// takeFrom adds l and takes away leases of others, or leases of the same user that
// are unused.
func (p *Pool) takeFrom(l *Lease, user string) error {
	p.mu.Lock()
	var victims []*Lease
	err := error(nil)
	for p.used+l.n > p.limit {
		var victim *Lease
		if victim, err = p.victimLocked(l, user); err != nil {
			break
		}
		victim.evictLocked()
		victims = append(victims, victim)
	}
	if err == nil {
		p.addLocked(l, user)
	}
	p.mu.Unlock()
	for _, v := range victims {
		v.holder.GiveUp(v)
	}
	return err
}

// victimLocked returns the lease to take away for l.
func (p *Pool) victimLocked(l *Lease, user string) (victim *Lease, err error) {
	missing := p.used + l.n - p.limit
	// The other must have at least as many as the user afterwards.
	if most := p.mostLocked(user); most != nil && most.used >= p.usedByLocked(user)+l.n+missing {
		victim = most.victimForOthers(p.Now())
	} else if own := p.users[user]; own != nil {
		victim = own.victimForOwn(p.Now(), l.class)
	}
	if victim == nil {
		return nil, ErrFull
	}
	if p.closing+victim.n > p.slack {
		return nil, ErrBusy
	}
	return victim, nil
}

// mostLocked returns the account with most descriptors except that of one user.
func (p *Pool) mostLocked(except string) (most *account) {
	for name, u := range p.users {
		if name != except && (most == nil || u.used > most.used || u.used == most.used && name < most.name) {
			most = u
		}
	}
	return most
}

// victimForOthers returns the lease that the user loses first: an idle one if there is
// any, of the lowest class.
func (u *account) victimForOthers(now uint32) *Lease {
	if l := u.longestUnused(now, classes-1, idleAfter); l != nil {
		return l
	}
	return u.longestUnused(now, classes-1, 0)
}

// victimForOwn returns the lease that the user loses for its own request: one of the same
// class or a lower one that was unused for long, and for a Carrier otherwise any Flow.
func (u *account) victimForOwn(now uint32, c Class) *Lease {
	if l := u.longestUnused(now, c, spareAfter); l != nil || c < Carrier {
		return l
	}
	return u.longestUnused(now, Flow, 0)
}

// longestUnused returns the least recently used lease of the lowest class, up to highest,
// that has one unused for at least idle; nil if no class has.
func (u *account) longestUnused(now uint32, highest Class, idle uint32) *Lease {
	for c := range highest + 1 {
		if l := u.leases[c].first(); l != nil && (l.lastUsed+idle <= now || idle == 0) {
			return l
		}
	}
	return nil
}

func (p *Pool) addLocked(l *Lease, user string) {
	u := p.users[user]
	if u == nil {
		u = &account{name: user}
		p.users[user] = u
	}
	l.account, l.lastUsed = u, l.holder.LastUsed()
	p.used += l.n
	u.used += l.n
	u.total++
	heap.Push(&u.leases[l.class], l)
}

// leaveLocked removes l from its account and counts it as about to be closed.
func (l *Lease) leaveLocked() {
	if l.index < 0 {
		return
	}
	heap.Remove(&l.account.leases[l.class], l.index)
	l.index = -1
	l.pool.used -= l.n
	l.pool.closing += l.n
	l.account.used -= l.n
	if l.account.total--; l.account.total == 0 {
		delete(l.pool.users, l.account.name)
	}
}

func (l *Lease) evictLocked() {
	l.leaveLocked()
	l.taken = true
}

// Leave must be called before the descriptors are closed, unless the pool has called
// GiveUp. Further calls do nothing.
func (l *Lease) Leave() {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	l.leaveLocked()
}

// Release must be called after the descriptors are closed. Further calls do nothing.
func (l *Lease) Release() {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.released {
		return
	}
	l.released = true
	l.leaveLocked()
	p.closing -= l.n
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// Taken reports whether the pool took the lease away for another one.
func (l *Lease) Taken() bool {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.taken
}

// leases is a heap by lastUsed. It implements heap.Interface.
type leases []*Lease

// first returns the least recently used lease, or nil if there is none. A use does not
// touch the heap; only first updates lastUsed.
func (s *leases) first() *Lease {
	for len(*s) > 0 {
		l := (*s)[0]
		last := l.holder.LastUsed()
		if last == l.lastUsed {
			return l
		}
		l.lastUsed = last
		heap.Fix(s, 0)
	}
	return nil
}

func (s leases) Len() int           { return len(s) }
func (s leases) Less(i, j int) bool { return s[i].lastUsed < s[j].lastUsed }

func (s leases) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

func (s *leases) Push(x any) {
	l := x.(*Lease)
	l.index = len(*s)
	*s = append(*s, l)
}

func (s *leases) Pop() any {
	last := len(*s) - 1
	l := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return l
}

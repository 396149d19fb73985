// Package share divides a bounded number of descriptors among users. Everyone gets
// some while there is room. When there is none, a user who has fewer than another gets
// one of the user who has most (max-min fairness), the one that was used longest ago.
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
	// maxLimit bounds the descriptors to share, however many there are: each takes a
	// port, and memory in the kernel.
	maxLimit = 48 << 10

	// The reserve for everything else: one descriptor in reserveShare, at least minReserve.
	// Half of that is for connections that have not authenticated, and a quarter for
	// descriptors that are still open though they no longer count.
	reserveShare = 8
	minReserve   = 64

	// maxHalfOpen bounds HalfOpen.
	maxHalfOpen = 1024

	// tick is the unit of the clock by which use is noted.
	tick = time.Second

	// idleAfter is how long a lease is unused until it goes before leases in use. It
	// goes to other users only.
	idleAfter = 3

	// spareAfter is how long a lease is unused until it may go for the same user's next
	// one. Both are in ticks.
	spareAfter = 30

	// askAgain is how long Spare is not called again for a user after it found nothing: a
	// flood beyond the limit must cost little.
	askAgain = 100 * time.Millisecond

	// busyWait bounds Wait.
	busyWait = 5 * time.Second
)

var (
	// ErrFull is returned to a user who has a fair share already, or more.
	ErrFull = errors.New("there are no descriptors left for this user")

	// ErrBusy is returned while too many are being closed at once: ask again soon.
	ErrBusy = errors.New("descriptors are being freed")
)

// Class is the purpose of descriptors. The class that costs its user less goes first.
type Class uint8

// The classes, in the order in which they go.
const (
	Flow    Class = iota // a UDP association
	Stream               // a TCP connection of one
	Carrier              // a connection of the tunnel
	classes
)

// Holder has descriptors open.
type Holder interface {
	// LastUsed returns the pool's Now of its last use. It must not wait or call the pool.
	LastUsed() uint32

	// GiveUp is called when others need the descriptors. It closes them soon and then
	// calls l.Release; it must not wait for anything else. It is called at most once
	// for each lease, and may be before Take has returned it.
	GiveUp(l *Lease)
}

// Pool is the descriptors that users share. Its fields are set before the first Take.
type Pool struct {
	// Spare, if set, is called first when there is no room: it ends unused streams or
	// flows of the user, or of others for whom may is true, calling Leave for each, and
	// reports whether there were any.
	Spare func(user string, may func(other string) bool) bool

	limit    int // of used
	slack    int // of leaving
	halfOpen int
	seconds  atomic.Uint32

	mu      sync.Mutex
	used    int // by all leases that count
	leaving int // by leases that are about to be closed
	users   map[string]*account
	freed   chan struct{} // closed by the next Release; nil if nobody waits
}

// account is the leases of one user.
type account struct {
	name   string
	used   int // descriptors
	held   int // leases
	leases [classes]leases
	asked  time.Time // when Spare had nothing
}

// Lease is the use of some descriptors.
type Lease struct {
	pool    *Pool
	of      *account
	class   Class
	n       int
	holder  Holder
	lowest  uint32 // LastUsed is this or later
	index   int    // in its heap; -1 once it has left
	taken   bool
	release bool // Release was called
}

// New returns a pool of limit descriptors, while at most slack others may be
// about to be closed.
func New(limit, slack int) *Pool {
	return &Pool{limit: limit, slack: slack, users: make(map[string]*account)}
}

// For returns the pool of a process that may have so many descriptors; 0 is not known.
func For(descriptors int) *Pool {
	if descriptors <= 0 {
		descriptors = maxLimit * 2
	}
	reserve := max(minReserve, descriptors/reserveShare)
	p := New(min(max(1, descriptors-reserve), maxLimit), reserve/4)
	p.halfOpen = min(reserve/2, maxHalfOpen)
	return p
}

// HalfOpen returns how many connections of strangers the reserve bears.
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

// Take gives the user n descriptors of a class, 0 if they are counted elsewhere. It may have to end leases of others, and
// returns ErrFull or ErrBusy if that is not due or not possible. It does not wait.
func (p *Pool) Take(user string, c Class, n int, h Holder) (*Lease, error) {
	l := &Lease{pool: p, class: c, n: n, holder: h}
	if err := p.takeFree(l, user); !errors.Is(err, ErrFull) {
		return l.orNil(err)
	}
	if p.askForSpare(user) {
		if err := p.takeFree(l, user); !errors.Is(err, ErrFull) {
			return l.orNil(err)
		}
	}
	return l.orNil(p.takeFrom(l, user))
}

// TakeFree is Take that takes nothing from anybody.
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

// Wait is Take that waits for a short time instead of returning ErrBusy.
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

// nextRelease returns a channel that the next Release closes.
func (p *Pool) nextRelease() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freed == nil {
		p.freed = make(chan struct{})
	}
	return p.freed
}

// Squeeze ends something for the user, who wants a descriptor for the class, when the
// system has none left though the pool has. freed is closed once that, or anything else,
// is closed; nil means that nothing may go for this user. It does not wait.
func (p *Pool) Squeeze(user string, c Class) (freed <-chan struct{}) {
	freed = p.nextRelease()
	p.mu.Lock()
	if p.leaving > p.slack {
		p.mu.Unlock()
		return freed
	}
	var victim *Lease
	// The user's request has been counted.
	if most := p.mostLocked(user); most != nil && most.used > p.usedBy(user) {
		victim = most.givenUp(p.Now())
	} else if own := p.users[user]; own != nil {
		victim = own.spared(p.Now(), c)
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

// takeFree enters l if there is room.
func (p *Pool) takeFree(l *Lease, user string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used+l.n > p.limit {
		return ErrFull
	}
	if p.used+l.n+p.leaving > p.limit+p.slack {
		return ErrBusy
	}
	p.enterLocked(l, user)
	return nil
}

// askForSpare calls Spare to end what nobody uses.
func (p *Pool) askForSpare(user string) bool {
	if p.Spare == nil {
		return false
	}
	p.mu.Lock()
	own := p.users[user]
	asked := own != nil && time.Since(own.asked) < askAgain
	p.mu.Unlock()
	if asked {
		return false
	}
	if p.Spare(user, func(other string) bool { return p.has(other) > p.has(user) }) {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if own := p.users[user]; own != nil { // one who has nothing gets something now
		own.asked = time.Now()
	}
	return false
}

// Most returns how many descriptors the user has who has most.
func (p *Pool) Most() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if most := p.mostLocked(""); most != nil {
		return most.used
	}
	return 0
}

// has returns how many descriptors the user has.
func (p *Pool) has(user string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usedBy(user)
}

func (p *Pool) usedBy(user string) int {
	if u := p.users[user]; u != nil {
		return u.used
	}
	return 0
}

// takeFrom enters l in the place of leases of others, or of leases that the user
// has and does not use.
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
		p.enterLocked(l, user)
	}
	p.mu.Unlock()
	for _, v := range victims {
		v.holder.GiveUp(v)
	}
	return err
}

// victimLocked returns the lease to end for l.
func (p *Pool) victimLocked(l *Lease, user string) (victim *Lease, err error) {
	missing := p.used + l.n - p.limit
	// The other still has as many as the user then.
	if most := p.mostLocked(user); most != nil && most.used >= p.usedBy(user)+l.n+missing {
		victim = most.givenUp(p.Now())
	} else if own := p.users[user]; own != nil {
		victim = own.spared(p.Now(), l.class)
	}
	if victim == nil {
		return nil, ErrFull
	}
	if p.leaving+victim.n > p.slack {
		return nil, ErrBusy
	}
	return victim, nil
}

// mostLocked returns the user, but for one, who has most.
func (p *Pool) mostLocked(but string) (most *account) {
	for name, u := range p.users {
		if name != but && (most == nil || u.used > most.used || u.used == most.used && name < most.name) {
			most = u
		}
	}
	return most
}

// givenUp returns the lease a user gives up first: unused if any, of the lowest class.
func (u *account) givenUp(now uint32) *Lease {
	if l := u.longestUnused(now, classes-1, idleAfter); l != nil {
		return l
	}
	return u.longestUnused(now, classes-1, 0)
}

// spared returns the lease a user gives up for its own request: one that was unused for long,
// if it is of no higher class, and for a connection of the tunnel any flow.
func (u *account) spared(now uint32, c Class) *Lease {
	if l := u.longestUnused(now, c, spareAfter); l != nil || c < Carrier {
		return l
	}
	return u.longestUnused(now, Flow, 0)
}

// longestUnused returns the lease of the lowest class, up to highest, that has been unused
// for at least idle, and of that class the longest unused one; nil if there is none.
func (u *account) longestUnused(now uint32, highest Class, idle uint32) *Lease {
	for c := range highest + 1 {
		if l := u.leases[c].first(); l != nil && (l.lowest+idle <= now || idle == 0) {
			return l
		}
	}
	return nil
}

func (p *Pool) enterLocked(l *Lease, user string) {
	u := p.users[user]
	if u == nil {
		u = &account{name: user}
		p.users[user] = u
	}
	l.of, l.lowest = u, l.holder.LastUsed()
	p.used += l.n
	u.used += l.n
	u.held++
	heap.Push(&u.leases[l.class], l)
}

// leaveLocked takes l off the account: it counts as about to be closed.
func (l *Lease) leaveLocked() {
	if l.index < 0 {
		return
	}
	heap.Remove(&l.of.leases[l.class], l.index)
	l.index = -1
	l.pool.used -= l.n
	l.pool.leaving += l.n
	l.of.used -= l.n
	if l.of.held--; l.of.held == 0 {
		delete(l.pool.users, l.of.name)
	}
}

func (l *Lease) evictLocked() {
	l.leaveLocked()
	l.taken = true
}

// Leave is called before the descriptors are closed. Further calls do nothing.
func (l *Lease) Leave() {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	l.leaveLocked()
}

// Release is called when they are closed. Further calls do nothing.
func (l *Lease) Release() {
	p := l.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.release {
		return
	}
	l.release = true
	l.leaveLocked()
	p.leaving -= l.n
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
}

// Taken reports whether others got the descriptors.
func (l *Lease) Taken() bool {
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.taken
}

// leases is a heap by lowest, so that the one used longest ago is found without a look
// at all of them. It implements heap.Interface.
type leases []*Lease

// first returns the lease that was used longest ago, or nil. Leases that were used since the last
// look are moved to their new place here, and nowhere else.
func (s *leases) first() *Lease {
	for len(*s) > 0 {
		l := (*s)[0]
		last := l.holder.LastUsed()
		if last == l.lowest {
			return l
		}
		l.lowest = last
		heap.Fix(s, 0)
	}
	return nil
}

func (s leases) Len() int           { return len(s) }
func (s leases) Less(i, j int) bool { return s[i].lowest < s[j].lowest }

func (s leases) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].index, s[j].index = i, j
}

// Push and Pop are for package heap.
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
